"""`transformer-elmo score`: how likely a model finds each word of a text."""

import argparse
import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import IO, ContextManager

from transformer_elmo.commands.arguments import add, add_model_options, open_model, sentences_of
from transformer_elmo.files import json_text, written_whole
from transformer_elmo.text.word_table import MOST_BYTES, is_cut

logger = logging.getLogger(__name__)

DESCRIPTION = """
The probability and the rank of every word of a text, from both sides: one JSON object a line, in
the order of the input. Blank lines are sentences without words.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "model", "input_file", "--input-format", "--output-file", "--force")
    likeliest = "name so many of the likeliest words in each place"
    parser.add_argument("--top-k", type=int, default=0, help=likeliest)
    add_model_options(parser)


def run(args: argparse.Namespace) -> None:
    elmo = open_model(args, args.output_file)
    num_cut = 0

    def results() -> Iterator[str]:
        nonlocal num_cut
        sentences = sentences_of(args.input_file, args.input_format)
        for scores in elmo.score_stream(sentences, args.top_k):
            num_cut += sum(map(is_cut, scores.tokens))
            yield json_text(scores.to_json())

    write_lines(args.output_file, results())
    if num_cut and not elmo.model.embeds_ids:
        logger.warning(
            "Of %d words, the model sees the first %d bytes of UTF-8 only.", num_cut, MOST_BYTES
        )


def write_lines(output: Path | None, lines: Iterable[str]) -> None:
    """Lines without their ends, each as soon as it is there; by default to the standard output."""
    to_file: ContextManager[IO[bytes]] | None = written_whole(output) if output else None
    with to_file or nullcontext(sys.stdout.buffer) as file:
        for line in lines:
            file.write(f"{line}\n".encode())
            if to_file is None:
                file.flush()
