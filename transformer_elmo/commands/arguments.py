"""
Text from the standard input, where a command's input file is "-".

How a command is told of a model.
"""

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.inference.elmo import TransformerElmo
from transformer_elmo.nn.precision import PRECISIONS
from transformer_elmo.text.corpus import split_lines

MODEL_HELP = "a model folder, a model.tar.gz, the folder of a training run, or a URL"


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, and how it is opened."""
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument(
        "--max-tokens", type=int, default=2000, help="tokens of a batch, padding included"
    )
    parser.add_argument(
        "--tokenizer", help="by name, for lines of text; by default the one of the model"
    )
    parser.add_argument(
        "--precision",
        choices=list(PRECISIONS),
        help="how numbers are multiplied; by default as the model has it",
    )
    parser.add_argument(
        "--cuda-device", type=int, default=-1, help="a GPU's number; by default the CPU"
    )


def open_model(args: argparse.Namespace) -> TransformerElmo:
    """The model that the arguments name."""
    return TransformerElmo.open(
        args.model,
        device=args.cuda_device,
        precision=args.precision,
        tokenizer=args.tokenizer,
        max_tokens=args.max_tokens,
    )


STANDARD_INPUT = "-"

_BYTES_AT_ONCE = 2**20


def standard_input_lines() -> Iterator[str]:
    """
    Its lines, each as soon as it is there.

    Raises `ConfigurationError` if it is not UTF-8.
    """
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            raise ConfigurationError(
                f"The standard input, line {number}, is not UTF-8. Convert it, for example with "
                "iconv."
            ) from None
        yield from split_lines(text.removeprefix("\ufeff") if number == 1 else text)


@contextmanager
def file_of(path: str) -> Iterator[tuple[str, str | None]]:
    """
    For whoever reads its input more than once.

    Returns the path of a file, which for the standard input is a temporary one; and for that, what
    tells the same text again.
    """
    if path != STANDARD_INPUT:
        yield path, None
        return
    digest = hashlib.sha256()
    with tempfile.NamedTemporaryFile(prefix="standard-input-", suffix=".txt") as file:
        while block := sys.stdin.buffer.read(_BYTES_AT_ONCE):
            digest.update(block)
            file.write(block)
        file.flush()
        try:
            yield file.name, digest.hexdigest()
        except ConfigurationError as error:
            message = error.message.replace(file.name, "The standard input")
            raise ConfigurationError(message) from None
