"""The files of a corpus, as they were when it was opened."""

import hashlib
import os
from functools import cached_property
from pathlib import Path
from typing import List, Tuple

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import errors_of_reading

# Of a larger file only its beginning, middle and end are read to tell whether it is the same.
_SAMPLE = 2**16


class Shards:
    """
    # Parameters

    paths : `List[Path]`

    # Raises

    `ConfigurationError`
        If a file can't be looked at.
    """

    def __init__(self, paths: List[Path]) -> None:
        self.paths = paths
        self._seen = {path: _look_at(path) for path in paths}
        self.num_bytes = sum(self._seen[path][0] for path in paths)

    @cached_property
    def description(self) -> str:
        """Their number, and what their names and sizes come to."""
        names = "\n".join(f"{path.name} {self._seen[path][0]}" for path in self.paths)
        digest = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
        return f"{len(self.paths)} files of {self.num_bytes} bytes (names and sizes: {digest[:16]})"

    @cached_property
    def content(self) -> str:
        """A hash of what is in them; of large files, of a sample."""
        digest = hashlib.sha256()
        for path in self.paths:
            with errors_of_reading(path), open(path, "rb") as file:
                size = self._seen[path][0]
                for begin in (0, size // 2, max(0, size - _SAMPLE)):
                    file.seek(begin)
                    digest.update(file.read(_SAMPLE))
        return digest.hexdigest()[:16]

    def check(self, path: Path) -> None:
        """
        # Raises

        `ConfigurationError`
            If a file is gone or may not be what it was: an epoch of two different corpora would
            look like any other.
        """
        size, time = _look_at(path)
        if size != self._seen[path][0]:
            raise ConfigurationError(
                f"{path} has changed since the run opened it: it has {size:,} bytes, and had "
                f"{self._seen[path][0]:,}. Restore it and go on with --recover, or begin a new run."
            )
        if time != self._seen[path][1]:
            raise ConfigurationError(
                f"{path} was written or touched after the run opened it, so that its text may be "
                "another. If it isn't, go on with --recover. Else restore it first, or begin a "
                "new run."
            )


def _look_at(path: Path) -> Tuple[int, int]:
    with errors_of_reading(path):
        status = os.stat(path)
    return status.st_size, status.st_mtime_ns
