"""
Files and folders that are written whole or not at all: they get their names when every byte is on
the disk, and nothing is left behind when that fails. And files that are read: what can't be is one
message, which says why.
"""

import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Union

from safetensors import SafetensorError

from transformer_elmo.errors import ConfigurationError, first_line

PathLike = Union[str, "os.PathLike[str]"]

REPEAT = "Once it can, repeat the command."

_SUFFIX = ".part"

# Bytes of JSON: a config has some thousands.
_MOST_JSON = 2**26

# What JSON doesn't have and AllenNLP reads. A string is matched first, so that nothing in it is.
_COMMENT = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|//[^\n]*|#[^\n]*|/\*.*?(?:\*/|\Z)', re.S)
_LAST_COMMA = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|,(?=\s*[]}])', re.S)


class _File(io.FileIO):
    """A file that remembers why it can't be written: libraries in between tell less."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


@contextmanager
def written_whole(
    path: Path, before: Callable[[], None] = lambda: None, advice: str = REPEAT
) -> Iterator[IO[bytes]]:
    """
    A file to write to, which takes the place of `path` when the block ends without an error.

    `before`: called once the new file is complete, right before it gets its name. `advice`: what to
    do once the file can be written, for messages. Raises `ConfigurationError` if the file can't be
    written: the message names it and says why.
    """
    _check_is_file(path)
    temporary = _temporary(path)
    with errors_of_disk(path, advice):
        raw = _File(str(temporary), "w+")
        try:
            with io.BufferedRandom(raw) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            before()
            os.replace(temporary, path)
            _sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            if raw.error is not None:
                raise raw.error from None
            raise


def write_text(path: Path, text: str) -> None:
    """`text` as UTF-8, as the whole of the file `path`. Errors are those of `written_whole`."""
    with written_whole(path) as file:
        file.write(text.encode("utf-8"))


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON that UTF-8 can write: lone surrogates, which JSON may bring along, are escaped."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@contextmanager
def folder_written_whole(path: Path, replace: bool = False) -> Iterator[Path]:
    """
    An empty folder to fill, which takes the place of `path` when the block ends without an error.

    `path`: its parent is made if it isn't there. `replace`: whether a folder (or a file) that isn't
    empty may give way. Raises `ConfigurationError` if `path` is taken and `replace` is false, or
    the folder can't be written.
    """
    _check_not_taken(path, replace)
    with errors_of_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        temporary.mkdir()
        try:
            yield temporary
            mode = temporary.stat().st_mode & 0o666
            for file in temporary.rglob("*"):
                if file.is_file():
                    # The umask's, which went into the folder's: some libraries' files are private.
                    file.chmod(mode)
                    _sync(file)
            remove(path)
            os.replace(temporary, path)
            _sync_folder(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def check_can_make_folder(path: Path, replace: bool = False) -> None:
    """Raises the errors of `folder_written_whole` before minutes of work instead of after them."""
    _check_not_taken(path, replace)
    parent = _existing_parent(path.absolute().parent)
    probe = _temporary(parent / path.name)
    with errors_of_disk(path):
        probe.mkdir()
        probe.rmdir()


def _check_not_taken(path: Path, replace: bool) -> None:
    if not replace and _is_taken(path):
        raise ConfigurationError(
            f"{path} exists and isn't empty. Choose another folder, or replace it with --force."
        )


@contextmanager
def errors_of_disk(path: Path, advice: str = REPEAT) -> Iterator[None]:
    """What the system says while `path` is being written, as a `ConfigurationError` with advice."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = _reason(error)
        # Libraries in between have words of their own for it, and not always the number.
        if "No space left" in f"{reason} {error}":
            free = shutil.disk_usage(_existing_parent(path)).free
            reason = (
                f"no space is left for all of it on its disk ({free:,} bytes are free now). Make "
                "room"
            )
        raise ConfigurationError(f"{path} can't be written: {reason}. {advice}") from error


def _reason(error: Exception) -> str:
    # In Rust's words, the number is at the end.
    said = re.search(r"\(os error (\d+)\)", str(error))
    number = getattr(error, "errno", None) or (int(said[1]) if said else None)
    return os.strerror(number) if number else first_line(error)


@contextmanager
def errors_of_reading(path: PathLike, shown: str | None = None) -> Iterator[None]:
    """As `errors_of_disk`, while `path`, which messages call `shown`, is being read."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"{shown or path} can't be read: {_reason(error)}.") from error


def check_can_read(path: PathLike, shown: str | None = None) -> None:
    """Raises `ConfigurationError` if `path` isn't a file that may be read."""
    with errors_of_reading(path, shown):
        if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
            # There is no end of them.
            raise ConfigurationError(f"{shown or path} can't be read: it is a pipe or a device.")
        open(path, "rb").close()


def read_bytes(path: PathLike, shown: str | None = None) -> bytes:
    """All of a file. Errors are those of `check_can_read`."""
    check_can_read(path, shown)
    with errors_of_reading(path, shown):
        return Path(path).read_bytes()


def read_json(path: PathLike, shown: str | None = None) -> dict[str, Any]:
    """
    The object in a file of JSON, with the comments and the commas at the end that AllenNLP reads.

    Raises `ConfigurationError` if it can't be read, or is something else.
    """
    check_can_read(path, shown)
    if os.path.getsize(path) > _MOST_JSON:
        raise ConfigurationError(f"{shown or path} has more than {_MOST_JSON:,} bytes: no config.")
    data = read_bytes(path, shown)
    try:
        content = parsed_json(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{shown or path} is not JSON: {first_line(error)}.") from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"{shown or path} holds no JSON object.")
    return content


def parsed_json(text: str) -> Any:
    """As `json.loads`, with comments and commas at the end."""
    try:
        return json.loads(text)
    except ValueError:
        return json.loads(_LAST_COMMA.sub(_blank, _COMMENT.sub(_blank, text)))


def _blank(match: "re.Match[str]") -> str:
    # Places in messages stay what they are.
    return match[0] if match[0][0] == '"' else re.sub(r"[^\n]", " ", match[0])


def check_can_write(path: Path) -> None:
    """Raises `ConfigurationError` before hours of work if `path` can't be written after them."""
    if not path.parent.is_dir():
        raise ConfigurationError(f"There is no folder {path.parent} to write {path.name} to.")
    _check_is_file(path)
    probe = _temporary(path)
    with errors_of_disk(path):
        # Permissions alone don't tell of a file system that is read-only.
        probe.touch()
        probe.unlink()


def _check_is_file(path: Path) -> None:
    if path.exists() and not path.is_file():
        # A new file would take its place: the system needs its devices.
        raise ConfigurationError(f"{path} is a folder, a pipe or a device. Name a file.")


def remove_left_behind(folder: Path, name: str = "") -> None:
    """Removes what processes that are gone left half-written of `name`, by default of any."""
    # Other machines may share the folder.
    middle = re.escape(f".{os.uname().nodename}.")
    pattern = re.compile(rf"\.{re.escape(name) or '.+'}{middle}(\d+){re.escape(_SUFFIX)}", re.S)
    for left in os.listdir(folder) if folder.is_dir() else ():
        found = pattern.fullmatch(left)
        if found and not _is_running(int(found[1])):
            remove(folder / left)


def _temporary(path: Path) -> Path:
    """A name beside `path`. What processes that are gone left under such names is removed."""
    remove_left_behind(path.parent, path.name)
    return path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}{_SUFFIX}")


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _is_taken(path: Path) -> bool:
    if path.is_dir():
        return any(path.iterdir())
    return path.exists() or path.is_symlink()


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    # The new name itself is an entry of the folder.
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _existing_parent(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
