"""What a model's parts are: the values that they are built from, as a model folder has them."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from transformer_elmo.errors import ConfigurationError

# The number of heads isn't configurable in the original either; weights depend on it.
NUM_HEADS = 8


@dataclass(frozen=True)
class CharactersConfig:
    """
    Words by their characters. `own_characters` are words that are one character each; layers don't
    depend on them.
    """

    num_characters: int
    character_dim: int
    filters: list[tuple[int, int]]
    num_highway: int
    projection_dim: int
    activation: str = "relu"
    projection_location: str = "after_highway"
    do_layer_norm: bool = False
    own_characters: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class WordIdsConfig:
    """Words by their numbers."""

    num_embeddings: int
    embedding_dim: int


@dataclass(frozen=True)
class ContextualizerConfig:
    """Two stacks of transformer layers."""

    input_dim: int
    hidden_dim: int
    num_layers: int
    dropout: float = 0.1
    input_dropout: float | None = None
    activation: str = "relu"


@dataclass(frozen=True)
class SoftmaxConfig:
    """
    `num_words`: rows, one more than the vocabulary has words. `num_samples`: `None`: trained on the
    full softmax.
    """

    num_words: int
    num_samples: int | None = None
    sparse: bool = False


def check_choice(name: str, value: Any, choices: Collection[str], hint: str = "") -> None:
    """Raises `ConfigurationError` if the value isn't one of the choices."""
    if value not in tuple(choices):
        expected = f"{name} must be one of {', '.join(choices)}"
        raise ConfigurationError(f"{expected}: got {value!r}.{hint}")
