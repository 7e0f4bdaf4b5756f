"""
Vectors of sentences on disk. They are made in shards, a folder of files that are each written
whole, so that work cut short goes on where it stood; and joined in one file, of which there is
never half under its name.
"""

import json
import logging
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock, Timeout

from transformer_elmo.commands.arguments import check_output
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import errors_of_disk, read_json, write_text, written_whole
from transformer_elmo.optional import needed
from transformer_elmo.with_allennlp import progress_bar

logger = logging.getLogger(__name__)

FORMATS = {".hdf5": "hdf5", ".h5": "hdf5", ".npy": "npy", ".npz": "npz"}

# Of vectors, until they are written.
SHARD_BYTES = 2**26
# Of an array in memory, beside its numbers.
_ARRAY_BYTES = 128

_STATE, _LOCK, _DONE = "state.json", "lock", "done.json"

# Of the folder's files. Version 0.2.0 had others.
_VERSION = 2

# Bytes that HDF5 needs beside the vectors of a sentence.
_HDF5_BYTES = 400

Piece = tuple[np.ndarray, np.ndarray]
"""
Sentences in a row: the vectors of their words, shape `(num_words, *word_shape)`, and their lengths,
shape `(num_sentences,)`.
"""


class VectorShards:
    """
    The work on a file of vectors, in a folder beside it, its name with `.partial` behind. If it is
    cut short and begun again with the same settings, it goes on from there.

    `word_shape`: the shape of what one word gets: `[dim]` or `[num_layers, dim]`. `dtype`:
    "float32" or "float16". `settings`: all that the vectors depend on. `force`: replace a file that
    is there, and begin anew what was begun otherwise. Raises `ConfigurationError` as
    `checked_format`, if the work was begun with other settings, and if another process is at it.
    """

    def __init__(
        self,
        path: Path,
        word_shape: list[int],
        dtype: str,
        settings: dict[str, Any],
        force: bool = False,
    ) -> None:
        checked_format(path, force)
        self.path = path
        self.is_complete = False
        self.num_sentences = 0
        self._word_shape, self._dtype = word_shape, np.dtype(dtype)
        self._waiting: list[np.ndarray] = []
        self._num_bytes = 0
        self._folder = partial_folder(path)
        self._advice = _advice(self._folder)
        # As it will be when it is read again.
        self._settings = json.loads(json.dumps(settings))
        with errors_of_disk(path, self._advice):
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
                check_output(self.path, force)
        if noted is not None and noted != self._settings and not force:
            changed = [
                name
                for name in sorted({*noted, *self._settings})
                if noted.get(name) != self._settings.get(name)
            ]
            raise ConfigurationError(
                f"{self._folder} holds work begun with other settings ({', '.join(changed)}). "
                "Repeat those to go on, or give --force to begin anew."
            )
        if noted != self._settings:
            for file in self._folder.iterdir():
                if file.name != _LOCK:
                    file.unlink()
            state = {"version": _VERSION, "settings": self._settings}
            write_text(self._folder / _STATE, json.dumps(state))
        (self._folder / _DONE).unlink(missing_ok=True)
        self._check_shards()

    def _noted_settings(self) -> dict[str, Any] | None:
        """`None` if there are none, or they can't be read."""
        path = self._folder / _STATE
        if not path.exists():
            return None
        try:
            state = read_json(path)
        except ConfigurationError:
            state = {}
        settings = state.get("settings")
        if state.get("version") == _VERSION and isinstance(settings, dict):
            return settings
        logger.warning("%s is damaged, or of another version: the work begins anew.", self._folder)
        return None

    def _shards(self) -> list[Path]:
        return sorted(self._folder.glob("[0-9]*.npz"))

    def _check_shards(self) -> None:
        """Reads all that has been made. What follows the first damage is made again."""
        shards = self._shards()
        for place, shard in enumerate(shards):
            try:
                # Zip files have a checksum of each array.
                vectors, lengths = _read(shard)
                whole = int(shard.stem) == self.num_sentences and vectors.dtype == self._dtype
                whole = whole and vectors.shape == (lengths.sum(), *self._word_shape)
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                whole = False
            if not whole:
                logger.warning(
                    "%s is damaged: the work goes on after %d lines.", shard, self.num_sentences
                )
                for left in shards[place:]:
                    left.unlink()
                return
            self.num_sentences += len(lengths)

    def append(self, vectors: np.ndarray) -> None:
        """
        The next sentence's vectors.

        `vectors`: shape `(num_words, *word_shape)`.
        """
        self._waiting.append(np.ascontiguousarray(vectors, dtype=self._dtype))
        self._num_bytes += _ARRAY_BYTES + self._waiting[-1].nbytes
        self.num_sentences += 1
        if self._num_bytes >= SHARD_BYTES:
            self._write_shard()

    def _write_shard(self) -> None:
        if not self._waiting:
            return
        first = self.num_sentences - len(self._waiting)
        with written_whole(self._folder / f"{first:012}.npz", advice=self._advice) as file:
            lengths = np.array(list(map(len, self._waiting)), dtype=np.int64)
            np.savez(file, vectors=np.concatenate(self._waiting), lengths=lengths)
        self._waiting, self._num_bytes = [], 0

    def close(self) -> None:
        """Leaves the work, if there is any, for another time."""
        try:
            self._write_shard()
            if not self.num_sentences:
                self._remove_folder()
        finally:
            self._lock.release()

    def _remove_folder(self) -> None:
        # That the work is done is forgotten last.
        for file in self._folder.iterdir():
            if file.name != _DONE:
                file.unlink()
        shutil.rmtree(self._folder)
        self._lock.release()

    def finish(self, about: dict[str, Any], sentences: Iterable[str] | None = None) -> None:
        """Joins the shards: see `write_vectors`."""
        try:
            self._write_shard()
            shards = self._shards()
            lengths = [np.zeros(0, np.int64), *(_read(shard, "lengths")[0] for shard in shards)]
            write_vectors(
                self.path,
                map(_read, shards),
                np.concatenate(lengths),
                (self._word_shape, self._dtype),
                {**about, "settings": self._settings},
                sentences,
                self._folder,
            )
            with errors_of_disk(self.path, self._advice):
                self._remove_folder()
        finally:
            self._lock.release()


