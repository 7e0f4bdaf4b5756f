"""Model archives: unpacked so that nothing lands, runs or grows where it shouldn't."""

import gzip
import logging
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from overrides import overrides

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import check_can_read

logger = logging.getLogger(__name__)

LIMIT_VARIABLE = "TRANSFORMER_ELMO_MAX_ARCHIVE_GB"

# The billion-word model unpacks to less than 2 GB.
DEFAULT_LIMIT_GB = 32.0

# A model archive has some ten files. Folders count, those too that only a longer path implies: each
# takes room and time.
MAX_MEMBERS = 2_000

# What a file system takes of a name, and of a path in the folder for temporary files.
MAX_NAME = 255
MAX_PATH = 1_000

# Weights are hardly smaller when they are compressed. From this size on, an archive that unpacks to
# so many times its own size is no model's.
BOMB_BYTES = 2_000_000_000
BOMB_RATIO = 200

# Contents are read in pieces of this many bytes. Long names and the like are read whole before a
# member is known; none of a real archive's has so many, nor have all of them together.
CHUNK = 1 << 16
MAX_HEADERS = 16 << 20
MAX_ATTRIBUTES = 1_000

# What may come after the last member: tar fills up its last block, of 10 kB by default.
MAX_REST = 16 << 20

# Folders that hold an unpacked archive, and the archive, for messages that a user can read.
_unpacked_from: dict[str, str] = {}


def size_limit() -> int:
    """
    Returns the most bytes that an archive may unpack to: 32 GB, or what the environment variable
    `TRANSFORMER_ELMO_MAX_ARCHIVE_GB` says. Raises `ConfigurationError` if it isn't a positive
    number.
    """
    text = os.environ.get(LIMIT_VARIABLE, "").strip()
    try:
        gigabytes = float(text) if text else DEFAULT_LIMIT_GB
        if not gigabytes > 0:
            raise ValueError
        return int(gigabytes * 1e9)
    except (ValueError, OverflowError):
        raise ConfigurationError(
            f"{LIMIT_VARIABLE} = {text!r}: expected a positive number of gigabytes."
        ) from None


def unpack(
    archive: str | os.PathLike,
    directory: str | os.PathLike,
    left_out: Collection[str] = (),
) -> None:
    """
    Unpacks a `.tar.gz` file. Every member is looked at before a byte of it is written; owners,
    modes and times aren't restored.

    `directory`: must exist. `left_out`: names of members that aren't written. Raises
    `ConfigurationError` if the file isn't a gzip-compressed tar file, or ends too soon; if a member
    is a link or a device, would lie outside the directory, or has a name that no file can have; if
    there are more members, headers or bytes than a model archive has, or than the disk has room
    for.
    """
    check_can_read(archive)
    seen = _Seen(archive, size_limit(), Path(directory))
    try:
        with _Stream(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                path = _path(member, archive)
                seen.add(member, path, len(tar.pax_headers))
                if member.name not in left_out:
                    _write(tar, stream, member, Path(directory, path), archive)
            _check_sum(stream, archive)
    except (
        EOFError,
        tarfile.TarError,
        gzip.BadGzipFile,
        zlib.error,
        # What tarfile makes of numbers, text and chains of headers that are none.
        ValueError,
        OverflowError,
        LookupError,
        RecursionError,
    ) as error:
        raise _incomplete(archive, error) from None
    if not seen.members:
        raise ConfigurationError(f"{archive} is an empty .tar.gz file, not a model archive.")


def _write(
    tar: tarfile.TarFile,
    stream: "_Stream",
    member: tarfile.TarInfo,
    target: Path,
    archive: str | os.PathLike,
) -> None:
    try:
        if member.isdir():
            target.mkdir(parents=True, exist_ok=True)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        content = tar.extractfile(member)
        assert content is not None
        with stream.reading_content(), content, open(target, "wb") as file:
            shutil.copyfileobj(content, file, CHUNK)
    except (FileExistsError, IsADirectoryError, NotADirectoryError):
        raise ConfigurationError(
            f"{archive} has a file and a folder of the same name ({member.name})."
        ) from None
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile) or error.errno is None:
            raise
        raise ConfigurationError(
            f"{archive} can't be unpacked to {target}: {os.strerror(error.errno)}. With the "
            "environment variable TMPDIR, name a folder that has room."
        ) from None
    if target.stat().st_size != member.size:
        raise EOFError


