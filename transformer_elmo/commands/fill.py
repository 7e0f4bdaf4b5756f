"""`transformer-elmo fill`: the likeliest words for gaps."""

import argparse

from transformer_elmo.commands.arguments import add, add_model_options, open_model, sentences_of
from transformer_elmo.commands.score import write_lines
from transformer_elmo.files import json_text

DESCRIPTION = """
The likeliest words for the gaps of sentences, written ___: one JSON object a line, with a list of
words and probabilities for each gap.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "model", "input_file", "--input-format", "--output-file", "--force")
    parser.add_argument("--top-k", type=int, default=5, help="words for a gap (default: 5)")
    parser.add_argument("--gap", default="___", help="how a gap is written (default: ___)")
    add_model_options(parser)


def run(args: argparse.Namespace) -> None:
    elmo = open_model(args, args.output_file)
    results = (
        {
            "sentence": sentence if isinstance(sentence, str) else " ".join(sentence),
            "gaps": elmo.fill_all(sentence, args.top_k, args.gap),
        }
        for sentence in sentences_of(args.input_file, args.input_format)
    )
    write_lines(args.output_file, map(json_text, results))
