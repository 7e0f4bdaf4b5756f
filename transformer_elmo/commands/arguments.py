"""The arguments that several commands have, each defined once, and text from the standard input."""

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import check_can_write
from transformer_elmo.inference.elmo import TransformerElmo
from transformer_elmo.inference.vectors import SEGMENT_LENGTH
from transformer_elmo.nn.precision import PRECISIONS
from transformer_elmo.text.corpus import (
    BLOCK_SIZE,
    INPUT_FORMATS,
    TextOrWords,
    decode,
    is_blank,
    parse_line,
    read_lines,
    split_lines,
)

MODEL_HELP = (
    "a model folder, a model.tar.gz, the folder of a training run, a URL, or hf://user/model"
)


def _part(text: str) -> tuple[int, int]:
    """The type of `--part`: its number, from 1, and how many there are."""
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return int(number), int(count)
    raise argparse.ArgumentTypeError(f"expected the part of how many, such as 3/16: got {text!r}")


ARGUMENTS: dict[str, dict[str, Any]] = {
    "model": {"help": MODEL_HELP},
    "--max-tokens": {"type": int, "default": 2000, "help": "tokens of a batch, padding included"},
    "--segment-length": {
        "type": int,
        "default": SEGMENT_LENGTH,
        "help": "longer lines are embedded in overlapping segments of so many tokens",
    },
    "--tokenizer": {"help": "by name, for lines of text; by default the one of the model"},
    "--precision": {
        "metavar": f"{{{','.join(PRECISIONS)}}}",
        "help": "how numbers are multiplied; by default as the model has it",
    },
    "--cuda-device": {"type": int, "default": -1, "help": "a GPU's number; by default the CPU"},
    "--weights-file": {"help": "other weights than the model's"},
    "--overrides": {"default": "", "help": "JSON that changes the config of the model's archive"},
    "input_file": {
        "help": "one sentence a line: text, or JSON with a list of words as tokens or a text as "
        "text; may be compressed; blank lines keep their numbers; - for the standard input",
    },
    "--input-format": {
        "choices": INPUT_FORMATS,
        "default": "auto",
        "help": 'by default, a line that begins with {" is JSON',
    },
    "--output-file": {"type": Path, "help": "where results go; by default the standard output"},
    "--part": {
        "type": _part,
        "metavar": "K/N",
        "help": "only the K-th of N parts of the lines; transformer-elmo merge joins the parts",
    },
    "--force": {"action": "store_true", "help": "replace what is there under that name"},
}


def add(parser: argparse.ArgumentParser, *names: str) -> None:
    """Some of `ARGUMENTS`, in this order."""
    for name in names:
        flags = ["-o", name] if name == "--overrides" else [name]
        parser.add_argument(*flags, **ARGUMENTS[name])


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """How a model is opened."""
    names = ("--max-tokens", "--segment-length", "--tokenizer", "--precision", "--cuda-device")
    add(parser, *names, "--weights-file", "--overrides")


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """Those of `TransformerElmo.open`."""
    names = ("precision", "weights_file", "tokenizer", "max_tokens", "segment_length")
    options = {name: getattr(args, name) for name in names}
    return {**options, "device": args.cuda_device, "overrides": args.overrides or None}


def open_model(args: argparse.Namespace, output: Path | None = None) -> TransformerElmo:
    """The model that the arguments name; first, whether results can be written is checked."""
    check_output(output, args.force)
    return TransformerElmo.open(args.model, **model_options(args))


def part_of_lines(part: tuple[int, int] | None, num_lines: int) -> tuple[int, int, int]:
    """Where a part of a text begins and ends, and how many lines there are in all."""
    number, count = part or (1, 1)
    return (number - 1) * num_lines // count, number * num_lines // count, num_lines


def check_output(path: Path | None, force: bool) -> None:
    """Raises `ConfigurationError` if a file may not be written, or not be replaced."""
    if path is not None:
        if path.is_file() and not force:
            raise ConfigurationError(f"{path} exists. Give --force to replace it.")
        check_can_write(path)


def lines_of(path: str) -> Iterator[str]:
    """The lines of a file, or of the standard input, each as soon as it is there."""
    if path != "-":
        yield from read_lines(path)
        return
    for number, line in enumerate(sys.stdin.buffer, start=1):
        yield from split_lines(decode(line, "The standard input", number))


def sentences_of(
    path: str, input_format: str, first: int = 0, last: int | None = None
) -> Iterator[TextOrWords]:
    """Those of `lines_of`, or of some of them. A blank line is a sentence without words."""
    for number, line in enumerate(islice(lines_of(path), first, last), start=first + 1):
        yield [] if is_blank(line) else parse_line(line, input_format, number)


@contextmanager
def file_of(path: str) -> Iterator[tuple[str, str | None]]:
    """
    For whoever reads its input more than once.

    Returns the path of a file, which for the standard input is a temporary one; and for that, what
    tells the same text again.
    """
    if path != "-":
        yield path, None
        return
    digest = hashlib.sha256()
    with tempfile.NamedTemporaryFile(prefix="standard-input-", suffix=".txt") as file:
        for block in iter(partial(sys.stdin.buffer.read, BLOCK_SIZE), b""):
            digest.update(block)
            file.write(block)
        file.flush()
        try:
            yield file.name, digest.hexdigest()
        except ConfigurationError as error:
            message = error.message.replace(file.name, "The standard input")
            raise ConfigurationError(message) from None
