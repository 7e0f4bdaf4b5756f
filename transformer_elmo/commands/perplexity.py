"""`transformer-elmo perplexity`: how well a model predicts a text."""

import argparse
import math
from typing import Any

from transformer_elmo.commands.arguments import (
    add,
    add_model_options,
    check_output,
    file_of,
    open_model,
    part_of_lines,
    sentences_of,
)
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import json_text, write_text
from transformer_elmo.inference.evaluation import perplexity
from transformer_elmo.text.corpus import count_lines

DESCRIPTION = """
The perplexity of a language model on a text, over all its words and both directions, and the
numbers that it is made of, as JSON. The work can be split: --part 3/16 reads the third of sixteen
parts of the lines, and transformer-elmo merge adds up what the parts have written.
"""

# Whatever is a mean, and how many it is the mean of. (Of a perplexity, that is its logarithm.)
_MEANS = {
    "loss": "num_tokens",
    "perplexity": "num_tokens",
    "forward_perplexity": "num_tokens",
    "backward_perplexity": "num_tokens",
    "listed_perplexity": "num_listed_predictions",
    "bits_per_character": "num_characters",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "model", "input_file", "--input-format", "--output-file", "--part", "--force")
    parser.add_argument(
        "--words-of",
        metavar="FILE",
        help="the perplexity of the words in this file, one a line, by itself as well: over words "
        "that several vocabularies share, models can be compared",
    )
    parser.add_argument(
        "--bits-per-character",
        action="store_true",
        help="what the text costs with unknown words spelled out: for models of any vocabularies",
    )
    add_model_options(parser)


def run(args: argparse.Namespace) -> None:
    check_output(args.output_file, args.force)
    with file_of(args.input_file) as (text, _):
        first, last, num_lines = part_of_lines(args.part, count_lines(text))
        found = open_model(args).evaluate(
            sentences_of(text, args.input_format, first, last),
            words_of=args.words_of,
            bits_per_character=args.bits_per_character,
            progress=True,
            is_part=args.part is not None,
        )
    if args.part is not None:
        found["part"], found["lines"] = args.part, [first, last, num_lines]
        names = ("model", "input_file", "input_format", "words_of", "bits_per_character")
        found["settings"] = {name: getattr(args, name) for name in names}
    written = json_text(found, indent=1) + "\n"
    if args.output_file is None:
        print(written, end="")
    else:
        write_text(args.output_file, written)


def added_up(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """What the whole text would have given, of which these are the parts."""
    totals: dict[str, Any] = {}
    if not any(part["num_tokens"] for part in parts):
        raise ConfigurationError("There is no word to predict in any of these parts.")
    for name in max(parts, key=len):
        if name.startswith("num_"):
            totals[name] = sum(part.get(name, 0) for part in parts)
        elif name in _MEANS:
            of = [part for part in parts if part.get(_MEANS[name])]
            count = sum(part[_MEANS[name]] for part in of)
            in_logs = name.endswith("perplexity")
            values = (math.log(part[name]) if in_logs else part[name] for part in of)
            total = math.fsum(value * part[_MEANS[name]] for value, part in zip(values, of))
            mean = total / count if count else math.nan
            totals[name] = perplexity(-total, count) if in_logs else mean
    return totals
