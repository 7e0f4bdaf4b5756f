"""`transformer-elmo nearest`: words that are like a word."""

import argparse

from transformer_elmo.commands.arguments import add, add_model_options, lines_of, open_model
from transformer_elmo.commands.score import write_lines
from transformer_elmo.files import json_text

DESCRIPTION = """
Words of the vocabulary that are like a word, by the cosine of their vectors: one JSON object a
word. By itself, a word is known by its characters; with --sentence, by what it means there.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "model")
    standard_input = "- for the standard input, one word a line"
    parser.add_argument("words", nargs="+", metavar="WORD", help=standard_input)
    parser.add_argument("--sentence", help="text in which the words stand")
    parser.add_argument("--top-k", type=int, default=10, help="words to name (default: 10)")
    add(parser, "--output-file", "--force")
    add_model_options(parser)


def run(args: argparse.Namespace) -> None:
    elmo = open_model(args, args.output_file)
    words = filter(None, map(str.strip, lines_of("-"))) if args.words == ["-"] else args.words
    options = {"sentence": args.sentence, "progress": True}
    results = (
        {"word": word, "nearest": elmo.nearest(word, args.top_k, **options)} for word in words
    )
    write_lines(args.output_file, map(json_text, results))
