"""The parts of a text's vectors, in one file: `transformer-elmo merge`."""

import argparse
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from transformer_elmo.commands.arguments import add, check_output
from transformer_elmo.commands.embed import texts_of
from transformer_elmo.commands.perplexity import added_up
from transformer_elmo.commands.vector_shards import (
    HDF5,
    Piece,
    check_format,
    offsets_path,
    part_path,
    write_vectors,
)
from transformer_elmo.errors import ConfigurationError, first_line
from transformer_elmo.files import check_can_read, json_text, read_json, write_text
from transformer_elmo.text.corpus import count_lines

DESCRIPTION = """
Join what transformer-elmo embed --part K/N has written, or add up what perplexity --part K/N has.
All N parts must be there, of the same text and model.
"""

# Sentences that are read together.
_AT_ONCE = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    endings = "ends with .hdf5 (or .h5), .npz or .npy; for perplexity with .json"
    parser.add_argument("output_file", type=Path, help=endings)
    parts = "a .npy file of embed --part, or a .json file of perplexity --part"
    parser.add_argument("parts", nargs="+", type=Path, metavar="PART", help=parts)
    text = "for HDF5: the text, for sentence_to_index"
    parser.add_argument("--sentences", metavar="TEXT", help=text)
    add(parser, "--force")


def run(args: argparse.Namespace) -> None:
    output, parts = args.output_file, args.parts
    if output.suffix == ".json":
        check_output(output, args.force)
        totals = added_up([about for _, about in _in_order(parts, of_vectors=False)])
        write_text(output, json_text(totals, indent=1) + "\n")
        return
    check_format(output, args.force)
    # A glob finds what stands beside the parts as well.
    beside = {offsets_path(part) for part in parts}
    found = _in_order([part for part in parts if part not in beside], of_vectors=True)
    about = found[0][1]
    num_lines = about["lines"][2]
    text, texts = args.sentences, None
    if text is not None and (lines := count_lines(text)) != num_lines:
        raise ConfigurationError(
            f"{text} has {lines:,} lines, and these are vectors of {num_lines:,}."
        )
    if text is not None and output.suffix in HDF5:
        texts = texts_of(text, about["settings"]["input_format"])
    arrays = [_arrays(path, of_part) for path, of_part in found]
    write_vectors(
        output,
        _pieces(arrays),
        np.concatenate([np.diff(offsets) for _, offsets in arrays]),
        (about["word_shape"], np.dtype(about["dtype"])),
        {name: about[name] for name in ("archive", "layers", "weights", "transformer_elmo")},
        texts,
    )


def _pieces(arrays: list[tuple[np.ndarray, np.ndarray]]) -> Iterator[Piece]:
    for vectors, offsets in arrays:
        for begin in range(0, len(offsets) - 1, _AT_ONCE):
            ends = offsets[begin : begin + _AT_ONCE + 1]
            yield vectors[ends[0] : ends[-1]], np.diff(ends)


def _in_order(parts: list[Path], of_vectors: bool) -> list[tuple[Path, dict[str, Any]]]:
    """The parts with what is said of them, if they are all of one work and there."""
    found: dict[int, tuple[Path, dict[str, Any]]] = {}
    for path in parts:
        about = _about(path, of_vectors)
        number, count = about["part"]
        if number in found:
            raise ConfigurationError(
                f"{path} and {found[number][0]} are both part {number} of {count}."
            )
        found[number] = path, about
        first_path, first = next(iter(found.values()))
        ours, theirs = _common(about), _common(first)
        if differing := [
            key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)
        ]:
            raise ConfigurationError(
                f"{path} and {first_path} are no parts of one work: they differ in "
                f"{', '.join(differing)}."
            )
    missing = [str(number) for number in range(1, count + 1) if number not in found]
    if missing:
        raise ConfigurationError(
            f"Of {count} parts, {', '.join(missing)} {'are' if missing[1:] else 'is'} missing."
        )
    return [found[number] for number in sorted(found)]


def _common(about: dict[str, Any]) -> dict[str, Any]:
    """What all parts of a work have alike."""
    common = {k: v for k, v in about["settings"].items() if k != "part"}
    common["number of parts"], common["number of lines"] = about["part"][1], about["lines"][2]
    return {**common, "word_shape": about.get("word_shape"), "dtype": about.get("dtype")}


def _about(path: Path, of_vectors: bool) -> dict[str, Any]:
    """What a part says of itself: for vectors, in a file of its own."""
    file, shown, keys = path, str(path), ["num_tokens"]
    if of_vectors:
        file = part_path(path)
        shown = f"{path} is no part of a text's vectors: {file}"
        keys = ["word_shape", "dtype", "num_words", "vectors", "lengths", "archive"]
    about = read_json(file, shown)
    try:
        number, count = map(int, about["part"])
        begin, end, num_lines = map(int, about["lines"])
        if not (1 <= number <= count and 0 <= begin <= end <= num_lines):
            raise ValueError("its numbers make no sense")
        for key in keys:
            about[key]
        about["settings"]["input_format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{file} isn't of a part, or is damaged: {first_line(error)}."
        ) from None
    return about


def _arrays(path: Path, about: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of a part, mapped, and their offsets, if they are what was written."""
    begin, end, _ = about["lines"]
    for file in (path, offsets_path(path)):
        check_can_read(file)
    try:
        offsets = np.load(offsets_path(path))
        # An empty array can't be mapped.
        vectors = np.load(path, mmap_mode="r" if about["num_words"] else None)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigurationError(f"{path} can't be read: {first_line(error)}") from None
    lengths = np.diff(offsets).astype(np.int64)
    whole = len(lengths) == end - begin and zlib.crc32(lengths.tobytes()) == about["lengths"]
    whole = whole and vectors.shape == (about["num_words"], *about["word_shape"])
    checksum = 0
    for first in range(0, about["num_words"] if whole else 0, 10_000):
        checksum = zlib.crc32(np.ascontiguousarray(vectors[first : first + 10_000]).data, checksum)
    if not whole or checksum != about["vectors"]:
        raise ConfigurationError(
            f"{path} isn't what was written: it is damaged, or unfinished. Embed this part again."
        )
    return vectors, offsets
