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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock, Timeout

from transformer_elmo.commands.arguments import check_output
from transformer_elmo.errors import ConfigurationError, needed
from transformer_elmo.files import REPEAT, errors_of_disk, read_json, write_text, written_whole
from transformer_elmo.with_allennlp import progress_bar

logger = logging.getLogger(__name__)

HDF5 = (".hdf5", ".h5")
FORMATS = (*HDF5, ".npy", ".npz")

# Of vectors, until they are written.
SHARD_BYTES = 2**26
# Of an array in memory, beside its numbers; and of a sentence in HDF5.
_ARRAY_BYTES, _HDF5_BYTES = 128, 400

# The folder's files, beside the shards. Version 0.2.0 had others.
_STATE, _LOCK, _VERSION = "state.json", "lock", 2

Piece = tuple[np.ndarray, np.ndarray]
"""
Sentences in a row: the vectors of their words, shape `(num_words, *word_shape)`, and their lengths,
shape `(num_sentences,)`.
"""

OfWord = tuple[list[int], np.dtype]
"""The shape of what one word gets, `[dim]` or `[num_layers, dim]`, and the type of its numbers."""


@contextmanager
def vector_shards(
    path: Path, of_word: OfWord, settings: dict[str, Any], force: bool = False
) -> Iterator["VectorShards"]:
    """
    The work on a file of vectors, in a folder beside it, its name with `.partial` behind. If the
    block is left before `finish`, and entered again with the same settings, it goes on from there.

    `settings`: all that the vectors depend on. `force`: replace a file that is there, and begin
    anew what was begun otherwise. Raises `ConfigurationError` as `check_format`, if the work was
    begun with other settings, and if another process is at it.
    """
    check_format(path, force)
    folder = partial_folder(path)
    with errors_of_disk(path):
        folder.mkdir(exist_ok=True)
        # The system lets go of it when the process ends, however it ends.
        lock = FileLock(folder / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ConfigurationError(
                f"Another process is writing {path} (it works in {folder}). Wait for it, or choose "
                "another name."
            ) from None
    try:
        shards = VectorShards(path, of_word, settings, force)
        try:
            yield shards
        finally:
            shards.write()
    finally:
        if not _shards_in(folder):
            shutil.rmtree(folder, ignore_errors=True)
        lock.release()


class VectorShards:
    """What `vector_shards` gives."""

    def __init__(self, path: Path, of_word: OfWord, settings: dict[str, Any], force: bool) -> None:
        self.is_complete = False
        self.num_sentences = 0
        self._path, self._folder, self._of_word = path, partial_folder(path), of_word
        self._waiting: list[np.ndarray] = []
        self._num_bytes = 0
        # As it will be when it is read again.
        self._settings = json.loads(json.dumps(settings))
        noted = _noted(path).get("settings")
        goes_on = noted == self._settings
        if _is_done(path):
            if goes_on:
                # Cut short between its last two steps.
                shutil.rmtree(self._folder)
                self.is_complete = True
                return
            check_output(path, force)
        elif noted is None:
            if (self._folder / _STATE).exists():
                logger.warning(
                    "%s is damaged, or of another version: the work begins anew.", self._folder
                )
        elif not (goes_on or force):
            names = sorted({*noted, *self._settings})
            changed = [name for name in names if noted.get(name) != self._settings.get(name)]
            raise ConfigurationError(
                f"{self._folder} holds work begun with other settings ({', '.join(changed)}). "
                "Repeat those to go on, or give --force to begin anew."
            )
        if not goes_on:
            for file in self._folder.iterdir():
                if file.name != _LOCK:
                    file.unlink()
            self._note()
        self._check_shards()

    def _note(self, **more: Any) -> None:
        state = {"version": _VERSION, "settings": self._settings, **more}
        write_text(self._folder / _STATE, json.dumps(state))

    def _check_shards(self) -> None:
        """Reads all that has been made. What follows the first damage is made again."""
        word_shape, dtype = self._of_word
        shards = _shards_in(self._folder)
        for place, shard in enumerate(shards):
            try:
                # Zip files have a checksum of each array.
                vectors, lengths = _read(shard)
                whole = int(shard.stem) == self.num_sentences and vectors.dtype == dtype
                whole = whole and vectors.shape == (lengths.sum(), *word_shape)
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
        """The next sentence's vectors, shape `(num_words, *word_shape)`."""
        self._waiting.append(np.ascontiguousarray(vectors, dtype=self._of_word[1]))
        self._num_bytes += _ARRAY_BYTES + self._waiting[-1].nbytes
        self.num_sentences += 1
        if self._num_bytes >= SHARD_BYTES:
            self.write()

    def write(self) -> None:
        """Writes the sentences that aren't in a shard yet to one."""
        if not self._waiting:
            return
        first = self.num_sentences - len(self._waiting)
        shard = self._folder / f"{first:012}.npz"
        with written_whole(shard, advice=_advice(self._folder)) as file:
            lengths = np.array(list(map(len, self._waiting)), dtype=np.int64)
            np.savez(file, vectors=np.concatenate(self._waiting), lengths=lengths)
        self._waiting, self._num_bytes = [], 0

    def finish(self, about: dict[str, Any], sentences: Iterable[str] | None = None) -> None:
        """Joins the shards: see `write_vectors`."""
        self.write()
        shards = _shards_in(self._folder)
        write_vectors(
            self._path,
            map(_read, shards),
            np.concatenate([np.zeros(0, np.int64), *(_read(shard)[1] for shard in shards)]),
            self._of_word,
            {**about, "settings": self._settings},
            sentences,
            self._note,
        )
        shutil.rmtree(self._folder, ignore_errors=True)


def _shards_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.npz"))


def _read(shard: Path) -> Piece:
    with np.load(shard) as arrays:
        return arrays["vectors"], arrays["lengths"]


def write_vectors(
    path: Path,
    pieces: Iterable[Piece],
    lengths: np.ndarray,
    of_word: OfWord,
    about: dict[str, Any],
    sentences: Iterable[str] | None = None,
    note: Callable[..., None] | None = None,
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

    `lengths`: of all sentences. `about`: what an HDF5 file says of itself in its attributes, but
    for `settings`; with a key `part`, a file beside a `.npy` file says it, `part_path`.
    `sentences`: for HDF5: the texts that `sentence_to_index` leads from. `note`: of shards: keeps
    which file has them all.
    """
    word_shape, dtype = of_word
    shape = (int(lengths.sum()), *word_shape)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    checksum = 0

    def before() -> None:
        if path.suffix != ".npy":
            return
        if "part" in about:
            sums = {"vectors": checksum, "lengths": zlib.crc32(lengths.tobytes())}
            sizes = {"num_sentences": len(lengths), "num_words": shape[0]}
            said = {**about, **sizes, **sums, "word_shape": word_shape, "dtype": dtype.name}
            write_text(part_path(path), json.dumps(said, indent=2) + "\n")
        # Two files can't change at once. There are never vectors with other offsets.
        with written_whole(offsets_path(path), lambda: path.unlink(missing_ok=True)) as beside:
            np.save(beside, offsets)

    advice = _advice(partial_folder(path)) if note else REPEAT
    with written_whole(path, before, advice) as file:
        if path.suffix in HDF5:
            num_bytes = int(np.prod(shape)) * dtype.itemsize + len(lengths) * _HDF5_BYTES
            _write_hdf5(file, pieces, len(lengths), num_bytes, about, sentences)
        elif path.suffix == ".npy":
            checksum = _write_array(file, pieces, shape, dtype)
        else:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                with archive.open("vectors.npy", "w", force_zip64=True) as member:
                    _write_array(member, pieces, shape, dtype)
                with archive.open("offsets.npy", "w", force_zip64=True) as member:
                    np.save(member, offsets)
        if note:
            file.flush()
            note(file=_identity(os.fstat(file.fileno())))


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
    if hasattr(os, "posix_fallocate"):
        # HDF5's library ends the process when it closes a file on a disk that is full.
        os.posix_fallocate(file.fileno(), 0, num_bytes + len(index or ""))
        file.truncate(0)
    bar = progress_bar(total=num_sentences, desc="writing")
    with _h5py().File(file, "w") as output:
        for name, value in about.items():
            if name != "settings":
                output.attrs[name] = value if isinstance(value, str) else json.dumps(value)
        number = 0
        for words, lengths in pieces:
            for vectors in np.split(words, np.cumsum(lengths)[:-1]):
                data = vectors.swapaxes(0, 1) if vectors.ndim == 3 else vectors
                output.create_dataset(str(number), data=data)
                number += 1
                bar.update()
        bar.close()
        if index is not None:
            strings = _h5py().string_dtype("utf-8")
            output.create_dataset("sentence_to_index", data=[index], dtype=strings)


def _h5py() -> Any:
    return needed("h5py", "Writing HDF5", otherwise="Or choose .npz or .npy.")


def check_format(path: Path, force: bool) -> None:
    """
    Raises `ConfigurationError` if the name of a file to be written has another ending; if there is
    such a file and `force` isn't given; if it can't be written there.
    """
    if path.suffix not in FORMATS:
        raise ConfigurationError(
            f"The output's name must end with one of {', '.join(FORMATS)}: got {path}."
        )
    if path.suffix in HDF5:
        _h5py()
    if _is_done(path):
        return
    check_output(path, force)
    # Work cut short at its very end has left these; they were checked when the work began.
    if path.suffix == ".npy" and not (partial_folder(path) / _STATE).exists():
        for beside in (offsets_path(path), part_path(path)):
            check_output(beside, force)


def _noted(path: Path) -> dict[str, Any]:
    """What the work on a file has noted; nothing of none, or of another version's."""
    try:
        state = read_json(partial_folder(path) / _STATE)
    except ConfigurationError:
        return {}
    is_ours = state.get("version") == _VERSION and isinstance(state.get("settings"), dict)
    return state if is_ours else {}


def _is_done(path: Path) -> bool:
    """Whether a file is the very one that the folder beside it was for."""
    return path.exists() and _noted(path).get("file") == _identity(path.stat())


def _identity(status: os.stat_result) -> list[int]:
    return [status.st_ino, status.st_size]


def _advice(folder: Path) -> str:
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
