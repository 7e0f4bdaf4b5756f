"""
Vectors of sentences on disk, written such that there is never half a file under the final name and
that work cut short goes on where it stood.
"""

import io
import json
import logging
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock, Timeout
from overrides import overrides

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import (
    check_can_write,
    errors_of_disk,
    read_json,
    write_text,
    written_whole,
)
from transformer_elmo.optional import needed
from transformer_elmo.with_allennlp import progress_bar

logger = logging.getLogger(__name__)

# Room for the header of a .npy file, whose shape is known last. NumPy aligns it to 64 bytes.
HEADER_SIZE = 256

FORMATS = {".hdf5": "hdf5", ".h5": "hdf5", ".npy": "npy", ".npz": "npz"}

# Words between two notes of how far the work is.
WORDS_PER_CHECKPOINT = 20_000

_STATE, _PLACES, _VECTORS, _LENGTHS = "state.json", "places.jsonl", "vectors.npy", "lengths.raw"
_LOCK, _DONE = "lock", "done.json"

# Bytes that are read at a time.
_CHUNK = 2**24


@dataclass(frozen=True)
class Place:
    """
    How far the work is: so many sentences and words, and the checksums of all that has been written
    up to there.
    """

    num_sentences: int = 0
    num_words: int = 0
    vectors: int = 0
    lengths: int = 0


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

    `word_shape`: the shape of what one word gets: `[dim]` or `[num_layers, dim]`. `dtype`:
    "float32" or "float16". `settings`: all that the vectors depend on. `force`: replace a file that
    is there, and begin anew what was begun otherwise. `about`: what an HDF5 file says of itself in
    its attributes; with a key `part`, a file beside a `.npy` file says it, `part_path`. Raises
    `ConfigurationError` if the name has another ending; if there is such a file, or one begun with
    other settings, and `force` isn't given; if there is no such folder, or it can't be written to;
    if another process is at work on the same file.
    """

    def __init__(
        self,
        path: Path,
        word_shape: list[int],
        dtype: str,
        settings: dict[str, Any],
        force: bool = False,
        about: dict[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.format = checked_format(path, force)
        self.is_complete = False
        self._about = about or {}
        self._word_shape = word_shape
        self._dtype = np.dtype(dtype)
        self._folder = partial_folder(path)
        self._advice = (
            f"Once it can, repeat the command: it goes on from what {self._folder.name} holds. "
            "(float16 takes half the space; HDF5 and .npz need it twice at the end, .npy does not.)"
        )
        # As it will be when it is read again.
        self._settings = json.loads(json.dumps(settings))
        self._place = self._noted_place = Place()
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
                self._open(force)
            except BaseException:
                self._lock.release()
                if not (self._folder / _STATE).exists():
                    shutil.rmtree(self._folder, ignore_errors=True)
                raise

    @property
    def num_sentences(self) -> int:
        return self._place.num_sentences

    def _open(self, force: bool) -> None:
        noted = self._noted_settings()
        if _is_done(self.path):
            # Cut short between its last two steps.
            if noted in (None, self._settings):
                self._remove_folder()
                self.is_complete = True
                return
            if not force:
                self._remove_folder()
                raise _exists(self.path)
        if noted is not None and noted != self._settings and not force:
            changed = sorted(
                name
                for name in {*noted, *self._settings}
                if noted.get(name) != self._settings.get(name)
            )
            raise ConfigurationError(
                f"{self._folder} holds work begun with other settings ({', '.join(changed)}). "
                "Repeat those to go on, or give --force to begin anew."
            )
        if noted == self._settings:
            self._place = self._last_good_place()
        elif noted is None and _size(self._folder / _STATE):
            logger.warning("%s is damaged: the work begins anew.", self._folder / _STATE)
        # What came after the last note may be half written: it is made again.
        self._vectors = self._reopen(_VECTORS, HEADER_SIZE + self._bytes_up_to(self._place))
        self._lengths = self._reopen(_LENGTHS, 8 * self._place.num_sentences)
        if noted != self._settings:
            self._reopen(_PLACES, 0).close()
            write_text(self._folder / _STATE, json.dumps({"settings": self._settings}))
        (self._folder / _DONE).unlink(missing_ok=True)
        self._noted_place = self._place

    def _noted_settings(self) -> dict[str, Any] | None:
        """`None` if there are none, or they can't be read."""
        try:
            settings = read_json(self._folder / _STATE).get("settings")
        except ConfigurationError:
            return None
        return settings if isinstance(settings, dict) else None

    def _last_good_place(self) -> Place:
        """Reads all that has been made. What follows the first damage is made again."""
        good = Place()
        places = self._noted_places()
        if places:
            try:
                with (
                    open(self._folder / _VECTORS, "rb") as vectors,
                    open(self._folder / _LENGTHS, "rb") as lengths,
                ):
                    vectors.seek(HEADER_SIZE)
                    for place in places:
                        size = self._bytes_up_to(place) - self._bytes_up_to(good)
                        count = place.num_sentences - good.num_sentences
                        if (
                            _checksum(vectors, size, good.vectors) != place.vectors
                            or _checksum(lengths, 8 * count, good.lengths) != place.lengths
                        ):
                            break
                        good = place
            except FileNotFoundError:
                good = Place()
            if good != places[-1]:
                logger.warning(
                    "%s is damaged: the work goes on after %d of %d lines.",
                    self._folder,
                    good.num_sentences,
                    places[-1].num_sentences,
                )
        with open(self._folder / _PLACES, "wb") as file:
            for place in places[: places.index(good) + 1 if good in places else 0]:
                file.write(_line_of(place))
        return good

    def _noted_places(self) -> list[Place]:
        try:
            lines = (self._folder / _PLACES).read_bytes().splitlines()
        except OSError:
            return []
        places: list[Place] = []
        for line in lines:
            try:
                numbers = json.loads(line)
                place = Place(*numbers)
                assert all(type(number) is int for number in numbers)
            except (ValueError, TypeError, AssertionError, RecursionError):
                # Half written, or damaged.
                break
            before = places[-1] if places else Place()
            if place.num_sentences <= before.num_sentences or place.num_words < before.num_words:
                break
            places.append(place)
        return places

    def _bytes_up_to(self, place: Place) -> int:
        return place.num_words * int(np.prod(self._word_shape)) * self._dtype.itemsize

    def _reopen(self, name: str, size: int) -> IO[bytes]:
        path = self._folder / name
        if path.is_dir():
            raise ConfigurationError(f"{path} is a folder. Remove {self._folder} to begin anew.")
        file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115
        # Grows a new file by zeros, for the header.
        file.truncate(size)
        file.seek(size)
        return file

    def append(self, vectors: np.ndarray) -> None:
        """
        The next sentence's vectors.

        `vectors`: shape `(num_words, *word_shape)`.
        """
        with errors_of_disk(self.path, self._advice):
            assert list(vectors.shape[1:]) == self._word_shape
            content = np.ascontiguousarray(vectors, dtype=self._dtype).tobytes()
            length = np.int64(len(vectors)).tobytes()
            self._vectors.write(content)
            self._lengths.write(length)
            self._place = Place(
                self._place.num_sentences + 1,
                self._place.num_words + len(vectors),
                zlib.crc32(content, self._place.vectors),
                zlib.crc32(length, self._place.lengths),
            )
            if self._place.num_words - self._noted_place.num_words >= WORDS_PER_CHECKPOINT:
                self.note()

    def note(self) -> None:
        """Notes how far the work is, once that much is safely on the disk."""
        if self._place == self._noted_place:
            return
        for file in (self._vectors, self._lengths):
            file.flush()
            os.fsync(file.fileno())
        with open(self._folder / _PLACES, "ab") as places:
            places.write(_line_of(self._place))
            places.flush()
            os.fsync(places.fileno())
        self._noted_place = self._place

    def close(self) -> None:
        """Leaves the work, if there is any, for another time."""
        try:
            with errors_of_disk(self.path, self._advice), self._lengths, self._vectors:
                if self.num_sentences:
                    self.note()
            if not self.num_sentences:
                self._remove_folder()
        finally:
            self._lock.release()

    def _remove_folder(self) -> None:
        # That the work is done is forgotten last.
        for name in (_VECTORS, _LENGTHS, _PLACES, _STATE, _LOCK, _DONE):
            (self._folder / name).unlink(missing_ok=True)
        shutil.rmtree(self._folder)
        self._lock.release()

    def finish(self, sentences: Iterable[str] | None = None) -> None:
        """
        Puts the whole file under its name.

        `sentences`: for HDF5: the texts that `sentence_to_index` leads from.
        """
        try:
            with errors_of_disk(self.path, self._advice):
                self._finish(sentences)
                self._remove_folder()
        finally:
            self._lock.release()

    def _finish(self, sentences: Iterable[str] | None) -> None:
        self.note()
        shape = (self._place.num_words, *self._word_shape)
        self._vectors.seek(0)
        self._vectors.write(npy_header(shape, self._dtype))
        self._vectors.flush()
        os.fsync(self._vectors.fileno())
        lengths = np.fromfile(self._folder / _LENGTHS, dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self._vectors.close()
        self._lengths.close()
        if self.format == "npy":
            if "part" in self._about:
                about = {**self._about, **asdict(self._place), "settings": self._settings}
                about.update(word_shape=self._word_shape, dtype=self._dtype.name)
                write_text(part_path(self.path), json.dumps(about, indent=2) + "\n")
            # Two files can't change at once. There are never vectors with other offsets.
            with written_whole(
                offsets_path(self.path), lambda: self.path.unlink(missing_ok=True), self._advice
            ) as file:
                np.save(file, offsets)
            self._is_about_to_be_done(self._folder / _VECTORS)
            os.replace(self._folder / _VECTORS, self.path)
            return
        with written_whole(self.path, advice=self._advice) as file:
            if self.format == "npz":
                self._write_npz(file, offsets)
            else:
                self._write_hdf5(file, offsets, sentences)
            file.flush()
            self._is_about_to_be_done(file.fileno())

    def _is_about_to_be_done(self, file: int | Path) -> None:
        status = os.stat(file)
        write_text(self._folder / _DONE, json.dumps([status.st_ino, status.st_size]))

    def _write_npz(self, file: IO[bytes], offsets: np.ndarray) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            with (
                archive.open("vectors.npy", "w", force_zip64=True) as member,
                open(self._folder / _VECTORS, "rb") as vectors,
            ):
                shutil.copyfileobj(vectors, member, _CHUNK)
            with archive.open("offsets.npy", "w", force_zip64=True) as member:
                np.save(member, offsets)

    def _write_hdf5(
        self, file: IO[bytes], offsets: np.ndarray, sentences: Iterable[str] | None
    ) -> None:
        h5py = _h5py()
        disk = _Disk(file)
        bar = progress_bar(total=len(offsets) - 1, desc=f"writing {self.path.name}")
        # Read and not mapped: pages of a mapped file count as the process's memory.
        with open(self._folder / _VECTORS, "rb") as vectors, h5py.File(disk, "w") as output:
            vectors.seek(HEADER_SIZE)
            for name, value in self._about.items():
                output.attrs[name] = value if isinstance(value, str) else json.dumps(value)
            for number, length in enumerate(np.diff(offsets).tolist()):
                shape = (length, *self._word_shape)
                content = vectors.read(int(np.prod(shape)) * self._dtype.itemsize)
                sentence = np.frombuffer(content, dtype=self._dtype).reshape(shape)
                if sentence.ndim == 3:
                    sentence = sentence.swapaxes(0, 1)
                output.create_dataset(str(number), data=sentence)
                bar.update()
                if disk.error:
                    break
            bar.close()
            if sentences is not None and not disk.error:
                index = {sentence: str(number) for number, sentence in enumerate(sentences)}
                dataset = output.create_dataset(
                    "sentence_to_index", (1,), dtype=h5py.string_dtype("utf-8")
                )
                dataset[0] = json.dumps(index)
        if disk.error:
            raise disk.error


def _h5py() -> Any:
    return needed("h5py", "Writing HDF5", otherwise="Or choose .npz or .npy.")


class _Disk(io.RawIOBase):
    """
    A file for HDF5 to write to, which tells us of errors and not HDF5: its library crashes when it
    closes a file on a disk that is full.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

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
    def truncate(self, size: int | None = None) -> int:
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

    Raises `ConfigurationError` see `VectorsFile`.
    """
    if path.suffix not in FORMATS:
        raise ConfigurationError(
            f"The output's name must end with one of {', '.join(FORMATS)}: got {path}."
        )
    if FORMATS[path.suffix] == "hdf5":
        _h5py()
    if not path.parent.is_dir():
        raise ConfigurationError(f"There is no folder {path.parent} to write {path.name} to.")
    if _is_done(path):
        return FORMATS[path.suffix]
    taken = [path]
    if FORMATS[path.suffix] == "npy" and not (partial_folder(path) / _STATE).exists():
        # Work cut short at its very end has left these; they were checked when the work began.
        taken += [offsets_path(path), part_path(path)]
    for file in taken:
        if file.exists() and not force:
            raise _exists(file)
        if file.is_dir():
            raise ConfigurationError(f"{file} is a folder.")
    check_can_write(path)
    return FORMATS[path.suffix]


def _exists(file: Path) -> ConfigurationError:
    return ConfigurationError(f"{file} exists. Give --force to replace it.")


def _is_done(path: Path) -> bool:
    """Whether a file is the very one that the folder beside it was for."""
    try:
        noted = json.loads((partial_folder(path) / _DONE).read_text(encoding="utf-8"))
        status = path.stat()
    except (OSError, ValueError, RecursionError):
        return False
    return noted == [status.st_ino, status.st_size]


def part_path(path: Path) -> Path:
    """Where it says which part of a text's vectors a `.npy` file holds."""
    return path.with_suffix(".part.json")


def _line_of(place: Place) -> bytes:
    return json.dumps(list(asdict(place).values())).encode() + b"\n"


def _checksum(file: IO[bytes], size: int, before: int) -> int | None:
    """The checksum with so many bytes more; `None` if there aren't so many."""
    while size:
        content = file.read(min(size, _CHUNK))
        if not content:
            return None
        before = zlib.crc32(content, before)
        size -= len(content)
    return before


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
