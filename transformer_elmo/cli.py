"""
`transformer-elmo COMMAND`: what can be done with a trained model, and with text before there is
one. It needs no AllenNLP, no plugin file and no `--include-package`.
"""

import argparse
import importlib
import os
import signal
import sys
import traceback
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Union

from transformer_elmo import __version__
from transformer_elmo.errors import ConfigurationError


class Command(NamedTuple):
    """
    # Attributes

    help : `str`
    module : `str`
        In `transformer_elmo.commands`; imported when the command is used.
    arguments, run, description : `str`
        Names in that module.
    """

    help: str
    module: str
    arguments: str = "add_arguments"
    run: str = "run"
    description: str = "DESCRIPTION"

    def imported(self) -> Any:
        """The module."""
        return importlib.import_module(f"transformer_elmo.commands.{self.module}")


COMMANDS: Dict[str, Command] = {
    "config": Command("the training configs that come with this package", "config"),
    "vocab": Command("count the words of a corpus", "vocab"),
    "embed": Command("vectors of every word of a text, in a file", "embed"),
    "merge": Command("the parts that embed --part has written, as one file", "merge"),
    "score": Command(
        "the probability of every word of a text",
        "score",
        "add_score_arguments",
        "run_score",
        "SCORE",
    ),
    "fill": Command(
        "the likeliest words for gaps", "score", "add_fill_arguments", "run_fill", "FILL"
    ),
    "compare": Command("two models on one text", "compare"),
    "report": Command("a training run, or a model, in one HTML page", "report.command"),
    "export": Command("a model folder out of an archive", "export"),
    "convert": Command("configs and archives of AllenNLP 0.x for AllenNLP 2", "convert"),
}


def main(arguments: Optional[List[str]] = None) -> int:
    """
    # Parameters

    arguments : `List[str]`, optional (default = those of the command line)

    # Returns

    `int`
        The exit status: 0, or 1 for bad input, of which one message tells.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    # A command imports what it needs, and `--help` of all of them nothing.
    named = next((argument for argument in arguments if argument in COMMANDS), None)
    parser = argparse.ArgumentParser(prog="transformer-elmo", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    run: Optional[Callable[[argparse.Namespace], None]] = None
    for name, command in COMMANDS.items():
        if name != named:
            commands.add_parser(name, help=command.help)
            continue
        module = command.imported()
        subparser = commands.add_parser(
            name, help=command.help, description=getattr(module, command.description)
        )
        getattr(module, command.arguments)(subparser)
        run = getattr(module, command.run)
    args = parser.parse_args(arguments)
    assert run is not None
    problem = guarded(lambda: run(args), f"transformer-elmo {args.command}")
    if isinstance(problem, str):
        print(problem, file=sys.stderr)
        return 1
    return problem or 0


def guarded(action: Callable[[], None], name: str) -> Union[str, int, None]:
    """
    Runs a command.

    # Returns

    `str` or `int`, optional
        For `sys.exit`: what to say of bad input, or an exit status; `None` if all went well.
    """
    try:
        action()
    except BrokenPipeError:
        # Whoever read has read enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        # What a shell reports for a command that Control-C has ended.
        return 128 + signal.SIGINT
    except (ConfigurationError, OSError, ValueError, TypeError) as error:
        if os.environ.get("TRANSFORMER_ELMO_DEBUG"):
            traceback.print_exc()
        return f"{name}: {error}"
    except (RuntimeError, MemoryError) as error:
        # Costs a second, and whoever runs a model has imported it.
        from transformer_elmo.out_of_memory import is_out_of_memory, said_of

        if not is_out_of_memory(error) or os.environ.get("TRANSFORMER_ELMO_DEBUG"):
            raise
        return f"{name}: {said_of(error)}"
    return None


if __name__ == "__main__":
    sys.exit(main())