class _Seen:
    """What an archive has had so far, and whether that is more than a model archive has."""

    def __init__(self, archive: str | os.PathLike, limit: int, directory: Path) -> None:
        self.members = 0
        self._archive = archive
        self._limit = limit
        self._directory = directory
        self._size = os.path.getsize(archive)
        self._total = 0
        self._folders: set[PurePosixPath] = set()

    def add(self, member: tarfile.TarInfo, path: PurePosixPath, num_common: int) -> None:
        """Raises `ConfigurationError` if it is too much."""
        archive, name = self._archive, member.name
        self.members += 1
        self._total += max(member.size, 0)
        above = path if member.isdir() else path.parent
        while above.parts and above not in self._folders:
            self._folders.add(above)
            above = above.parent
        if self.members + len(self._folders) > MAX_MEMBERS:
            raise ConfigurationError(
                f"{archive} has more than {MAX_MEMBERS:,} files and folders, and a model archive "
                "has some ten. Don't trust this file."
            )
        if len(member.pax_headers) + num_common > MAX_ATTRIBUTES:
            raise ConfigurationError(
                f"{archive} has more than {MAX_ATTRIBUTES:,} attributes for its member {name!r}, "
                "and a model archive has none. Don't trust this file."
            )
        if self._total > self._limit:
            raise ConfigurationError(
                f"{archive} unpacks to more than {self._limit / 1e9:g} GB (up to its member "
                f"{name!r} it declares {self._total / 1e9:.1f} GB). If you trust it, raise the "
                f"limit: export {LIMIT_VARIABLE}=..."
            )
        if self._total > max(BOMB_BYTES, BOMB_RATIO * self._size):
            raise ConfigurationError(
                f"{archive} ({self._size:,} bytes) unpacks to {self._total / 1e9:.1f} GB: weights "
                "can't be compressed so far. Don't trust this file."
            )
        free = shutil.disk_usage(self._directory).free
        if member.size > free:
            raise ConfigurationError(
                f"{archive} can't be unpacked to {self._directory}: {member.name} needs "
                f"{member.size:,} bytes there, and {free:,} are free. With the environment "
                "variable TMPDIR, name a folder that has room."
            )


class _Stream(gzip.GzipFile):
    """An archive's bytes, in pieces that memory has room for."""

    def __init__(self, archive: str | os.PathLike) -> None:
        super().__init__(archive, "rb")
        self._headers: int | None = 0

    @contextmanager
    def reading_content(self) -> Iterator[None]:
        """As long as this lasts, what is read is no header."""
        headers, self._headers = self._headers, None
        yield
        self._headers = headers

    @overrides(check_signature=False)
    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= CHUNK:
            raise self._no_header(-1 if size is None else size)
        if self._headers is not None:
            self._headers += size
            if self._headers > MAX_HEADERS:
                raise self._no_header(self._headers)
        return super().read(size)

    def _no_header(self, size: int) -> ConfigurationError:
        return ConfigurationError(
            f"{self.name} has a header of {size:,} bytes, which is no model archive's. "
            "Don't trust this file."
        )


def _check_sum(stream: _Stream, archive: str | os.PathLike) -> None:
    """Reads on to the end of the compressed stream, where its checksum is, and is checked."""
    left = MAX_REST
    try:
        with stream.reading_content():
            while rest := stream.read(CHUNK):
                left -= len(rest)
                if left < 0:
                    raise ConfigurationError(
                        f"{archive} goes on for more than {MAX_REST:,} bytes after its last "
                        "member, which no model archive does. Don't trust this file."
                    )
    except gzip.BadGzipFile as error:
        # What somebody appended to a complete file does no harm.
        if "Not a gzipped file" not in str(error):
            raise


def _path(member: tarfile.TarInfo, archive: str | os.PathLike) -> PurePosixPath:
    """Where a member goes, in the folder that the archive is unpacked to."""
    name = member.name
    # A backslash or a drive is a path on some systems only, and no model archive has one.
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in parts[0]:
        if parts or name not in ("", "."):
            raise ConfigurationError(
                f"{archive} has a member {name!r}, which would lie outside the folder it is "
                "unpacked to. "
                "Don't trust this file."
            )
    size, longest = len(_encoded(name)), max((len(_encoded(part)) for part in parts), default=0)
    if size > MAX_PATH or longest > MAX_NAME or "\0" in name:
        raise ConfigurationError(
            f"{archive} has a member with a name of {len(name):,} characters, {name[:40]!r}..., "
            "which is no model archive's. Don't trust this file."
        )
    if not (member.isreg() or member.isdir()):
        raise ConfigurationError(
            f"{archive} has a member {name!r} that is a link or a device. A model archive has only "
            "files and folders; don't trust this file."
        )
    return PurePosixPath(*parts)


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _incomplete(archive: str | os.PathLike, error: Exception) -> ConfigurationError:
    folder = Path(archive).absolute().parent
    message = f"{archive} ({os.path.getsize(archive):,} bytes) is not a complete .tar.gz file" + (
        f" ({error})" if str(error) else ""
    )
    if (folder / "config.json").is_file():
        return ConfigurationError(
            f"{message}. It lies in the folder of a model: give that, {folder}, in its place."
        )
    return ConfigurationError(
        f"{message}. A model archive is one file model.tar.gz, as training writes it. If this one "
        "was downloaded or copied, it may have been cut off: get it again."
    )


def archive_of(directory: str | os.PathLike) -> str | None:
    """Returns the archive that was unpacked to `directory`, if one was."""
    return _unpacked_from.get(os.path.realpath(directory))


@contextmanager
def extracted_archive(
    resolved_archive_file: str | os.PathLike, cleanup: bool = True
) -> Iterator[str]:
    """
    Does what AllenNLP's function of this name does, with `unpack`. If that fails, nothing stays
    behind.

    `cleanup`: whether to remove the folder on leaving the context.
    """
    directory = tempfile.mkdtemp()
    key = os.path.realpath(directory)
    try:
        logger.info("extracting archive file %s to temp dir %s", resolved_archive_file, directory)
        try:
            unpack(resolved_archive_file, directory)
        except BaseException:
            cleanup = True
            raise
        _unpacked_from[key] = str(resolved_archive_file)
        yield directory
    finally:
        if cleanup:
            _unpacked_from.pop(key, None)
            logger.info("removing temporary unarchived model dir at %s", directory)
            shutil.rmtree(directory, ignore_errors=True)
