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

from transformer_elmo.commands.arguments import add
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import check_can_write, write_text, written_whole
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
    Writes the modern form of a config file or of an archive. The file appears under its name only
    when it is complete.

    `old`: a config (`.jsonnet`, `.json`) or an archive (`.tar.gz`). `new`: what to write. `force`:
    whether `new` may be there already. `stock`: whether the result needs no parts of this package:
    see `without_this_package`. Raises `ConfigurationError` if `old` can't be read or understood, or
    `new` exists.
    """
    if not old.is_file():
        raise ConfigurationError(f"{old} is not a file.")
    if new.exists() and (new.is_dir() or new.samefile(old)):
        raise ConfigurationError(f"{new} can't be written: it is a folder, or the old file itself.")
    if new.exists() and not force:
        raise ConfigurationError(
            f"{new} exists. Choose another name, or overwrite it with --force."
        )
    check_can_write(new)
    if is_archive(old) != is_archive(new):
        raise ConfigurationError(
            f"{old} and {new}: an archive becomes an archive, a config a config."
        )
    if is_archive(old):
        return _convert_archive(old, new, stock)
    config = evaluated_file(old)
    if not isinstance(config, dict):
        raise ConfigurationError(f"{old} holds no object, so it is not a config.")
    modern, changes = modernize(config)
    check_trainer_keys(modern.get("trainer"))
    if stock:
        modern, more = without_this_package(modern)
        changes = [*changes, *more]
    write_text(new, json.dumps(modern, indent=2) + "\n")
    return changes


def is_archive(file: Path) -> bool:
    """Whether a file is an archive, by its name."""
    return file.name.endswith((".tar.gz", ".tgz"))


def _convert_archive(old: Path, new: Path, stock: bool) -> list[Change]:
    with tempfile.TemporaryDirectory(dir=new.parent, prefix=f".{new.name}.") as name:
        directory = Path(name)
        unpack(old, directory)
        config = archived_config(directory, str(old))
        modern, changes = modernize(config)
        files = archived_files(directory)
        if files:
            modern = _rename_archived_files(config, files, directory)
        if stock:
            modern, more = without_this_package(modern)
            changes = [*changes, *more]
        (directory / CONFIG).write_text(json.dumps(modern, indent=2) + "\n", encoding="utf-8")
        if (directory / WEIGHTS[0]).is_file():
            _convert_weights(directory / WEIGHTS[0], config)
        with written_whole(new) as file, tarfile.open(fileobj=file, mode="w:gz") as tar:
            for path in sorted(directory.iterdir()):
                tar.add(path, arcname=path.name, filter=_anonymous)
    return changes


def _convert_weights(file: Path, config: dict[str, Any]) -> None:
    weights = read_weights(file, shown=f"The archive's {file.name}")
    modern = modern_weights(weights, config)
    if modern.keys() != weights.keys():
        # The tensors are mapped from the old file, which keeps its content without a name.
        with written_whole(file) as new:
            torch.save(modern, new)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _rename_archived_files(
    config: dict[str, Any], files: dict[str, Path], directory: Path
) -> dict[str, Any]:
    """
    Renames the files that an archive holds for some keys of its config to the keys' modern names.

    Returns the modern config.
    """
    marked = copy.deepcopy(config)
    marks: dict[str, tuple[str, Any]] = {}
    for key in files:
        place = find_key(marked, key)
        if place:
            mark = f"\0{len(marks)}"
            marks[mark] = (key, place[0][place[1]])
            place[0][place[1]] = mark
    modern, _ = modernize(marked)
    modern = copy.deepcopy(modern)
    names: dict[str, Any] = {}
    for new_key, mark in list(_strings(modern)):
        if mark in marks:
            key, original = marks[mark]
            holder, last = find_key(modern, new_key)
            holder[last] = names[new_key] = original
            if new_key != key:
                shutil.move(str(files[key]), str(directory / FOLDER / new_key))
    (directory / NAMES_FILE).write_text(json.dumps(names), encoding="utf-8")
    return modern


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