def _read(shard: Path, *names: str) -> Any:
    with np.load(shard) as arrays:
        return [arrays[name] for name in names or ("vectors", "lengths")]


def write_vectors(
    path: Path,
    pieces: Iterable[Piece],
    lengths: np.ndarray,
    of_word: tuple[list[int], np.dtype],
    about: dict[str, Any],
    sentences: Iterable[str] | None = None,
    folder: Path | None = None,
) -> None:
    """
    One file of all vectors, whole or not at all.

    # Formats, by the name's ending

    - `.hdf5`, `.h5`: what AllenNLP 0.9's `elmo` command and bilm-tf wrote: a dataset for each
      sentence, its number as the name, shape `(num_words, dim)`, or `(num_layers, num_words, dim)`
      for all layers; and `sentence_to_index`, a JSON object in a dataset of shape `(1,)`.
    - `.npz`: `vectors`, those of all sentences one after the other, shape `(num_words, dim)` or
      `(num_words, num_layers, dim)`; and `offsets`, shape `(num_sentences + 1,)`: sentence `i` is
      `vectors[offsets[i]:offsets[i + 1]]`.
    - `.npy`: `vectors` alone, for `numpy.load(..., mmap_mode="r")`. `offsets` go to a file of
      their own, with `.offsets.npy` in place of `.npy`.

    `lengths`: of all sentences. `of_word`: the shape of what one word gets, and its type. `about`:
    what an HDF5 file says of itself in its attributes, but for `settings`; with a key `part`, a
    file beside a `.npy` file says it, `part_path`. `sentences`: for HDF5: the texts that
    `sentence_to_index` leads from. `folder`: of the shards that are joined, where it is noted that
    this is done.
    """
    word_shape, dtype = of_word
    shape = (int(lengths.sum()), *word_shape)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    kind = FORMATS[path.suffix]
    checksum = 0

    def before() -> None:
        if kind == "npy":
            if "part" in about:
                sums = {"vectors": checksum, "lengths": zlib.crc32(lengths.tobytes())}
                sizes = {"num_sentences": len(lengths), "num_words": shape[0]}
                said = {**about, **sizes, **sums, "word_shape": word_shape, "dtype": dtype.name}
                write_text(part_path(path), json.dumps(said, indent=2) + "\n")
            # Two files can't change at once. There are never vectors with other offsets.
            with written_whole(offsets_path(path), lambda: path.unlink(missing_ok=True)) as beside:
                np.save(beside, offsets)
        if folder is not None:
            write_text(folder / _DONE, json.dumps([status.st_ino, status.st_size]))

    with written_whole(path, before, _advice(folder)) as file:
        if kind == "hdf5":
            num_bytes = int(np.prod(shape)) * dtype.itemsize + len(lengths) * _HDF5_BYTES
            _write_hdf5(file, pieces, len(lengths), num_bytes, about, sentences)
        elif kind == "npy":
            checksum = _write_array(file, pieces, shape, dtype)
        else:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                with archive.open("vectors.npy", "w", force_zip64=True) as member:
                    _write_array(member, pieces, shape, dtype)
                with archive.open("offsets.npy", "w", force_zip64=True) as member:
                    np.save(member, offsets)
        file.flush()
        status = os.fstat(file.fileno())


