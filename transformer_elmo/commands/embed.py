"""Vectors for every word of a text, in a file: `transformer-elmo embed`, `allennlp embed`."""

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from transformer_elmo import __version__
from transformer_elmo.commands.arguments import (
    add,
    add_model_options,
    file_of,
    model_options,
    open_model,
    part_of_lines,
    sentences_of,
)
from transformer_elmo.commands.vector_shards import check_format, vector_shards
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.pretrained import hub
from transformer_elmo.pretrained.archive import in_place_of_archive, last_checkpoint
from transformer_elmo.text.corpus import count_lines, find_shards
from transformer_elmo.with_allennlp import progress_bar

logger = logging.getLogger(__name__)

DESCRIPTION = """
Embed every word of a text with a Transformer ELMo and write the vectors to one file: HDF5, laid
out as by AllenNLP 0.9's elmo command and bilm-tf (a dataset for each line, its number as the name,
and sentence_to_index); or .npz or .npy with all vectors in one array, and offsets. If the command
is cut short, the same command goes on where it stood, to the same numbers. The work can be split:
--part 3/16 embeds the third of sixteen parts of the lines, and transformer-elmo merge joins them.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "model", "input_file")
    endings = "ends with .hdf5 (or .h5), .npz or .npy"
    parser.add_argument("output_file", type=Path, help=endings)
    what = parser.add_mutually_exclusive_group(required=True)
    for name, summary in (
        ("all", "all layers, that of words first"),
        ("top", "the top layer"),
        ("average", "the mean of all layers"),
    ):
        what.add_argument(
            f"--{name}", dest="layers", action="store_const", const=name, help=summary
        )
    summed = "a sum of layers with these weights"
    what.add_argument("--weights", type=_numbers, metavar="W,W,...", help=summed)
    what.add_argument("--layer", type=int, help="one layer; 0 is that of words")
    written = "how numbers are written"
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32", help=written)
    forget = "HDF5 without sentence_to_index, which takes as much memory as the text"
    parser.add_argument("--forget-sentences", action="store_true", help=forget)
    add(parser, "--part", "--input-format", "--force")
    add_model_options(parser)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected numbers with commas between them, got {text!r}"
        ) from None


def run(args: argparse.Namespace) -> None:
    # Whatever can be found wrong is, before the whole input is waited for and a model opened.
    check_format(args.output_file, args.force)
    if args.part is not None and args.output_file.suffix != ".npy":
        raise ConfigurationError(
            f"A part goes to a .npy file, which transformer-elmo merge reads: got "
            f"{args.output_file}."
        )
    try:
        with file_of(args.input_file) as (input_file, digest):
            _embed(args, input_file, digest)
    except KeyboardInterrupt:
        print("The same command goes on from here.", file=sys.stderr)
        raise


def _embed(args: argparse.Namespace, input_file: str, input_digest: str | None) -> None:
    """`input_digest`: what tells the same text again where the file is a copy of it."""
    first, last, num_lines = part_of_lines(args.part, count_lines(input_file))
    elmo = open_model(args)
    chosen = args.layers if args.layer is None else args.layer
    layers = elmo.checked_layers("mix" if chosen in (None, "average") else chosen, args.weights)
    about = {"archive": args.model, "layers": layers, "weights": args.weights}
    settings = {
        **about,
        "archive": _identity(args.model),
        "input": input_digest or [_identity(str(shard)) for shard in find_shards(input_file)],
        "dtype": args.dtype,
        "input_format": args.input_format,
        # How sentences are batched doesn't matter.
        "options": {
            k: v for k, v in model_options(args).items() if k not in ("max_tokens", "device")
        },
    }
    about["transformer_elmo"] = __version__
    if args.part is not None:
        settings["part"] = about["part"] = list(args.part)
        about["lines"] = [first, last, num_lines]
    word_shape = [elmo.num_layers, elmo.dim] if layers == "all" else [elmo.dim]
    of_word = word_shape, np.dtype(args.dtype)
    output = args.output_file
    with vector_shards(output, of_word, settings, args.force) as shards:
        if shards.is_complete:
            logger.info("%s was complete before.", output)
            return
        done = shards.num_sentences
        if done:
            logger.info("Going on after %d lines.", done)
        sentences = sentences_of(input_file, args.input_format, first, last)
        bar = progress_bar(total=last - first, initial=done, desc="embedding")
        for vectors in elmo.embed_stream(sentences, layers, weights=args.weights, skip=done):
            shards.append(vectors.swapaxes(0, 1) if layers == "all" else vectors)
            bar.update()
        bar.close()
        with_texts = output.suffix not in (".npy", ".npz") and not args.forget_sentences
        shards.finish(about, texts_of(input_file, args.input_format) if with_texts else None)
    logger.info("Wrote the vectors of %d lines to %s.", shards.num_sentences, output)


def texts_of(input_file: str, input_format: str) -> Iterator[str]:
    """The keys of `sentence_to_index`, line by line."""
    for sentence in sentences_of(input_file, input_format):
        yield sentence.strip() if isinstance(sentence, str) else " ".join(sentence)


def _identity(path: str) -> Any:
    """What tells that a file is still the same, or what a model's folder needs of its own."""
    local = hub.local(path)
    if local != path:
        # The folder is called by its commit.
        return [path, Path(local).name]
    path = str(in_place_of_archive(Path(path)))
    if os.path.isdir(path):
        names = ("config.json", "weights.th", "best.th", "model.safetensors")
        found = [name for name in names if os.path.exists(os.path.join(path, name))]
        if found == ["config.json"] and (checkpoint := last_checkpoint(Path(path))):
            found.append(checkpoint.name)
        return [_identity(os.path.join(path, name)) for name in found]
    if os.path.exists(path):
        status = os.stat(path)
        return [os.path.abspath(path), status.st_size, status.st_mtime_ns]
    return path
