"""
Vectors of sentences on disk, written such that there is never half a file under the final name and
that work cut short goes on where it stood.
"""

import io
import itertools
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import IO, Any, Callable, Dict, Iterable, List, Optional

import numpy as np
from filelock import FileLock, Timeout
from overrides import overrides

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import errors_of_disk, written_whole

# Room for the header of a .npy file, whose shape is known last. NumPy aligns it to 64 bytes.
HEADER_SIZE = 256

FORMATS = {".hdf5": "hdf5", ".h5": "hdf5", ".npy": "npy", ".npz": "npz"}

# Words between two notes of how far the work is.
WORDS_PER_CHECKPOINT = 20_000

_STATE, _VECTORS, _LENGTHS, _LOCK = "state.json", "vectors.npy", "lengths.raw", "lock"


class VectorsFile:
    """
    A file of vectors in the making.

    Until it is finished, there is a folder beside it, its name with `.partial` behind, with all
    that has been made, and nothing (or what was there before) under its own name. If the work is
    cut short and begun again with the same settings, it goes on from there.

    # Formats, by the name's ending

    - `.hdf5`, `.h5`: what AllenNLP 0.9's `elmo` command and bilm-tf wrote: a dataset for each
      sentence, its number as the name, shape `(num_words, dim)`, or `(num_layers, num_words, dim)`
      for all layers; and `sentence_to_index`, a JSON object in a dataset of shape `(1,)`.
    - `.npz`: `vectors`, those of all sentences one after the other, shape `(num_words, dim)` or
      `(num_words, num_layers, dim)`; and `offsets`, shape `(num_sentences + 1,)`: sentence `i` is
      `vectors[offsets[i]:offsets[i + 1]]`.
    - `.npy`: `vectors` alone, for `numpy.load(..., mmap_mode="r")`. `offsets` go to a file of
      their own, with `.offsets.npy` in place of `.npy`.

    # Parameters

    path : `Path`, required.
    word_shape : `List[int]`, required.
        The shape of what one word gets: `[dim]` or `[num_layers, dim]`.
    dtype : `str`, required.
        "float32" or "float16".
    settings : `Dict[str, Any]`, required.
        All that the vectors depend on.
    force : `bool`, optional (default = `False`)
        Replace a file that is there, and begin anew what was begun otherwise.

    # Raises

    `ConfigurationError`
        If the name has another ending; if there is such a file, or one begun with other settings,
        and `force` isn't given; if there is no such folder, or it can't be written to; if another
        process is at work on the same file.
    """

    def __init__(
        self,
        path: Path,
        word_shape: List[int],
        dtype: str,
        settings: Dict[str, Any],
        force: bool = False,
    ) -> None:
        self.path = path
        self.format = checked_format(path, force)
        self._word_shape = word_shape
        self._dtype = np.dtype(dtype)
        self._folder = partial_folder(path)
        self._advice = (
            f"Once it can, repeat the command: it goes on from what {self._folder.name} holds. "
            "(float16 takes half the space; HDF5 and .npz need it twice at the end, .npy does not.)"
        )
        # As it will be when it is read again.
        self._settings = json.loads(json.dumps(settings))
        self.num_sentences = 0
        self._num_words = 0
        self._words_noted = 0
        with errors_of_disk(self.path, self._advice):
            self._folder.mkdir(exist_ok=True)
            # The system lets go of it when the process ends, however it ends.
            self._lock = FileLock(self._folder / _LOCK)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise ConfigurationError(
                    f"Another process is writing {path} (it works in {self._folder}). Wait for it, "
                    "or choose another name."
                ) from None
            try:
                if force and not self._can_go_on():
                    for name in (_STATE, _VECTORS, _LENGTHS):
                        (self._folder / name).unlink(missing_ok=True)
                self._open()
            except BaseException:
                self._lock.release()
                raise

    def _can_go_on(self) -> bool:
        state = self._noted()
        return state.get("settings") == self._settings and all(
            _size(self._folder / name) >= size for name, size in self._sizes(state).items()
        )

    def _noted(self) -> Dict[str, Any]:
        try:
            return json.loads((self._folder / _STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def _sizes(self, state: Dict[str, Any]) -> Dict[str, int]:
        """How long the files are at least, if so much has been made."""
        return {
            _VECTORS: HEADER_SIZE + state["num_words"] * self._bytes_per_word(),
            _LENGTHS: 8 * state["num_sentences"],
        }

    def _open(self) -> None:
        state = self._noted()
        if state:
            if state["settings"] != self._settings:
                changed = sorted(
                    name
                    for name in {*state["settings"], *self._settings}
                    if state["settings"].get(name) != self._settings.get(name)
                )
                raise ConfigurationError(
                    f"{self._folder} holds work begun with other settings ({', '.join(changed)}). "
                    "Repeat those to go on, or give --force to begin anew."
                )
            self.num_sentences, self._num_words = state["num_sentences"], state["num_words"]
        # What came after the last note may be half written: it is made again.
        sizes = self._sizes({"num_words": self._num_words, "num_sentences": self.num_sentences})
        self._vectors = self._reopen(_VECTORS, sizes[_VECTORS])
        self._lengths = self._reopen(_LENGTHS, sizes[_LENGTHS])
        self._words_noted = self._num_words

    def _bytes_per_word(self) -> int:
        return int(np.prod(self._word_shape)) * self._dtype.itemsize

    def _reopen(self, name: str, size: int) -> IO[bytes]:
        path = self._folder / name
        if self.num_sentences and _size(path) < size:
            raise ConfigurationError(f"{path} is shorter than it was. Give --force to begin anew.")
        file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115
        # Grows a new file by zeros, for the header.
        file.truncate(size)
        file.seek(size)
        return file

    def append(self, vectors: np.ndarray) -> None:
        """
        The next sentence's vectors.

        # Parameters

        vectors : `np.ndarray`
            Shape `(num_words, *word_shape)`.
        """
        with errors_of_disk(self.path, self._advice):
            assert list(vectors.shape[1:]) == self._word_shape
            self._vectors.write(np.ascontiguousarray(vectors, dtype=self._dtype).tobytes())
            self._lengths.write(np.int64(len(vectors)).tobytes())
            self.num_sentences += 1
            self._num_words += len(vectors)
            if self._num_words - self._words_noted >= WORDS_PER_CHECKPOINT:
                self.note()

    def note(self) -> None:
        """Notes how far the work is, once that much is safely on the disk."""
        for file in (self._vectors, self._lengths):
            file.flush()
            os.fsync(file.fileno())
        state = {
            "settings": self._settings,
            "num_sentences": self.num_sentences,
            "num_words": self._num_words,
        }
        with written_whole(self._folder / _STATE, advice=self._advice) as file:
            file.write(json.dumps(state).encode())
        self._words_noted = self._num_words

    def close(self) -> None:
        """Leaves the work, if there is any, for another time."""
        try:
            with errors_of_disk(self.path, self._advice), self._lengths, self._vectors:
                if self.num_sentences:
                    self.note()
            if not self.num_sentences:
                shutil.rmtree(self._folder)
        finally:
            self._lock.release()

    def finish(self, sentences: Optional[Iterable[str]] = None) -> None:
        """
        Puts the whole file under its name.

        # Parameters

        sentences : `Iterable[str]`, optional (default = `None`)
            For HDF5: the texts that `sentence_to_index` leads from.
        """
        try:
            with errors_of_disk(self.path, self._advice):
                self._finish(sentences)
                shutil.rmtree(self._folder)
        finally:
            self._lock.release()

    def _finish(self, sentences: Optional[Iterable[str]]) -> None:
        self.note()
        shape = (self._num_words, *self._word_shape)
        self._vectors.seek(0)
        self._vectors.write(npy_header(shape, self._dtype))
        self._vectors.flush()
        os.fsync(self._vectors.fileno())
        lengths = np.fromfile(self._folder / _LENGTHS, dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self._vectors.close()
        self._lengths.close()
        if self.format == "npy":
            # Two files can't change at once. There are never vectors with other offsets.
            with written_whole(
                offsets_path(self.path), lambda: self.path.unlink(missing_ok=True), self._advice
            ) as file:
                np.save(file, offsets)
            os.replace(self._folder / _VECTORS, self.path)
        elif self.format == "npz":
            with written_whole(self.path, advice=self._advice) as file:
                self._write_npz(file, offsets)
        else:
            with written_whole(self.path, advice=self._advice) as file:
                self._write_hdf5(file, offsets, sentences)

    def _write_npz(self, file: IO[bytes], offsets: np.ndarray) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            with (
                archive.open("vectors.npy", "w", force_zip64=True) as member,
                open(self._folder / _VECTORS, "rb") as vectors,
            ):
                shutil.copyfileobj(vectors, member, 2**24)
            with archive.open("offsets.npy", "w", force_zip64=True) as member:
                np.save(member, offsets)

    def _write_hdf5(
        self, file: IO[bytes], offsets: np.ndarray, sentences: Optional[Iterable[str]]
    ) -> None:
        if self._num_words:
            vectors = np.load(self._folder / _VECTORS, mmap_mode="r")
        else:
            vectors = np.zeros((0, *self._word_shape), dtype=self._dtype)
        h5py = _h5py()
        disk = _Disk(file)
        with h5py.File(disk, "w") as output:
            for number, (begin, end) in enumerate(itertools.pairwise(offsets)):
                sentence = np.asarray(vectors[begin:end])
                if sentence.ndim == 3:
                    sentence = sentence.swapaxes(0, 1)
                output.create_dataset(str(number), data=sentence)
                if disk.error:
                    break
            if sentences is not None and not disk.error:
                index = {sentence: str(number) for number, sentence in enumerate(sentences)}
                dataset = output.create_dataset(
                    "sentence_to_index", (1,), dtype=h5py.string_dtype("utf-8")
                )
                dataset[0] = json.dumps(index)
        if disk.error:
            raise disk.error


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise ConfigurationError(
            "HDF5 files are written by h5py, which isn't installed: pip install h5py. Or choose "
            ".npz or .npy."
        ) from None
    return h5py


class _Disk(io.RawIOBase):
    """
    A file for HDF5 to write to, which tells us of errors and not HDF5: its library crashes when it
    closes a file on a disk that is full.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: Optional[OSError] = None

    @overrides
    def readable(self) -> bool:
        return True

    @overrides(check_signature=False)
    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    @overrides
    def seekable(self) -> bool:
        return True

    @overrides(check_signature=False)
    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(position, whence)

    @overrides
    def tell(self) -> int:
        return self._file.tell()

    @overrides
    def writable(self) -> bool:
        return True

    @overrides(check_signature=False)
    def write(self, data: Any) -> int:
        self._try(lambda: self._file.write(data))
        return len(data)

    @overrides
    def truncate(self, size: Optional[int] = None) -> int:
        self._try(lambda: self._file.truncate(size))
        return self._file.tell() if size is None else size

    @overrides
    def flush(self) -> None:
        self._try(self._file.flush)

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            if self.error is None:
                action()
        except OSError as error:
            self.error = error


def checked_format(path: Path, force: bool) -> str:
    """
    The format of a file to be written, by its name, if it may be written.

    # Raises

    `ConfigurationError`
        See `VectorsFile`.
    """
    if path.suffix not in FORMATS:
        raise ConfigurationError(
            f"The output's name must end with one of {', '.join(FORMATS)}: got {path}."
        )
    if FORMATS[path.suffix] == "hdf5":
        _h5py()
    if not path.parent.is_dir():
        raise ConfigurationError(f"There is no folder {path.parent} to write {path.name} to.")
    taken = [path]
    if FORMATS[path.suffix] == "npy" and not (partial_folder(path) / _STATE).exists():
        # Work cut short at its very end has left this one; it was checked when the work began.
        taken.append(offsets_path(path))
    for file in taken:
        if file.exists() and not force:
            raise ConfigurationError(f"{file} exists. Give --force to replace it.")
        if file.is_dir():
            raise ConfigurationError(f"{file} is a folder.")
    return FORMATS[path.suffix]


def offsets_path(path: Path) -> Path:
    """Where the offsets of a `.npy` file go."""
    return path.with_suffix(".offsets.npy")


def partial_folder(path: Path) -> Path:
    """Where the work on a file is kept until it is finished."""
    return path.with_name(path.name + ".partial")


def npy_header(shape: Iterable[int], dtype: np.dtype) -> bytes:
    """
    The beginning of a `.npy` file of version 1.0, always `HEADER_SIZE` bytes. Source: the format's
    description in `numpy.lib.format`.
    """
    description = {"descr": dtype.str, "fortran_order": False, "shape": tuple(map(int, shape))}
    magic = b"\x93NUMPY\x01\x00"
    size = HEADER_SIZE - len(magic) - 2
    return magic + size.to_bytes(2, "little") + f"{description!s:<{size - 1}}\n".encode("ascii")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
