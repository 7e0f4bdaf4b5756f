"""`transformer-elmo config`: the training configs that come with this package."""

import argparse
import re
import textwrap
from pathlib import Path

from transformer_elmo.errors import ConfigurationError

DESCRIPTION = """
Print one of the training configs that come with this package, for `allennlp train`, or list them
all. What is printed needs no other file: save it anywhere.
"""

_PACKAGE = Path(__file__).resolve().parents[1]
_SIZE = re.compile(r"^(local SIZE = )'\w+'", re.MULTILINE)
_IMPORT = re.compile(r"\bimport\s+'([^']+)'")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="the config to print; without it, all are listed")
    size = "for own_text: 1M, 10M or 100M, the nearest to the number of words in the text"
    parser.add_argument("--size", help=size)


def run(args: argparse.Namespace) -> None:
    found = configs()
    if args.name is None:
        width = max(map(len, found))
        for name, path in found.items():
            print(f"{name:{width}}  {summary(path)}")
        return
    name = args.name.removesuffix(".jsonnet")
    if name not in found:
        raise ConfigurationError(f"There is no config {args.name}. There are {', '.join(found)}.")
    text = self_contained(found[name])
    print(text if args.size is None else sized(text, name, args.size), end="")


def configs() -> dict[str, Path]:
    """The configs by name: in the package where it is installed, beside it in a checkout."""
    inside = _PACKAGE / "training_config"
    folder = inside if inside.is_dir() else _PACKAGE.parent / "training_config"
    return {path.stem: path for path in sorted(folder.glob("*.jsonnet"))}


def sized(text: str, name: str, size: str) -> str:
    """A config's text for another size of text to train on."""
    sizes = re.findall(r"^ *'(\w+)': \{", text, re.MULTILINE)
    if size not in sizes:
        known = f"its sizes are {', '.join(sizes)}" if sizes else "it has no sizes"
        raise ConfigurationError(f"There is no {name} for --size {size}: {known}.")
    return _SIZE.sub(rf"\g<1>'{size}'", text)


def summary(path: Path) -> str:
    """What a config is, by the comment in its first line."""
    with path.open(encoding="utf-8") as file:
        return file.readline().lstrip("/ ").rstrip()


def self_contained(path: Path) -> str:
    """A config's text, with each file that it imports in place of the import."""

    def imported(match: "re.Match[str]") -> str:
        text = self_contained(path.parent / match[1]).rstrip()
        return f"(\n{textwrap.indent(text, '  ')}\n)"

    return _IMPORT.sub(imported, path.read_text(encoding="utf-8"))
