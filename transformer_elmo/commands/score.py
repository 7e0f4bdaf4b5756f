"""`transformer-elmo score` and `transformer-elmo fill`: what a model says about words."""

import argparse
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from transformer_elmo.commands.arguments import (
    STANDARD_INPUT,
    add_model_arguments,
    open_model,
    standard_input_lines,
)
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import check_can_write, json_text, written_whole
from transformer_elmo.text.corpus import (
    INPUT_FORMATS,
    TextOrWords,
    is_blank,
    parse_line,
    read_lines,
)
from transformer_elmo.text.word_table import MOST_BYTES, is_cut

logger = logging.getLogger(__name__)

SCORE = """
The probability and the rank of every word of a text, from both sides: one JSON object a line, in
the order of the input. Blank lines are sentences without words.
"""

FILL = """
The likeliest words for the gaps of sentences, written ___: one JSON object a line, with a list of
words and probabilities for each gap.
"""


def add_score_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `score`."""
    _add_arguments(parser)
    parser.add_argument(
        "--top-k", type=int, default=0, help="name so many of the likeliest words in each place"
    )


def add_fill_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `fill`."""
    _add_arguments(parser)
    parser.add_argument("--top-k", type=int, default=5, help="words for a gap (default: 5)")
    parser.add_argument("--gap", default="___", help="how a gap is written (default: ___)")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "input_file",
        help="one sentence a line: text, or JSON with a list of words as tokens or a text as text; "
        "- for the standard input",
    )
    parser.add_argument(
        "--output-file", type=Path, help="where results go; by default the standard output"
    )
    parser.add_argument(
        "--input-format",
        choices=INPUT_FORMATS,
        default="auto",
        help='by default, a line that begins with {" is JSON',
    )
    parser.add_argument("--force", action="store_true", help="replace a file of that name")


def input_sentences(path: str, input_format: str) -> Iterator[TextOrWords]:
    """
    The sentences of a file, or of the standard input where the path is "-". A blank line is one
    without words.
    """
    lines = standard_input_lines() if path == STANDARD_INPUT else read_lines(path)
    for number, line in enumerate(lines, start=1):
        yield [] if is_blank(line) else parse_line(line, input_format, number)


def run_score(args: argparse.Namespace) -> None:
    """What `score` does."""
    if args.top_k < 0:
        raise ConfigurationError(f"--top-k must not be negative, got {args.top_k}.")
    _check_output(args)
    elmo = open_model(args)
    sentences = input_sentences(args.input_file, args.input_format)
    num_cut = 0

    def results() -> Iterator[dict[str, Any]]:
        nonlocal num_cut
        for scores in elmo.score_stream(sentences, args.top_k):
            num_cut += sum(map(is_cut, scores.tokens))
            yield scores.to_json()

    _write(args.output_file, results())
    if num_cut and not elmo.model.embeds_ids:
        logger.warning(
            "Of %d words, the model sees the first %d bytes of UTF-8 only.", num_cut, MOST_BYTES
        )


def run_fill(args: argparse.Namespace) -> None:
    """What `fill` does."""
    if args.top_k < 1:
        raise ConfigurationError(f"--top-k must be at least 1, got {args.top_k}.")
    _check_output(args)
    elmo = open_model(args)
    sentences = input_sentences(args.input_file, args.input_format)
    _write(
        args.output_file,
        (
            {
                "sentence": sentence if isinstance(sentence, str) else " ".join(sentence),
                "gaps": elmo.fill_all(sentence, args.top_k, args.gap),
            }
            for sentence in sentences
        ),
    )


def _check_output(args: argparse.Namespace) -> None:
    if args.output_file is None:
        return
    if args.output_file.exists() and not args.force:
        raise ConfigurationError(f"{args.output_file} exists. Give --force to replace it.")
    check_can_write(args.output_file)


def _write(output: Path | None, results: Iterator[object]) -> None:
    def write(file: IO[bytes]) -> None:
        for result in results:
            file.write(f"{json_text(result)}\n".encode())
            if output is None:
                file.flush()

    if output is None:
        write(sys.stdout.buffer)
    else:
        with written_whole(output) as file:
            write(file)