def _write_array(
    file: IO[bytes], pieces: Iterable[Piece], shape: tuple[int, ...], dtype: np.dtype
) -> int:
    """As `numpy.save`, piece by piece. Returns a checksum of what comes after the header."""
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    checksum = 0
    for vectors, _ in pieces:
        data = np.ascontiguousarray(vectors).tobytes()
        checksum = zlib.crc32(data, checksum)
        file.write(data)
    return checksum


def _make_room(file: IO[bytes], num_bytes: int) -> None:
    """
    Raises `OSError` if there isn't so much of it: HDF5's library ends the process when it closes a
    file on a disk that is full.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, num_bytes)
        file.truncate(0)


def _write_hdf5(
    file: IO[bytes],
    pieces: Iterable[Piece],
    num_sentences: int,
    num_bytes: int,
    about: dict[str, Any],
    sentences: Iterable[str] | None,
) -> None:
    index = None
    if sentences is not None:
        index = json.dumps({sentence: str(number) for number, sentence in enumerate(sentences)})
    _make_room(file, num_bytes + len(index or ""))
    bar = progress_bar(total=num_sentences, desc="writing")
    with _h5py().File(file, "w") as output:
        for name, value in about.items():
            if name != "settings":
                output.attrs[name] = value if isinstance(value, str) else json.dumps(value)
        for number, sentence in enumerate(_sentences(pieces)):
            data = sentence.swapaxes(0, 1) if sentence.ndim == 3 else sentence
            output.create_dataset(str(number), data=data)
            bar.update()
        bar.close()
        if index is not None:
            strings = _h5py().string_dtype("utf-8")
            output.create_dataset("sentence_to_index", data=[index], dtype=strings)


def _sentences(pieces: Iterable[Piece]) -> Iterator[np.ndarray]:
    for vectors, lengths in pieces:
        ends = np.cumsum(lengths)
        for begin, end in zip((ends - lengths).tolist(), ends.tolist()):
            yield vectors[begin:end]


def _h5py() -> Any:
    return needed("h5py", "Writing HDF5", otherwise="Or choose .npz or .npy.")


def checked_format(path: Path, force: bool) -> str:
    """
    The format of a file to be written, by its name.

    Raises `ConfigurationError` if the name has another ending; if there is such a file and `force`
    isn't given; if there is no such folder, or it can't be written to.
    """
    if path.suffix not in FORMATS:
        raise ConfigurationError(
            f"The output's name must end with one of {', '.join(FORMATS)}: got {path}."
        )
    kind = FORMATS[path.suffix]
    if kind == "hdf5":
        _h5py()
    if not path.parent.is_dir():
        raise ConfigurationError(f"There is no folder {path.parent} to write {path.name} to.")
    if _is_done(path):
        return kind
    check_output(path, force)
    # Work cut short at its very end has left these; they were checked when the work began.
    if kind == "npy" and not (partial_folder(path) / _STATE).exists():
        for beside in (offsets_path(path), part_path(path)):
            check_output(beside, force)
    return kind


def _is_done(path: Path) -> bool:
    """Whether a file is the very one that the folder beside it was for."""
    try:
        noted = json.loads((partial_folder(path) / _DONE).read_text(encoding="utf-8"))
        status = path.stat()
    except (OSError, ValueError):
        return False
    return noted == [status.st_ino, status.st_size]


def _advice(folder: Path | None) -> str:
    if folder is None:
        return "Once it can, repeat the command."
    return (
        f"Once it can, repeat the command: it goes on from what {folder.name} holds. (At the end, "
        "the vectors need their space twice; float16 takes half.)"
    )


def part_path(path: Path) -> Path:
    """Where it says which part of a text's vectors a `.npy` file holds."""
    return path.with_suffix(".part.json")


def offsets_path(path: Path) -> Path:
    """Where the offsets of a `.npy` file go."""
    return path.with_suffix(".offsets.npy")


def partial_folder(path: Path) -> Path:
    """Where the work on a file is kept until it is finished."""
    return path.with_name(path.name + ".partial")
