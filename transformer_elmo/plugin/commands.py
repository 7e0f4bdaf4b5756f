"""The commands that `allennlp` gains."""

import argparse
import sys

from allennlp.commands.subcommand import Subcommand
from allennlp.common import logging as common_logging
from overrides import overrides

from transformer_elmo.cli import guarded
from transformer_elmo.commands import embed


@Subcommand.register("embed", exist_ok=True)
class Embed(Subcommand):
    """`allennlp embed ARCHIVE INPUT OUTPUT`; `--help` has the options."""

    @overrides
    def add_subparser(self, parser: argparse._SubParsersAction) -> argparse.ArgumentParser:
        subparser = parser.add_parser(
            self.name,
            description=embed.DESCRIPTION,
            help="Write the vectors of every word of a text.",
        )
        embed.add_arguments(subparser)
        subparser.add_argument(
            "--file-friendly-logging", action="store_true", help="progress on lines of its own"
        )
        subparser.set_defaults(func=_embed)
        return subparser


def _embed(args: argparse.Namespace) -> None:
    common_logging.FILE_FRIENDLY_LOGGING = args.file_friendly_logging
    problem = guarded(lambda: embed.run(args), "allennlp embed")
    if problem is not None:
        sys.exit(problem)
