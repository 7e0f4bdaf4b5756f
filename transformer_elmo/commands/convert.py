"""`transformer-elmo convert`: configs and archives of AllenNLP 0.x, written anew for AllenNLP 2."""

import argparse
import copy
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from transformer_elmo.commands.arguments import add, check_output
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import write_text, written_whole
from transformer_elmo.pretrained.archive import CONFIG, WEIGHTS, archived_config
from transformer_elmo.pretrained.jsonnet import evaluated_file
from transformer_elmo.pretrained.legacy import (
    Change,
    archived_files,
    check_trainer_keys,
    find_key,
    modern_weights,
    modernize,
    without_this_package,
)
from transformer_elmo.pretrained.legacy.archives import FOLDER, NAMES_FILE
from transformer_elmo.pretrained.unpacking import unpack
from transformer_elmo.pretrained.weights import read_weights

DESCRIPTION = """
Write the AllenNLP 2 form of a config (.jsonnet, .json) or of a model archive (.tar.gz) of AllenNLP
0.7 to 0.9, and print what was changed.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", type=Path, help="the config or archive to read")
    parser.add_argument("new", type=Path, help="the config or archive to write")
    add(parser, "--force")
    parser.add_argument(
        "--stock",
        action="store_true",
        help="write AllenNLP's own data loader in place of this package's, so that a language "
        "model's archive is evaluated by allennlp-models alone; OLD may be of any version",
    )


def run(args: argparse.Namespace) -> None:
    changes = convert(args.old, args.new, args.force, args.stock)
    for change in changes:
        print(f"{'DROPPED ' if change.dropped else ''}{change}")
    if not changes:
        more = " and nothing of this package's" if args.stock else ""
        print(f"{args.old} has nothing of AllenNLP 0.x in it{more}.")
    print(f"wrote {args.new}")


def convert(old: Path, new: Path, force: bool = False, stock: bool = False) -> list[Change]:
    """
    Writes the modern form of a config file or of an archive, whole or not at all.

    `old`: a config (`.jsonnet`, `.json`) or an archive (`.tar.gz`). `new`: what to write. `force`:
    whether `new` may be there already. `stock`: whether the result needs no parts of this package:
    see `without_this_package`. Raises `ConfigurationError` if `old` can't be read or understood, or
    `new` exists.
    """
    if not old.is_file():
        raise ConfigurationError(f"{old} is not a file.")
    if new.exists() and new.samefile(old):
        raise ConfigurationError(f"{new} can't be written: it is the old file itself.")
    check_output(new, force)
    if is_archive(old) != is_archive(new):
        raise ConfigurationError(
            f"{old} and {new}: an archive becomes an archive, a config a config."
        )
    if is_archive(old):
        return _convert_archive(old, new, stock)
    config = evaluated_file(old)
    if not isinstance(config, dict):
        raise ConfigurationError(f"{old} holds no object, so it is not a config.")
    modern, changes = _converted(config, stock)
    check_trainer_keys(modern.get("trainer"))
    write_text(new, json.dumps(modern, indent=2) + "\n")
    return changes


def _converted(config: dict[str, Any], stock: bool) -> tuple[dict[str, Any], list[Change]]:
    modern, changes = modernize(config)
    if stock:
        modern, more = without_this_package(modern)
        changes = [*changes, *more]
    return modern, changes


def is_archive(file: Path) -> bool:
    """Whether a file is an archive, by its name."""
    return file.name.endswith((".tar.gz", ".tgz"))


def _convert_archive(old: Path, new: Path, stock: bool) -> list[Change]:
    with tempfile.TemporaryDirectory(dir=new.parent, prefix=f".{new.name}.") as name:
        directory = Path(name)
        unpack(old, directory)
        config = archived_config(directory, str(old))
        modern, changes = _converted(config, stock)
        (directory / CONFIG).write_text(json.dumps(modern, indent=2) + "\n", encoding="utf-8")
        if files := archived_files(directory):
            _rename_archived_files(config, files, directory)
        weights_file = directory / WEIGHTS[0]
        if weights_file.is_file():
            weights = read_weights(weights_file, shown=f"The archive's {weights_file.name}")
            renamed = modern_weights(weights, config)
            if renamed.keys() != weights.keys():
                # The tensors are mapped from the old file, which keeps its content without a name.
                with written_whole(weights_file) as file:
                    torch.save(renamed, file)
        with written_whole(new) as file, tarfile.open(fileobj=file, mode="w:gz") as tar:
            for path in sorted(directory.iterdir()):
                tar.add(path, arcname=path.name, filter=_anonymous)
    return changes


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _rename_archived_files(config: dict[str, Any], files: dict[str, Path], directory: Path) -> None:
    """The files that an archive holds for keys of its config get the keys' modern names."""
    # Which key becomes which is seen by marks in place of their values.
    marked = copy.deepcopy(config)
    values: dict[str, tuple[str, Any]] = {}
    for number, key in enumerate(files):
        if place := find_key(marked, key):
            holder, last = place
            values[f"\0{number}"] = key, holder[last]
            holder[last] = f"\0{number}"
    names: dict[str, Any] = {}
    for new_key, value in _strings(modernize(marked)[0]):
        if value in values:
            key, names[new_key] = values[value]
            if new_key != key:
                shutil.move(files[key], directory / FOLDER / new_key)
    (directory / NAMES_FILE).write_text(json.dumps(names), encoding="utf-8")


def _strings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """All strings of a config and their dotted keys."""
    if isinstance(value, str):
        yield path, value
        return
    if isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _strings(below, f"{path}.{key}" if path else str(key))
