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

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import check_can_read

logger = logging.getLogger(__name__)

LIMIT_VARIABLE = "TRANSFORMER_ELMO_MAX_ARCHIVE_GB"

# The billion-word model unpacks to less than 2 GB.
DEFAULT_LIMIT_GB = 32.0

# A model archive has some ten files, in folders of folders of folders at most. Each takes time.
MAX_FILES = 2_000
MAX_DEPTH = 100

# Contents are read in smaller pieces. Long names and the like are read whole before a member is
# known; none of a real archive's is so long, or has so many attributes.
MAX_HEADER = 1 << 16
MAX_ATTRIBUTES = 1_000

# What may come after the last member: tar fills up its last block, of 10 kB by default.
MAX_REST = 16 << 20

# What gzip, zlib and tarfile make of a file that isn't one of theirs, or was cut off.
_DAMAGE = (
    *(EOFError, tarfile.TarError, gzip.BadGzipFile, zlib.error),
    *(ValueError, OverflowError, LookupError, RecursionError),
)

# Folders that hold an unpacked archive, and the archive, for messages that a user can read.
_unpacked_from: dict[str, str] = {}


def size_limit() -> float:
    """The most bytes that an archive may unpack to."""
    text = os.environ.get(LIMIT_VARIABLE, "").strip()
    try:
        gigabytes = float(text) if text else DEFAULT_LIMIT_GB
        if 0 < gigabytes < float("inf"):
            return gigabytes * 1e9
    except ValueError:
        pass
    raise ConfigurationError(f"{LIMIT_VARIABLE} = {text!r}: expected a positive number of GB.")


def unpack(
    archive: str | os.PathLike, directory: str | os.PathLike, left_out: Collection[str] = ()
) -> None:
    """
    Unpacks a `.tar.gz` file to a directory that exists, but for the members named in `left_out`.
    Every member is looked at before a byte of it is written; owners, modes and times aren't
    restored.

    Raises `ConfigurationError` if it isn't a gzip-compressed tar file, or ends too soon; if there
    is in it what a model archive hasn't; if it is larger than the limit, or than the disk.
    """
    check_can_read(archive)
    limit, num_bytes, num_files = size_limit(), 0, 0
    try:
        with _Stream(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            # Where this Python has it. What is refused below is more than that does.
            tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            for member in tar:
                num_bytes += max(member.size, 0)
                num_files += len(PurePosixPath(member.name).parts)
                _check(archive, member)
                if num_files > MAX_FILES:
                    raise _refusal(archive, f"has more than {MAX_FILES:,} files and folders")
                if num_bytes > limit:
                    raise ConfigurationError(
                        f"{archive} unpacks to more than {limit / 1e9:g} GB (up to its member "
                        f"{member.name!r} it declares {num_bytes / 1e9:.1f} GB). If you trust it, "
                        f"raise the limit: export {LIMIT_VARIABLE}=..."
                    )
                if member.name not in left_out:
                    tar.extract(member, directory, set_attrs=False)
            _check_rest(archive, stream)
    except ConfigurationError:
        raise
    except _DAMAGE as error:
        raise _incomplete(archive, error) from None
    except OSError as error:
        raise ConfigurationError(
            f"{archive} can't be unpacked to {directory}: {error.strerror}. If there is no room, "
            "name a folder that has it with the environment variable TMPDIR."
        ) from None
    if not num_files:
        raise ConfigurationError(f"{archive} is an empty .tar.gz file, not a model archive.")


class _Stream(gzip.GzipFile):
    """An archive's bytes, in pieces that memory has room for."""

    def __init__(self, archive: str | os.PathLike) -> None:
        super().__init__(archive, "rb")

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER:
            raise _refusal(self.name, f"has a header of {size:,} bytes")
        return super().read(size)


def _check(archive: str | os.PathLike, member: tarfile.TarInfo) -> None:
    parts = PurePosixPath(member.name).parts
    for is_wrong, reason in (
        ("/" in parts or ".." in parts, "would lie outside the folder it is unpacked to"),
        (len(parts) > MAX_DEPTH, f"lies in more than {MAX_DEPTH} folders"),
        (not (member.isreg() or member.isdir()) or member.issparse(), "is a link or a device"),
        (len(member.pax_headers) > MAX_ATTRIBUTES, f"has more than {MAX_ATTRIBUTES:,} attributes"),
    ):
        if is_wrong:
            raise _refusal(archive, f"has a member {member.name[:200]!r} that {reason}")


def _check_rest(archive: str | os.PathLike, stream: _Stream) -> None:
    """Reads on to the end of the compressed stream, where its checksum is, and is checked."""
    try:
        for _ in range(MAX_REST // MAX_HEADER):
            if not stream.read(MAX_HEADER):
                return
    except gzip.BadGzipFile as error:
        # What somebody appended to a complete file does no harm.
        if "Not a gzipped file" in str(error):
            return
        raise
    raise _refusal(archive, f"goes on for more than {MAX_REST:,} bytes after its last member")


def _refusal(archive: object, reason: str) -> ConfigurationError:
    return ConfigurationError(f"{archive} {reason}, which no model archive does. Don't trust it.")


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
    """The archive that was unpacked to `directory`, if one was."""
    return _unpacked_from.get(os.path.realpath(directory))


@contextmanager
def extracted_archive(
    resolved_archive_file: str | os.PathLike, cleanup: bool = True
) -> Iterator[str]:
    """AllenNLP's function of this name, with `unpack`. If it fails, nothing stays behind."""
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
