"""Archives of AllenNLP 0.x: the names of their weights, and files that the config named."""

import os
import re
from pathlib import Path
from typing import Any

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import read_json
from transformer_elmo.pretrained.legacy.config import is_old
from transformer_elmo.pretrained.legacy.model import MATRIX_ATTENTION_MODELS
from transformer_elmo.pretrained.legacy.sections import type_of

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


# For some types of models: what names began with, and what they begin with now.
RENAMED = [
    (MATRIX_ATTENTION_MODELS, "_matrix_attention._similarity_function.", "_matrix_attention."),
    (("coref",), "_mention_pruner._scorer.0.", "_mention_feedforward."),
    (("coref",), "_mention_pruner._scorer.1.", "_mention_scorer."),
]

# A step of AllenNLP's own LSTM, which has become a module within it.
_LSTM_STEP = re.compile(r"(.+)\.((?:input|state)_linearity\.(?:weight|bias))")


def modern_weights(weights: dict[str, Any], config: Any) -> dict[str, Any]:
    """
    `weights`: tensors by name. `config`: the config of the experiment that they are from. Returns
    the same tensors in the same order, under the names that they have in AllenNLP 2. If the config
    isn't old, the same object.
    """
    if not is_old(config):
        return weights
    model, modern = config.get("model"), {}
    kind = type_of(model) if isinstance(model, dict) else ""
    for name, tensor in weights.items():
        for kinds, old, new in RENAMED:
            if kind in kinds and name.startswith(old):
                name = new + name.removeprefix(old)
        step = _LSTM_STEP.fullmatch(name)
        # The original ELMo's LSTM, which still has no such module, is told by its projection.
        if step and not (
            step[1].endswith(".cell") or f"{step[1]}.state_projection.weight" in weights
        ):
            name = f"{step[1]}.cell.{step[2]}"
        modern[name] = tensor
    return modern
