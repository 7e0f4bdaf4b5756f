"""Model archives: unpacked so that nothing lands, runs or grows where it shouldn't."""

import gzip
import logging
import os
import shutil
import tarfile
import tempfile
import zlib
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Collection, Dict, Iterator, Optional, Union

from overrides import overrides

from transformer_elmo.errors import ConfigurationError

logger = logging.getLogger(__name__)

LIMIT_VARIABLE = "TRANSFORMER_ELMO_MAX_ARCHIVE_GB"

# The billion-word model unpacks to less than 2 GB.
DEFAULT_LIMIT_GB = 32.0

# A model archive has some ten files; one with this many fills a disk with empty ones.
MAX_MEMBERS = 100_000

# What a file system takes of a name, and of a path in the folder for temporary files.
MAX_NAME = 255
MAX_PATH = 1_000

# Long names and the like are read whole before a member is known. None of a real archive's has this
# many bytes, and contents are read in pieces of this many.
CHUNK = 1 << 20

# Folders that hold an unpacked archive, and the archive, for messages that a user can read.
_unpacked_from: Dict[str, str] = {}


def size_limit() -> int:
    """
    # Returns

    `int`
        The most bytes that an archive may unpack to: 32 GB, or what the environment variable
        `TRANSFORMER_ELMO_MAX_ARCHIVE_GB` says.

    # Raises

    `ConfigurationError`
        If it isn't a positive number.
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
    archive: Union[str, os.PathLike],
    directory: Union[str, os.PathLike],
    left_out: Collection[str] = (),
) -> None:
    """
    Unpacks a `.tar.gz` file. Every member is looked at before a byte of it is written; owners,
    modes and times aren't restored.

    # Parameters

    archive : `Union[str, os.PathLike]`
    directory : `Union[str, os.PathLike]`
        Must exist.
    left_out : `Collection[str]`, optional (default = `()`)
        Names of members that aren't written.

    # Raises

    `ConfigurationError`
        If the file isn't a gzip-compressed tar file, or ends too soon; if a member is a link or a
        device, would lie outside the directory, or has a name that no file can have; if the
        members' declared sizes exceed `size_limit`.
    """
    limit = size_limit()
    total = members = 0
    try:
        with _Stream(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                target = _target(member, Path(directory), archive)
                members += 1
                total += max(member.size, 0)
                if total > limit:
                    raise ConfigurationError(
                        f"{archive} unpacks to more than {limit / 1e9:g} GB (up to its member "
                        f"{member.name!r} it declares {total / 1e9:.1f} GB). If you trust it, "
                        "raise the "
                        f"limit: export {LIMIT_VARIABLE}=..."
                    )
                if members > MAX_MEMBERS:
                    raise ConfigurationError(f"{archive} has more than {MAX_MEMBERS:,} members.")
                if member.name in left_out:
                    continue
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(member)
                assert content is not None
                with content, open(target, "wb") as file:
                    shutil.copyfileobj(content, file, CHUNK)
                if target.stat().st_size != member.size:
                    raise EOFError
            _check_sum(tar, limit)
    except (EOFError, tarfile.ReadError, gzip.BadGzipFile, zlib.error) as error:
        raise _incomplete(archive, error) from None
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise ConfigurationError(
            f"{archive} has a file and a folder of the same name ({error.filename})."
        ) from None
    if members == 0:
        raise ConfigurationError(f"{archive} is an empty .tar.gz file, not a model archive.")


class _Stream(gzip.GzipFile):
    """An archive's bytes, in pieces that memory has room for."""

    def __init__(self, archive: Union[str, os.PathLike]) -> None:
        super().__init__(archive, "rb")

    @overrides(check_signature=False)
    def read(self, size: Optional[int] = -1) -> bytes:
        if size is None or not 0 <= size <= CHUNK:
            raise ConfigurationError(
                f"{self.name} has a header of {size:,} bytes, which is no model archive's. "
                "Don't trust this file."
            )
        return super().read(size)


def _check_sum(tar: tarfile.TarFile, limit: int) -> None:
    """Reads on to the end of the compressed stream, where its checksum is, and is checked."""
    assert tar.fileobj is not None
    try:
        while limit > 0 and (rest := tar.fileobj.read(CHUNK)):
            limit -= len(rest)
    except gzip.BadGzipFile as error:
        # What somebody appended to a complete file does no harm.
        if "Not a gzipped file" not in str(error):
            raise


def _target(member: tarfile.TarInfo, directory: Path, archive: Union[str, os.PathLike]) -> Path:
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
    if len(os.fsencode(name)) > MAX_PATH or any(len(os.fsencode(p)) > MAX_NAME for p in parts):
        raise ConfigurationError(
            f"{archive} has a member with a name of {len(name):,} characters, {name[:40]!r}..., "
            "which is no model archive's. Don't trust this file."
        )
    if not (member.isreg() or member.isdir()):
        raise ConfigurationError(
            f"{archive} has a member {name!r} that is a link or a device. A model archive has only "
            "files and folders; don't trust this file."
        )
    return directory.joinpath(*parts)


def _incomplete(archive: Union[str, os.PathLike], error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"{archive} ({os.path.getsize(archive):,} bytes) is not a complete .tar.gz file"
        + (f" ({error})" if str(error) else "")
        + ". A model archive is one file model.tar.gz, as training writes it. If this one was "
        "downloaded or copied, it may have been cut off: get it again."
    )


def archive_of(directory: Union[str, os.PathLike]) -> Optional[str]:
    """
    # Returns

    `str`, optional
        The archive that was unpacked to `directory`, if one was.
    """
    return _unpacked_from.get(os.path.realpath(directory))


@contextmanager
def extracted_archive(
    resolved_archive_file: Union[str, os.PathLike], cleanup: bool = True
) -> Iterator[str]:
    """
    Does what AllenNLP's function of this name does, with `unpack`. If that fails, nothing stays
    behind.

    # Parameters

    resolved_archive_file : `Union[str, os.PathLike]`
    cleanup : `bool`, optional (default = `True`)
        Whether to remove the folder on leaving the context.
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
