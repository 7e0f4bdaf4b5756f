"""Files that AllenNLP 0.x put into an archive because the config named them."""

import os
from pathlib import Path
from typing import Any

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import read_json

NAMES_FILE = "files_to_archive.json"
FOLDER = "fta"


def archived_files(directory: str | os.PathLike) -> dict[str, Path]:
    """
    `directory`: where an archive was unpacked to. Returns the file for each dotted key of the
    config that names one. Empty for archives of AllenNLP 2. Raises `ConfigurationError` if a file
    isn't in the archive's folder for such files, or the list of them is damaged.
    """
    names = Path(directory) / NAMES_FILE
    folder = (Path(directory) / FOLDER).resolve()
    if not names.is_file() or not folder.is_dir():
        return {}
    try:
        files = {key: (folder / key).resolve() for key in read_json(names)}
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{names} is no list of files: {error}") from None
    for key, file in files.items():
        if folder not in file.parents:
            raise ConfigurationError(f"{names} names a file outside its archive: {key!r}.")
    return {key: file for key, file in files.items() if file.is_file()}


def find_key(config: Any, key: str) -> list[Any]:
    """
    Returns the object that holds the dotted `key`, and the last part of the key (a number in a
    list). Empty where the config has no such key.
    """
    holder, place = None, config
    name: Any = ""
    for name in key.split("."):
        holder = place
        if isinstance(holder, list) and name in map(str, range(len(holder))):
            name = int(name)
        elif not (isinstance(holder, dict) and name in holder):
            return []
        place = holder[name]
    return [holder, name]
