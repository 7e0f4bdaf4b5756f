"""`transformer-elmo nearest`: words that are like a word."""

import argparse

from transformer_elmo.commands.arguments import (
    STANDARD_INPUT,
    add,
    add_model_options,
    check_output,
    check_top_k,
    open_model,
    sentences_of,
)
from transformer_elmo.commands.score import write_lines

DESCRIPTION = """
Words of the vocabulary that are like a word, by the cosine of their vectors: one JSON object a
word. By itself, a word is known by its characters; with --sentence, by what it means there.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "model")
    parser.add_argument(
        "words", nargs="+", metavar="WORD", help="- for the standard input, one word a line"
    )
    parser.add_argument("--sentence", help="text in which the words stand")
    parser.add_argument("--top-k", type=int, default=10, help="words to name (default: 10)")
    add(parser, "--output-file", "--force")
    add_model_options(parser)


def run(args: argparse.Namespace) -> None:
    check_top_k(args, least=1)
    check_output(args.output_file, args.force)
    words = args.words
    if words == [STANDARD_INPUT]:
        words = (str(line).strip() for line in sentences_of(STANDARD_INPUT, "text") if line)
    elmo = open_model(args)
    results = (
        {
            "word": word,
            "nearest": elmo.nearest(word, args.top_k, sentence=args.sentence, progress=True),
        }
        for word in words
    )
    write_lines(args.output_file, results)
