"""
Language models inside archives of models on top of them. Such an archive has the language model's
weights among its own; what else is needed of it, its config and its vocabulary, it carries in a
folder:

    language_models/KEY/config.json    the config of the language model's archive
    language_models/KEY/vocabulary/    its vocabulary
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import read_json
from transformer_elmo.pretrained.allennlp_config import LANGUAGE_MODELS

FOLDER = "language_models"
CONFIG, VOCABULARY = "config.json", "vocabulary"

EMBEDDERS = ("bidirectional_lm_token_embedder", "language_model_token_embedder")

# What of an archive's config says what its model is and how it reads.
SECTIONS = ("dataset_reader", "model", "vocabulary")


class Embedder(NamedTuple):
    """A token embedder over a language model, at a dotted key of the config of a model on top."""

    path: str
    section: dict[str, Any]

    @property
    def archive_file(self) -> str:
        """Where the language model was when the model on top was trained."""
        return str(self.section.get("archive_file"))

    def not_there(self, shown: str) -> ConfigurationError:
        """What to say where the archive of the model on top, `shown`, doesn't carry it."""
        return ConfigurationError(
            f"{shown} needs the language model that its config calls {self.archive_file}, which "
            "isn't there any more: archives of earlier versions, and of others, don't carry it. "
            f'Put it back, or say where it is now: -o \'{{"{self.path}.archive_file": "..."}}\'.'
        )


def embedders_in(experiment: Mapping[str, Any]) -> list[Embedder]:
    """All token embedders over language models in the config of a model."""
    return list(_embedders(experiment.get("model"), "model"))


def _embedders(value: Any, path: str) -> Iterator[Embedder]:
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return
    if value.get("type") in EMBEDDERS:
        yield Embedder(path, value)
    for key, below in value.items():
        yield from _embedders(below, f"{path}.{key}")


def is_language_model(experiment: Mapping[str, Any]) -> bool:
    """Whether a config is that of a language model itself."""
    model = experiment.get("model")
    return isinstance(model, dict) and model.get("type") in LANGUAGE_MODELS


def folder_of(run: Path, archive_file: str) -> Path:
    """Where a run or an unpacked archive has what it carries of the model at `archive_file`."""
    key = hashlib.sha256(archive_file.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return run / FOLDER / key


def carried_config(folder: Path, shown: str) -> dict[str, Any]:
    """What :func:`folder_of` has; a `ConfigurationError` if it isn't there or can't be read."""
    return read_json(folder / CONFIG, f"{folder.parent.name}/{folder.name}/{CONFIG} of {shown}")


def sections_of(experiment: Mapping[str, Any]) -> dict[str, Any]:
    """What is carried of a language model's config."""
    return {name: experiment[name] for name in SECTIONS if name in experiment}


def inner_weights(weights: Mapping[str, torch.Tensor], path: str) -> dict[str, torch.Tensor]:
    """
    The weights of the language model in a model on top of it, by their names in archives.

    `weights`: of the model on top. `path`: the dotted key of its token embedder: weights have its
    last part in their names.
    """
    prefixes = sorted({f"{name.partition('._lm.')[0]}._lm." for name in weights if "._lm." in name})
    name = path.rpartition(".")[2]
    fitting = [p for p in prefixes if p.endswith((f".token_embedder_{name}._lm.", f".{name}._lm."))]
    for prefix in (fitting or prefixes)[:1]:
        return {n[len(prefix) :]: t for n, t in weights.items() if n.startswith(prefix)}
    return {}
