"""
A language model's layers, from the word vectors at the bottom to the contextualizer's last one, and
what people call them; and texts too long for one forward pass, cut into segments that overlap.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import NamedTuple, Union

import torch

from transformer_elmo.errors import ConfigurationError

Layers = Union[str, int]
"""`"mix"`, `"all"`, `"top"`, or a layer's number; 0 is the layer of word vectors."""


def layer_number(layers: Layers, num_layers: int, names: Sequence[str] = ("mix",)) -> int | None:
    """
    `num_layers`: that of the word vectors included. `names`: what stands for more than one layer.
    Returns the number of one layer, from 0; `None` for what stands for more. Raises
    `ConfigurationError` if there is no such layer.
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
    How often a word vector stands in its layer: once for each direction's half. Raises
    `ConfigurationError` if the dimensions don't allow that.
    """
    if contextual_dim % word_dim:
        raise ConfigurationError(
            f"The language model has word vectors of dimension {word_dim} and contextual ones of "
            f"{contextual_dim}. To mix them, the latter must be a multiple of the former."
        )
    return contextual_dim // word_dim


def all_layers(
    word_vectors: torch.Tensor, contextual: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """
    `word_vectors`: shape `(batch_size, timesteps, word_dim)`. `contextual`: shapes `(batch_size,
    timesteps, dim)`. Returns shapes `(batch_size, timesteps, dim)`: the word vectors, as often as
    they fit, and then the contextual ones.
    """
    copies = word_copies(word_vectors.size(-1), contextual[0].size(-1))
    return [torch.cat([word_vectors] * copies, -1), *contextual]


def mixed(layers: Sequence[torch.Tensor], weights: Sequence[float] | None) -> torch.Tensor:
    """A weighted sum of layers; by default their mean. Shape `(batch_size, timesteps, dim)`."""
    weights = [1 / len(layers)] * len(layers) if weights is None else weights
    result = layers[0] * float(weights[0])
    for weight, layer in zip(weights[1:], layers[1:]):
        result = result.add(layer, alpha=float(weight))
    return result


# The longest sentence that the embeddings' positions were made for. Vectors of longer ones are made
# in segments of this many tokens: attention costs the square of the length.
SEGMENT_LENGTH = 5000


class Segment(NamedTuple):
    """
    The tokens of a segment of a text, and those whose vectors are kept, both counted from the
    text's beginning. The rest is there to be read: what is near the edge of a segment has little on
    that side to be understood from.
    """

    begin: int
    end: int
    keep_begin: int
    keep_end: int


def segments(length: int, size: int) -> list[Segment]:
    """
    `length`: the text's number of tokens. `size`: the most tokens that a segment may have, at least
    4. An eighth of it on each side (at least one token) is only read, unless the text ends there.
    Returns their kept parts, one after the other, are the text. A single one if it is short enough.
    Raises `ConfigurationError` if `size` is less than 4.
    """
    if size < 4:
        raise ConfigurationError(
            f"A text can be cut into segments of at least 4 tokens, not of {size}."
        )
    context = max(1, size // 8)
    result: list[Segment] = []
    kept = 0
    while kept < length or not result:
        # The last one begins so early that it is full: it reads more then.
        begin = max(0, min(kept - context, length - size))
        end = min(begin + size, length)
        keep_end = end if end == length else end - context
        result.append(Segment(begin, end, kept, keep_end))
        kept = keep_end
    return result


@dataclass(frozen=True)
class Job:
    """
    Tokens to be embedded together.

    `tokens`: none for a sentence without words. `keep`: those whose vectors are wanted.
    `ends_sentence`: whether the next job is of another sentence. `sentence`: the number of its
    sentence, from 0.
    """

    tokens: list[str]
    keep: slice
    ends_sentence: bool
    sentence: int

    def __len__(self) -> int:
        return len(self.tokens)


def jobs_of(
    sentences: Iterable[Sequence[str]],
    start_tokens: Sequence[str],
    end_tokens: Sequence[str],
    segment_length: int | None,
) -> Iterator[Job]:
    """
    `sentences`: their words. `start_tokens`, `end_tokens`: boundary tokens, which are read and not
    kept. `segment_length`: sentences of more tokens are cut into segments of so many; `None` never
    cuts. Returns what they keep, one after the other, are the words.
    """
    for number, words in enumerate(sentences):
        tokens = [*start_tokens, *words, *end_tokens] if words else []
        first, last = (len(start_tokens), len(tokens) - len(end_tokens)) if words else (0, 0)
        size = max(4, len(tokens)) if segment_length is None else segment_length
        for part in segments(len(tokens), size):
            begin, end = max(part.keep_begin, first), min(part.keep_end, last)
            kept = slice(begin - part.begin, max(begin, end) - part.begin)
            is_last = part.end == len(tokens)
            yield Job(tokens[part.begin : part.end], kept, is_last, number)
