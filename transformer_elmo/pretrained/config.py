"""
What a model is, without its weights: enough to build it, to read sentences as it wants them, and to
check that weights fit before anything is made.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, astuple, dataclass, field, fields, replace
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import torch

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.config import (
    CharactersConfig,
    ContextualizerConfig,
    SoftmaxConfig,
    WordIdsConfig,
)
from transformer_elmo.nn.language_model import LanguageModel
from transformer_elmo.nn.softmax import SampledSoftmaxLoss, Softmax, SoftmaxLoss
from transformer_elmo.nn.transformer import BidirectionalTransformer
from transformer_elmo.nn.word_encoder import WordEmbedding, WordEncoder
from transformer_elmo.pretrained.weights import Shape
from transformer_elmo.text.word_table import MAX_WORD_LENGTH, WORD_PADDING

ConfigT = TypeVar("ConfigT")

# Of integers, where it isn't 1. Each character has a row; no rows are as many as the vocabulary's.
_LEAST = {
    **{"num_highway": 0, "own_characters": 0, "num_embeddings": 0},
    "num_characters": WORD_PADDING + 2,
}


@dataclass(frozen=True)
class TextConfig:
    """
    How the model's text was read.

    `tokenizer`: as AllenNLP's configs describe it. `lowercase`: whether the words to predict are in
    lower case.
    """

    tokenizer: dict[str, Any] = field(default_factory=lambda: {"type": "just_spaces"})
    start_tokens: list[str] = field(default_factory=list)
    end_tokens: list[str] = field(default_factory=list)
    lowercase: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """
    `words_name`: what AllenNLP's text field calls the tokens that are embedded; weights' names have
    it.
    """

    words: CharactersConfig | WordIdsConfig
    contextualizer: ContextualizerConfig
    text: TextConfig
    softmax: SoftmaxConfig | None = None
    dropout: float = 0.0
    precision: str = "float32"
    words_name: str = "token_characters"

    def to_json(self) -> dict[str, Any]:
        """As `from_json` takes it."""
        value = asdict(self)
        if self.contextualizer.activation == "relu":
            # So that earlier versions, which know no other, open it.
            del value["contextualizer"]["activation"]
        return value

    @classmethod
    def from_json(cls, value: Any, source: str) -> "ModelConfig":
        """
        `source`: the file that it is from, for messages. Raises `ConfigurationError` if it isn't
        what `to_json` gives; the message names the key.
        """
        value = dict(_object(value, source))
        words = _object(value.get("words"), f"{source}.words")
        parts: dict[str, type[Any]] = {
            "words": CharactersConfig if "filters" in words else WordIdsConfig,
            "contextualizer": ContextualizerConfig,
            "text": TextConfig,
            "softmax": SoftmaxConfig,
        }
        for key, kind in parts.items():
            if key != "softmax" or value.get(key) is not None:
                value[key] = _filled(kind, value.get(key), f"{source}.{key}")
        return _filled(cls, value, source)

    def without_softmax(self) -> "ModelConfig":
        """The same model for vectors alone."""
        return replace(self, softmax=None)

    def build(self) -> LanguageModel:
        """The model, with random weights. Raises `ConfigurationError` if a value isn't possible."""
        words: torch.nn.Module
        if isinstance(self.words, CharactersConfig):
            own = self.words.own_characters
            if max(own.values(), default=0) + 1 >= self.words.num_characters:
                raise ConfigurationError(
                    f"words.own_characters: the characters are numbered below "
                    f"{self.words.num_characters - 1}, got {own!r:.80}."
                )
            widths = [width for width, _ in self.words.filters]
            if not 0 < max(widths, default=0) <= MAX_WORD_LENGTH:
                raise ConfigurationError(
                    f"words.filters: expected some of widths from 1 to {MAX_WORD_LENGTH}, got "
                    f"{widths!r:.80}."
                )
            words = WordEncoder(self.words)
        else:
            words = WordEmbedding(self.words)
        contextualizer = BidirectionalTransformer(self.contextualizer)
        dim = contextualizer.input_dim
        if words.output_dim != dim:
            raise ConfigurationError(
                f"Word vectors have {words.output_dim} dimensions, but the contextualizer's "
                f"input_dim is {dim}."
            )
        softmax: Softmax | None = None
        if self.softmax is not None:
            rows, samples, sparse = astuple(self.softmax)
            softmax = SampledSoftmaxLoss(rows, dim, samples, sparse) if samples else None
            softmax = softmax or SoftmaxLoss(rows, dim)
        model = LanguageModel(words, contextualizer, softmax, self.dropout, self.precision)
        model.config = self
        return model


# Keys of numbers of layers, and of sizes, beside those that end with `_dim`.
_LAYERS = ("num_layers", "num_highway", "num_filters")
_SIZES = ("num_embeddings", "num_characters", "num_words", "filters")


