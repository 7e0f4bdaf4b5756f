"""
Files and folders that are written whole or not at all: they get their names when every byte is on
the disk, and nothing is left behind when that fails.
"""

import errno
import json
import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Callable, Iterator, Optional

from transformer_elmo.errors import ConfigurationError

REPEAT = "Once it can, repeat the command."

_SUFFIX = ".part"


@contextmanager
def written_whole(
    path: Path, before: Callable[[], None] = lambda: None, advice: str = REPEAT
) -> Iterator[IO[bytes]]:
    """
    A file to write to, which takes the place of `path` when the block ends without an error.

    # Parameters

    path : `Path`
    before : `Callable[[], None]`, optional
        Called once the new file is complete, right before it gets its name.
    advice : `str`, optional
        What to do once the file can be written, for messages.

    # Raises

    `ConfigurationError`
        If the file can't be written: the message names it and says why.
    """
    temporary = _temporary(path)
    with errors_of_disk(path, advice):
        try:
            with open(temporary, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            before()
            os.replace(temporary, path)
            _sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def write_text(path: Path, text: str) -> None:
    """`text` as UTF-8, as the whole of the file `path`. Errors are those of `written_whole`."""
    with written_whole(path) as file:
        file.write(text.encode("utf-8"))


def json_text(value: Any, indent: Optional[int] = None) -> str:
    """JSON that UTF-8 can write: lone surrogates, which JSON may bring along, are escaped."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@contextmanager
def folder_written_whole(path: Path, replace: bool = False) -> Iterator[Path]:
    """
    An empty folder to fill, which takes the place of `path` when the block ends without an error.

    # Parameters

    path : `Path`
        Its parent is made if it isn't there.
    replace : `bool`, optional (default = `False`)
        Whether a folder (or a file) that isn't empty may give way.

    # Raises

    `ConfigurationError`
        If `path` is taken and `replace` is false, or the folder can't be written.
    """
    _check_not_taken(path, replace)
    with errors_of_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        temporary.mkdir()
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
            _remove(path)
            os.replace(temporary, path)
            _sync_folder(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def check_can_make_folder(path: Path, replace: bool = False) -> None:
    """
    Looks before minutes of work whether `folder_written_whole` could write a folder after them.

    # Raises

    `ConfigurationError`
        If it couldn't.
    """
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
    """
    What the system says while `path` is being written, in one message, with advice for later.

    # Raises

    `ConfigurationError`
        For an `OSError` of the block: the disk is full, there is no permission, ...
    """
    try:
        yield
    except OSError as error:
        # Libraries in between have words of their own for a full disk, and not always the number.
        if error.errno == errno.ENOSPC or "No space left" in str(error):
            free = shutil.disk_usage(_existing_parent(path)).free
            raise ConfigurationError(
                f"{path} can't be written: no space is left for all of it on its disk ({free:,} "
                f"bytes are free now). Make room. {advice}"
            ) from error
        reason = os.strerror(error.errno) if error.errno else str(error).partition("\n")[0]
        raise ConfigurationError(f"{path} can't be written: {reason}. {advice}") from error


def check_can_write(path: Path) -> None:
    """
    Looks before hours of work whether `path` could be written after them.

    # Raises

    `ConfigurationError`
        If its folder isn't there or can't be written to, or it is itself a folder.
    """
    if not path.parent.is_dir():
        raise ConfigurationError(f"There is no folder {path.parent} to write {path.name} to.")
    if path.is_dir():
        raise ConfigurationError(f"{path} is a folder.")
    probe = _temporary(path)
    with errors_of_disk(path):
        # Permissions alone don't tell of a file system that is read-only.
        probe.touch()
        probe.unlink()


def remove_left_behind(folder: Path, name: str = "") -> None:
    """
    Removes what processes that are gone left half-written.

    # Parameters

    folder : `Path`
    name : `str`, optional
        The name that it should have got. By default, any.
    """
    # Other machines may share the folder.
    middle = f".{os.uname().nodename}."
    for left in os.listdir(folder) if folder.is_dir() else ():
        if not (left.startswith(f".{name}") and left.endswith(_SUFFIX)):
            continue
        wanted, found, process = left[1 : -len(_SUFFIX)].rpartition(middle)
        if found and wanted == (name or wanted) and process.isdigit():
            if not _is_running(int(process)):
                _remove(folder / left)


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
        return True
    return True


def _is_taken(path: Path) -> bool:
    if path.is_dir():
        return any(path.iterdir())
    return path.exists() or path.is_symlink()


def _remove(path: Path) -> None:
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
