"""Files of AllenNLP 0.x, configs and archives, written anew for AllenNLP 2."""

import copy
import json
import os
import pickle
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import torch
from allennlp.models.archival import _WEIGHTS_NAME, CONFIG_NAME

from transformer_elmo.archived_models import read_json
from transformer_elmo.archives import unpack
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.legacy.archived_files import FOLDER, NAMES_FILE, archived_files, place_of
from transformer_elmo.legacy.changes import Change
from transformer_elmo.legacy.config import modernize
from transformer_elmo.legacy.weights import modern_weights
from transformer_elmo.plugin.compat.config_files import evaluated_file


def convert(old: Path, new: Path, force: bool = False) -> List[Change]:
    """
    Writes the modern form of a config file or of an archive. The file appears under its name only
    when it is complete.

    # Parameters

    old : `Path`
        A config (`.jsonnet`, `.json`) or an archive (`.tar.gz`).
    new : `Path`
        What to write.
    force : `bool`, optional (default = `False`)
        Whether `new` may be there already.

    # Returns

    `List[Change]`

    # Raises

    `ConfigurationError`
        If `old` can't be read or understood, or `new` exists.
    """
    if not old.is_file():
        raise ConfigurationError(f"{old} is not a file.")
    if new.exists() and (new.is_dir() or new.samefile(old)):
        raise ConfigurationError(f"{new} can't be written: it is a folder, or the old file itself.")
    if new.exists() and not force:
        raise ConfigurationError(
            f"{new} exists. Choose another name, or overwrite it with --force."
        )
    if not new.parent.is_dir():
        raise ConfigurationError(f"The folder {new.parent} does not exist.")
    if is_archive(old) != is_archive(new):
        raise ConfigurationError(
            f"{old} and {new}: an archive becomes an archive, a config a config."
        )
    with tempfile.TemporaryDirectory(dir=new.parent, prefix=f".{new.name}.") as directory:
        part = Path(directory) / "part"
        if is_archive(old):
            changes = _convert_archive(old, part)
        else:
            modern, changes = modernize(_object(evaluated_file(old), old))
            _write(modern, part)
        os.replace(part, new)
    return changes


def is_archive(file: Path) -> bool:
    """Whether a file is an archive, by its name."""
    return file.name.endswith((".tar.gz", ".tgz"))


def _object(config: Any, file: Path) -> Dict[str, Any]:
    if not isinstance(config, dict):
        raise ConfigurationError(f"{file} holds no object, so it is not a config.")
    return config


def _write(config: Any, file: Path) -> None:
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _convert_archive(old: Path, new: Path) -> List[Change]:
    with tempfile.TemporaryDirectory(dir=new.parent) as name:
        directory = Path(name)
        unpack(old, directory)
        config_file = directory / CONFIG_NAME
        if not config_file.is_file():
            raise ConfigurationError(f"{old} has no {CONFIG_NAME}, so it is not a model archive.")
        config = read_json(directory, str(old))
        modern, changes = modernize(config)
        files = archived_files(directory)
        if files:
            modern = _rename_archived_files(config, files, directory)
        _write(modern, config_file)
        if (directory / _WEIGHTS_NAME).is_file():
            _convert_weights(directory / _WEIGHTS_NAME, config)
        with tarfile.open(new, "w:gz") as tar:
            for path in sorted(directory.iterdir()):
                tar.add(path, arcname=path.name, filter=_anonymous)
    return changes


def _convert_weights(file: Path, config: Dict[str, Any]) -> None:
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise ConfigurationError(
            f"The archive's {file.name} holds something other than tensors, or is damaged: "
            f"{str(error).strip().splitlines()[0]}"
        ) from None
    modern = modern_weights(weights, config)
    if modern.keys() != weights.keys():
        torch.save(modern, file)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _rename_archived_files(
    config: Dict[str, Any], files: Dict[str, Path], directory: Path
) -> Dict[str, Any]:
    """
    Renames the files that an archive holds for some keys of its config to the keys' modern names.

    # Returns

    `Dict[str, Any]`
        The modern config.
    """
    marked = copy.deepcopy(config)
    marks: Dict[str, Tuple[str, Any]] = {}
    for key in files:
        place = place_of(marked, key)
        if place:
            mark = f"\0{len(marks)}"
            marks[mark] = (key, place[0][place[1]])
            place[0][place[1]] = mark
    modern, _ = modernize(marked)
    modern = copy.deepcopy(modern)
    names: Dict[str, Any] = {}
    for new_key, mark in list(_strings(modern)):
        if mark in marks:
            key, original = marks[mark]
            holder, last = place_of(modern, new_key)
            holder[last] = names[new_key] = original
            if new_key != key:
                shutil.move(str(files[key]), str(directory / FOLDER / new_key))
    (directory / NAMES_FILE).write_text(json.dumps(names), encoding="utf-8")
    return modern


def _strings(value: Any, path: str = "") -> Iterator[Tuple[str, str]]:
    """All strings of a config and their dotted keys."""
    if isinstance(value, str):
        yield path, value
        return
    if isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _strings(below, f"{path}.{key}" if path else str(key))
