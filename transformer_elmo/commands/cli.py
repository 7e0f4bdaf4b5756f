"""
`transformer-elmo COMMAND`: what can be done with a trained model, and with text before there is
one. It needs no AllenNLP, no plugin file and no `--include-package`.
"""

import argparse
import importlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from transformer_elmo import __version__
from transformer_elmo.errors import ConfigurationError

# Each is a module here of that name, imported when the command is used. It has a `DESCRIPTION`,
# `add_arguments(parser)` and `run(args)`.
COMMANDS = {
    "config": "the training configs that come with this package",
    "split": "raw text into sentences and words",
    "vocab": "count the words of a corpus",
    "embed": "vectors of every word of a text, in a file",
    "merge": "the parts that embed or perplexity --part has written, as one file",
    "perplexity": "how well a model predicts a text",
    "score": "the probability of every word of a text",
    "fill": "the likeliest words for gaps",
    "nearest": "words that are like a word",
    "compare": "two models on one text",
    "report": "a training run, or a model, in one HTML page",
    "export": "a model folder out of an archive",
    "convert": "configs and archives of AllenNLP 0.x for AllenNLP 2",
}


def module_of(command: str) -> Any:
    """The module of a command."""
    return importlib.import_module(f"transformer_elmo.commands.{command}")


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 for bad input, of which one message tells."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # A command imports what it needs, and `--help` of all of them nothing.
    named = next((argument for argument in arguments if argument in COMMANDS), None)
    parser = argparse.ArgumentParser(prog="transformer-elmo", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    # Without a command, parsing ends the program.
    run: Any = None
    for name, summary in COMMANDS.items():
        if name != named:
            commands.add_parser(name, help=summary)
            continue
        module = module_of(name)
        subparser = commands.add_parser(name, help=summary, description=module.DESCRIPTION)
        module.add_arguments(subparser)
        run = module.run
    name = f"transformer-elmo {named or ''}".rstrip()
    problem = guarded(lambda: run(parser.parse_args(arguments)), name)
    if isinstance(problem, str):
        print(problem, file=sys.stderr)
        return 1
    return problem or 0


def guarded(action: Callable[[], None], name: str) -> str | int | None:
    """
    Runs a command.

    Returns for `sys.exit`: what to say of bad input, or an exit status; `None` if all went well.
    """
    _open_streams()
    try:
        try:
            action()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read has read enough.
        _drop_output()
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        # What a shell reports for a command that Control-C has ended.
        return 128 + signal.SIGINT
    except (ConfigurationError, OSError, ValueError, TypeError) as error:
        if os.environ.get("TRANSFORMER_ELMO_DEBUG"):
            traceback.print_exc()
        _drop_output()
        return f"{name}: {error}"
    except (RuntimeError, MemoryError) as error:
        # Costs a second, and whoever runs a model has imported it.
        from transformer_elmo.memory import is_out_of_memory, said_of

        if not is_out_of_memory(error) or os.environ.get("TRANSFORMER_ELMO_DEBUG"):
            raise
        return f"{name}: {said_of(error)}"
    return None


def _open_streams() -> None:
    """Closed streams read and write nothing; what the output's encoding lacks is escaped."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (until the process ends)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Python would try again, at its end, to write what the standard output doesn't take."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
