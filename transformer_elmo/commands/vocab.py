"""`transformer-elmo vocab`: counts the words of a corpus."""

import argparse
from contextlib import ExitStack

from transformer_elmo.commands.arguments import add, file_of
from transformer_elmo.text.vocabulary import write_vocabulary

DESCRIPTION = """
Count the words of a corpus, split at spaces, and write AllenNLP's vocabulary folder: the words that
occur often enough, most frequent first.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = "files, directories, globs or URLs of text; - for the standard input"
    parser.add_argument("data_path", nargs="+", help=what)
    parser.add_argument("directory", help="the folder to write")
    rare = "leave out words that occur less often (default: 3)"
    parser.add_argument("--min-count", type=int, default=3, help=rare)
    parser.add_argument("--max-vocab-size", type=int, help="the most words to keep")
    add(parser, "--force")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> None:
    names = ("min_count", "max_vocab_size", "force", "quiet")
    options = {name: getattr(args, name) for name in names}
    with ExitStack() as files:
        paths = [files.enter_context(file_of(path))[0] for path in args.data_path]
        size = write_vocabulary(paths, args.directory, **options)
    print(f"{args.directory}: {size} words")
