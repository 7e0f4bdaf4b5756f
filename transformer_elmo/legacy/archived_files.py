"""Files that AllenNLP 0.x put into an archive because the config named them."""

import json
import os
from pathlib import Path
from typing import Any, Dict, List, Union

from transformer_elmo.errors import ConfigurationError

NAMES_FILE = "files_to_archive.json"
FOLDER = "fta"


def archived_files(directory: Union[str, os.PathLike]) -> Dict[str, Path]:
    """
    # Parameters

    directory : `Union[str, os.PathLike]`
        Where an archive was unpacked to.

    # Returns

    `Dict[str, Path]`
        The file for each dotted key of the config that names one. Empty for archives of AllenNLP 2.

    # Raises

    `ConfigurationError`
        If a file isn't in the archive's folder for such files.
    """
    names = Path(directory) / NAMES_FILE
    folder = (Path(directory) / FOLDER).resolve()
    if not names.is_file() or not folder.is_dir():
        return {}
    files = {}
    for key in json.loads(names.read_text(encoding="utf-8")):
        file = (folder / key).resolve()
        if folder not in file.parents:
            raise ConfigurationError(f"{names} names a file outside its archive: {key!r}.")
        if file.is_file():
            files[key] = file
    return files


def place_of(config: Any, key: str) -> List[Any]:
    """
    # Returns

    `List[Any]`
        The object that holds the dotted `key`, and the last part of the key (a number in a list).
        Empty where the config has no such key.
    """
    *above, last = key.split(".")
    for name in above:
        config = _item(config, name)
    if isinstance(config, list) and last.isdigit() and int(last) < len(config):
        return [config, int(last)]
    return [config, last] if isinstance(config, dict) and last in config else []


def _item(holder: Any, name: str) -> Any:
    if isinstance(holder, dict):
        return holder.get(name)
    if isinstance(holder, list) and name.isdigit() and int(name) < len(holder):
        return holder[int(name)]
    return None
