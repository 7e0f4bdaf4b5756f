"""
Language models inside archives of models on top of them. Such an archive has the language model's
weights among its own; what else is needed of it, its config and its vocabulary, it carries in a
folder:

    language_models/KEY/config.json    the config of the language model's archive
    language_models/KEY/vocabulary/    its vocabulary

Archives of others carry nothing: then the shapes of the weights say what the model is.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from transformer_elmo.files import read_json
from transformer_elmo.pretrained.allennlp_config import LANGUAGE_MODELS
from transformer_elmo.pretrained.config import (
    CharactersConfig,
    ContextualizerConfig,
    ModelConfig,
    Shape,
    SoftmaxConfig,
    TextConfig,
    WordIdsConfig,
)

FOLDER = "language_models"
CONFIG, VOCABULARY = "config.json", "vocabulary"

EMBEDDERS = ("bidirectional_lm_token_embedder", "language_model_token_embedder")

# What of an archive's config says what its model is and how it reads.
SECTIONS = ("dataset_reader", "model", "vocabulary")

BOUNDARIES = ("<S>", "</S>")


class Embedder(NamedTuple):
    """
    A token embedder over a language model in the config of a model on top.

    `path`: its dotted key.
    """

    path: str
    section: dict[str, Any]

    @property
    def archive_file(self) -> str:
        """Where the language model was when the model on top was trained."""
        return str(self.section.get("archive_file"))

    @property
    def boundaries(self) -> tuple[str, ...]:
        """The tokens around each sentence."""
        return tuple(self.section.get("bos_eos_tokens", BOUNDARIES) or ())


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
    """
    Where the folder of a training run, or an archive that is unpacked, has what it carries of the
    language model that its config calls `archive_file`.
    """
    key = hashlib.sha256(archive_file.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return run / FOLDER / key


def carried_config(folder: Path, shown: str) -> dict[str, Any]:
    """
    `folder`: see :func:`folder_of`. `shown`: what messages call the archive. Raises
    `ConfigurationError` if there is no config, or it can't be read.
    """
    return read_json(folder / CONFIG, f"{folder.parent.name}/{folder.name}/{CONFIG} of {shown}")


def sections_of(experiment: Mapping[str, Any]) -> dict[str, Any]:
    """What is carried of a language model's config."""
    return {name: experiment[name] for name in SECTIONS if name in experiment}


_OF_EMBEDDER = re.compile(r"(.*?)\._lm\.")


def inner_weights(weights: Mapping[str, torch.Tensor], path: str) -> dict[str, torch.Tensor]:
    """
    The weights of the language model in a model on top of it, by their names in archives.

    `weights`: of the model on top. `path`: the dotted key of its token embedder: weights have its
    last part in their names.
    """
    prefixes = sorted({m[0] for m in map(_OF_EMBEDDER.match, weights) if m})
    name = path.rpartition(".")[2]
    fitting = [p for p in prefixes if p.endswith((f".token_embedder_{name}._lm.", f".{name}._lm."))]
    for prefix in (fitting or prefixes)[:1]:
        return {n[len(prefix) :]: t for n, t in weights.items() if n.startswith(prefix)}
    return {}


def inferred_config(
    shapes: Mapping[str, Shape], boundaries: tuple[str, ...] = BOUNDARIES
) -> ModelConfig | None:
    """
    What a language model is, by the shapes of its weights. They don't tell the activation after its
    convolutions, which is taken to be a ReLU, as in all published models.

    `shapes`: of the weights, by their names in archives. Returns `None` if these aren't the weights
    of a bidirectional transformer.
    """
    transformer = "_contextualizer._forward_transformer.layers"
    hidden = shapes.get(f"{transformer}.0.feed_forward.w_1.weight")
    found = re.compile(r"_text_field_embedder\.token_embedder_(.+?)\.(.+)")
    of_words: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        match = found.fullmatch(name)
        if match:
            of_words.setdefault(match[1], {})[match[2]] = shape
    if hidden is None or len(of_words) != 1:
        return None
    ((words_name, word_shapes),) = of_words.items()
    words: Any = _characters(word_shapes)
    if words is None:
        if set(word_shapes) != {"weight"}:
            return None
        words = WordIdsConfig(word_shapes["weight"][0], word_shapes["weight"][1])
    layers = {int(m[1]) for m in map(re.compile(rf"{transformer}\.(\d+)\.").match, shapes) if m}
    text = TextConfig(
        start_tokens=list(boundaries[:1]), end_tokens=list(boundaries[1:] if boundaries else [])
    )
    contextualizer = ContextualizerConfig(hidden[1], hidden[0], len(layers))
    return ModelConfig(
        words, contextualizer, text, _softmax(shapes, hidden[1]), words_name=words_name
    )


def _characters(shapes: Mapping[str, Shape]) -> CharactersConfig | None:
    encoder = "_encoder._module"
    embedding = shapes.get("_embedding._module.weight")
    projection = shapes.get(f"{encoder}._projection.weight")
    filters: list[tuple[int, int]] = []
    while (shape := shapes.get(f"{encoder}.char_conv_{len(filters)}.weight")) is not None:
        filters.append((shape[2], shape[0]))
    if embedding is None or projection is None or not filters:
        return None
    highways = [shape for name, shape in shapes.items() if "_highways" in name and len(shape) == 2]
    num_filters = sum(number for _, number in filters)
    after_cnn = bool(highways) and highways[0][1] != num_filters
    return CharactersConfig(
        embedding[0],
        embedding[1],
        filters,
        len(highways),
        projection[0],
        projection_location="after_cnn" if after_cnn else "after_highway",
        do_layer_norm=f"{encoder}._layer_norm.gamma" in shapes,
    )


def _softmax(shapes: Mapping[str, Shape], dim: int) -> SoftmaxConfig | None:
    for suffix in ("", ".weight"):
        weight = shapes.get(f"_softmax_loss.softmax_w{suffix}")
        if weight is None:
            continue
        (rows,) = {*weight} - {dim} or {dim}
        if not suffix and weight[0] == dim:
            return SoftmaxConfig(rows)
        # How many were drawn matters in training alone.
        return SoftmaxConfig(rows, min(8192, rows - 1), bool(suffix))
    return None
