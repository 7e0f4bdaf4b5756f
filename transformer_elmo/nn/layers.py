"""
A language model's layers, from the word vectors at the bottom to the contextualizer's last one, and
what people call them: "mix", "all", "top", or a number.
"""

from numbers import Integral
from typing import List, Optional, Sequence, Union

import torch

from transformer_elmo.errors import ConfigurationError

Layers = Union[str, int]
"""`"mix"`, `"all"`, `"top"`, or a layer's number; 0 is the layer of word vectors."""


def layer_number(layers: Layers, num_layers: int, names: Sequence[str] = ("mix",)) -> Optional[int]:
    """
    # Parameters

    layers : `str` or `int`
    num_layers : `int`
        That of the word vectors included.
    names : `Sequence[str]`, optional (default = `("mix",)`)
        What stands for more than one layer.

    # Returns

    `int`, optional
        The number of one layer, from 0; `None` for what stands for more.

    # Raises

    `ConfigurationError`
        If there is no such layer.
    """
    if isinstance(layers, str) and layers in names:
        return None
    if layers == "top":
        return num_layers - 1
    is_number = isinstance(layers, Integral) and not isinstance(layers, bool)
    if not (is_number and -num_layers <= int(layers) < num_layers):
        named = ", ".join(f'"{name}"' for name in names)
        raise ConfigurationError(
            f'layers must be {named}, "top" or the number of a layer from 0 (word vectors) to '
            f"{num_layers - 1} (top): got {layers!r}."
        )
    return int(layers) % num_layers


def word_copies(word_dim: int, contextual_dim: int) -> int:
    """
    How often a word vector stands in its layer: once for each direction's half.

    # Raises

    `ConfigurationError`
        If the dimensions don't allow that.
    """
    if contextual_dim % word_dim:
        raise ConfigurationError(
            f"The language model has word vectors of dimension {word_dim} and contextual ones of "
            f"{contextual_dim}. To mix them, the latter must be a multiple of the former."
        )
    return contextual_dim // word_dim


def all_layers(
    word_vectors: torch.Tensor, contextual: Sequence[torch.Tensor]
) -> List[torch.Tensor]:
    """
    # Parameters

    word_vectors : `torch.Tensor`
        Shape `(batch_size, timesteps, word_dim)`.
    contextual : `Sequence[torch.Tensor]`
        Shapes `(batch_size, timesteps, dim)`.

    # Returns

    `List[torch.Tensor]`
        Shapes `(batch_size, timesteps, dim)`: the word vectors, as often as they fit, and then the
        contextual ones.
    """
    copies = word_copies(word_vectors.size(-1), contextual[0].size(-1))
    return [torch.cat([word_vectors] * copies, -1), *contextual]


def mixed(layers: Sequence[torch.Tensor], weights: Optional[Sequence[float]]) -> torch.Tensor:
    """
    A weighted sum of layers; by default their mean. Shape `(batch_size, timesteps, dim)`.
    """
    weights = [1 / len(layers)] * len(layers) if weights is None else weights
    result = layers[0] * float(weights[0])
    for weight, layer in zip(weights[1:], layers[1:]):
        result = result.add(layer, alpha=float(weight))
    return result
