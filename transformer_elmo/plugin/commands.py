"""The commands that `allennlp` gains."""

import argparse
import sys
from typing import Any

from allennlp.commands.subcommand import Subcommand
from allennlp.common import logging as common_logging
from overrides import overrides

from transformer_elmo.commands.cli import COMMANDS, guarded, module_of


class _Command(Subcommand):
    """A command of `transformer-elmo`, which a subclass names, under `allennlp`."""

    @overrides
    def add_subparser(self, parser: argparse._SubParsersAction) -> argparse.ArgumentParser:
        command = self.name.removeprefix("lm-")
        module = module_of(command)
        subparser = parser.add_parser(
            self.name, description=module.DESCRIPTION, help=f"Write {COMMANDS[command]}."
        )
        module.add_arguments(subparser)
        subparser.add_argument(
            "--file-friendly-logging", action="store_true", help="progress on lines of its own"
        )
        subparser.set_defaults(func=lambda args: _run(module, args, self.name))
        return subparser


@Subcommand.register("embed", exist_ok=True)
class Embed(_Command):
    """`allennlp embed ARCHIVE INPUT OUTPUT`; `--help` has the options."""


@Subcommand.register("lm-report", exist_ok=True)
class LmReport(_Command):
    """`allennlp lm-report SERIALIZATION_DIR`; `--help` has the options."""


def _run(module: Any, args: argparse.Namespace, name: str) -> None:
    common_logging.FILE_FRIENDLY_LOGGING = args.file_friendly_logging
    problem = guarded(lambda: module.run(args), f"allennlp {name}")
    if problem is not None:
        sys.exit(problem)