def check_sizes(section: Any, shapes: Mapping[str, Shape], source: str) -> None:
    """
    Compares a config with weights before a model is built from it: a number too large would take
    all memory, and an error of that doesn't name the key.

    `section`: a model's section, or any part of one. `shapes`: of the weights. `source`: what
    messages call the archive. Raises `ConfigurationError` if there are more layers than weights, or
    sizes that no weight has.
    """
    largest = max((size for shape in shapes.values() for size in shape), default=0)
    for path, key, value in _numbers(section, "model"):
        if key in _LAYERS:
            limit, what = len(shapes), f"there are only {len(shapes)} weights"
        elif key.endswith("_dim") or key in _SIZES:
            limit, what = largest, f"no dimension of a weight is larger than {largest}"
        else:
            continue
        if value > limit:
            raise ConfigurationError(f"{source}: the config has {path} = {value:,}, but {what}.")


def _numbers(value: Any, path: str, key: str = "") -> Iterator[tuple[str, str, int]]:
    """The dotted keys, last keys and values of all whole numbers, and the number of filters."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield path, key, value
    elif isinstance(value, dict):
        for name, below in value.items():
            yield from _numbers(below, f"{path}.{name}", name)
    elif isinstance(value, (list, tuple)):
        if path.endswith(".filters"):
            yield f"{path} (their number)", "num_filters", len(value)
        for number, below in enumerate(value):
            yield from _numbers(below, f"{path}.{number}", key)


def _object(value: Any, source: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigurationError(f"{source}: expected an object, got {value!r:.80}.")
    return value


def _filled(kind: type[ConfigT], value: Any, source: str) -> ConfigT:
    """A dataclass from a dictionary, with every value's type checked."""
    value = _object(value, source)
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for name in value:
        if name not in known:
            raise ConfigurationError(
                f"{source}: there is no key {name!r}; expected some of {', '.join(known)}."
            )
    for name, of in known.items():
        if name not in value and of.default is MISSING and of.default_factory is MISSING:
            raise ConfigurationError(f"{source}: the key {name!r} is missing.")
    types, result = get_type_hints(kind), {}
    for name, v in value.items():
        result[name] = _typed(v, types[name], f"{source}.{name}", _LEAST.get(name, 1))
    return kind(**result)


def _typed(value: Any, wanted: Any, source: str, least: int) -> Any:
    """The value, if it is of the type `wanted` and in its range: integers are `least` or more."""
    origin = get_origin(wanted)
    arguments: tuple[Any, ...] = get_args(wanted)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if origin in (Union, UnionType):
        *others, last = (kind for kind in arguments if value is None or kind is not type(None))
        for choice in others:
            with suppress(ConfigurationError):
                return _typed(value, choice, source, least)
        return _typed(value, last, source, least)
    if origin is list and isinstance(value, (list, tuple)):
        return [_typed(item, arguments[0], source, least) for item in value]
    if origin is tuple and isinstance(value, (list, tuple)) and len(value) == len(arguments):
        return tuple(_typed(item, kind, source, least) for item, kind in zip(value, arguments))
    if origin is dict and isinstance(value, dict):
        return {k: _typed(v, arguments[1], f"{source}.{k}", least) for k, v in value.items()}
    # All of these are rates of dropout.
    if wanted is float and is_number and 0 <= value <= 1:
        return float(value)
    if wanted is int and is_number and isinstance(value, int) and value >= least:
        return value
    if wanted is Any:
        return value
    if wanted not in (int, float) and isinstance(wanted, type) and isinstance(value, wanted):
        return value
    names = {int: f"int of at least {least}", float: "float from 0 to 1"}
    name = names.get(wanted) or getattr(wanted, "__name__", str(wanted).replace("typing.", ""))
    raise ConfigurationError(f"{source}: expected {name}, got {value!r:.80}.")


# How names of weights begin in archives, as AllenNLP's modules have called them since 2018 and the
# model folder does, and in `LanguageModel`.
_NAMES = {"_contextualizer.": "contextualizer.", "_softmax_loss.": "softmax."}
_NAMES_IN_WORDS = {
    "_embedding._module.": "embedding.",
    "_encoder._module.char_conv_": "convolutions.",
    "_encoder._module._highways._layers.": "highways.",
    "_encoder._module._projection.": "projection.",
    "_encoder._module._layer_norm.": "norm.",
}


def _names(config: ModelConfig) -> Iterator[tuple[str, str]]:
    yield from _NAMES.items()
    by_characters = isinstance(config.words, CharactersConfig)
    for old, new in (_NAMES_IN_WORDS if by_characters else {"": "embedding."}).items():
        yield f"_text_field_embedder.token_embedder_{config.words_name}.{old}", f"words.{new}"


def core_name(name: str, config: ModelConfig) -> str | None:
    """What `LanguageModel` calls a weight of an archive; `None` if it has no such weight."""
    for old, new in _names(config):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return None


def archive_name(name: str, config: ModelConfig) -> str:
    """The inverse of :func:`core_name`."""
    for old, new in _names(config):
        if name.startswith(new):
            return old + name.removeprefix(new)
    raise KeyError(name)
