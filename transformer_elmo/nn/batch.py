"""
A batch of sentences as a model takes it; and where its tokens stand: in the batch, in the matrix
that linear layers work on, and in the sentences that attention reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from transformer_elmo.nn.kernels.attention import causal_attention
from transformer_elmo.nn.kernels.dropout import Dropout
from transformer_elmo.nn.kernels.gather_rows import gather_rows
from transformer_elmo.text.reader import WordReader


@dataclass(frozen=True)
class HostLengths:
    """
    What the host knows of a batch that is on a device, so that it needn't wait for it.

    `lengths`: shape `(batch_size,)`: the tokens of each sentence, which come first in their rows.
    `longest_word`: how many characters the longest word has, with the marks around it.
    """

    lengths: NDArray[np.int64] | None = None
    longest_word: int | None = None


@dataclass(frozen=True)
class WordBatch:
    """
    `characters`: shape `(num_distinct + 1, num_characters)`: each distinct word once; row 0 is for
    padding. `word_index`: shape `(batch_size, timesteps)`: the row of each word, 0 where padded.
    `token_ids`: shape `(batch_size, timesteps)`: the vocabulary's numbers, 0 where padded.
    """

    characters: torch.Tensor
    word_index: torch.Tensor
    token_ids: torch.Tensor | None = None
    facts: HostLengths = HostLengths()

    @property
    def mask(self) -> torch.Tensor:
        """Shape `(batch_size, timesteps)`, boolean; `False` at padding."""
        return self.word_index > 0

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], device: torch.device) -> "WordBatch":
        """`arrays`: as `WordReader.arrays` gives them."""
        tensors = {
            name: torch.from_numpy(arrays[name]).long().to(device, non_blocking=True)
            for name in ("characters", "word_index", "token_ids")
            if name in arrays
        }
        facts = HostLengths(arrays["lengths"], longest_word(arrays["characters"]))
        return cls(**tensors, facts=facts)


def longest_word(characters: NDArray[Any]) -> int:
    """
    `characters`: shape `(num_words, num_characters)`. The last column is padding, but for the
    longest words. Returns how many characters of a word come before its padding, at most.
    """
    differs = (characters != characters[:, -1:]).any(0)
    return int(np.flatnonzero(differs)[-1]) + 1 if differs.any() else 0


class BatchReader(WordReader):
    """A `WordReader` that makes batches."""

    def batch(
        self, sentences: Sequence[Sequence[str]], device: torch.device, with_ids: bool = True
    ) -> WordBatch:
        """`sentences`: their tokens with boundaries. `with_ids`: whether numbers are wanted."""
        return WordBatch.from_arrays(self.arrays(sentences, with_ids), device)


Index = NDArray[np.int64]

# Moving the tokens costs about as much as this share of a layer.
PADDING_WORTH_REMOVING = 0.05


class PackedBatch:
    """
    A batch, and both directions' orders of its tokens.

    `mask`: shape `(batch_size, timesteps)`; `True` for tokens. `lengths`: shape `(batch_size,)`:
    how many tokens each row has, if they come first in it and the host knows. Where the mask is on
    another device, the host needn't wait for it then. `tokens`: shape `(num_tokens,)`: each token's
    place in the flattened batch, in reading order. `forward`, `backward`: a batch whose sentences
    are pushed to the left, and for the backward direction reversed within their own length. In that
    order, "causal" means the same for both directions. `with_next`, `with_previous`: shapes
    `(num_pairs,)`: the tokens, by their numbers in `tokens`, that have another one after or before
    them in their sentence.
    """

    def __init__(self, mask: torch.Tensor, lengths: Index | None = None) -> None:
        self.mask = mask
        self.timesteps = mask.size(1)
        # Counting on the host is a millisecond; in sixty small kernels on a device it takes longer.
        present = (
            mask.cpu().numpy() if lengths is None else np.arange(self.timesteps) < lengths[:, None]
        )
        padded = bool(present.sum() >= (1.0 - PADDING_WORTH_REMOVING) * present.size > 0)
        indices = _on_device(_indices(present, padded), mask.device)
        self.tokens, self.with_next, self.with_previous, *layouts = indices
        self.forward = DirectionLayout(mask.shape, padded, layouts[:4])
        self.backward = DirectionLayout(mask.shape, padded, layouts[4:])

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """From shape `(batch_size, timesteps, dim)` to `(num_tokens, dim)`."""
        return gather_rows(padded.reshape(-1, padded.size(-1)), self.tokens)

    def unpack(
        self, forward: torch.Tensor, backward: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """
        From the rows of both directions, each of shape `(num_rows, dim)`, to shape `(batch_size,
        timesteps, 2 * dim)` and the type given; zero at padding.
        """
        halves = [self.forward.batch_of_rows(forward), self.backward.batch_of_rows(backward)]
        batch = torch.cat(halves, -1).to(dtype)
        if self.tokens.numel() < self.mask.numel():
            batch.mul_(self.mask.reshape(-1, 1))
        return batch.view(*self.mask.shape, batch.size(-1))


def _indices(present: NDArray[np.bool_], padded: bool) -> list[Index]:
    """The numbers behind a `PackedBatch` and its `DirectionLayout`s, worked out on the host."""
    batch_size, timesteps = present.shape
    rank = present.cumsum(-1, dtype=np.int64)
    length = rank[:, -1:] if timesteps else rank
    tokens = np.flatnonzero(present)
    numbers = np.arange(len(tokens))
    indices = [tokens, numbers[(rank < length)[present]], numbers[(rank > 1)[present]]]
    begin = np.arange(batch_size)[:, None] * timesteps
    # Padding goes behind the sentence, so that every place of the batch goes to one.
    behind = length + (~present).cumsum(-1) - 1
    for columns in (rank - 1, length - rank):
        places = (begin + np.where(present, columns, behind)).reshape(-1)
        token_places = places[tokens]
        # Idle places get the first token's vector: nothing reads what becomes of it.
        token_of_place = np.zeros_like(places)
        token_of_place[token_places] = numbers
        to_batch, back = np.zeros_like(places), tokens
        if padded:
            # Row by row of the whole batch.
            to_batch, back = places, np.empty_like(places)
            back[places] = np.arange(len(places))
        else:
            to_batch[tokens] = numbers
        indices += [token_of_place, token_places, to_batch, back]
    return indices


def _on_device(indices: Sequence[Index], device: torch.device) -> tuple[torch.Tensor, ...]:
    """All of them in one copy."""
    block = torch.from_numpy(np.concatenate(indices))
    if device.type == "cuda":
        block = block.pin_memory()
    block = block.to(device, non_blocking=True)
    return block.split([len(index) for index in indices])


class DirectionLayout:
    """
    How one direction's layers hold the tokens: as rows of a matrix, from which attention makes
    sentences.

    With much padding, the rows are the tokens alone, and each layer's attention puts them
    in their places and takes them out again. With little, they are all places of the
    batch in the direction's order: a few idle rows cost less than moving all others in every layer.

    `shape`: the batch's: `(batch_size, timesteps)`. `padded`: whether the rows are all places of
    the batch. `indices`: which token each place of this order has, shape `(num_places,)`; the place
    of each token, shape `(num_tokens,)`; and from rows to the batch and back.
    """

    def __init__(self, shape: torch.Size, padded: bool, indices: Sequence[torch.Tensor]) -> None:
        self.shape, self.padded = shape, padded
        self._token_of_place, self._place_of_token, *self._rows_to_batch = indices

    def rows(self, tokens: torch.Tensor) -> torch.Tensor:
        """From shape `(num_tokens, dim)` to `(num_rows, dim)`."""
        if self.padded:
            return gather_rows(tokens, self._token_of_place, self._place_of_token)
        return tokens

    def tokens_of_rows(self, rows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Those of the tokens with some numbers, each once. Shape `(numbers.numel(), dim)`."""
        return gather_rows(
            rows, self._place_of_token.index_select(0, numbers) if self.padded else numbers
        )

    def attended(self, rows: torch.Tensor, num_heads: int, dropout: Dropout) -> torch.Tensor:
        """
        Causal attention in this order.

        `rows`: shape `(num_rows, 3 * dim)`: queries, keys and values, one beside the other.
        `dropout`: on the attention probabilities. Returns shape `(num_rows, dim)`.
        """
        if not self.padded:
            # Finite at padding.
            rows = gather_rows(rows, self._token_of_place, self._place_of_token)
        heads = rows.view(*self.shape, 3, num_heads, rows.size(-1) // (3 * num_heads))
        # Each of shape `(batch_size, num_heads, timesteps, dim / num_heads)`.
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = causal_attention(query, key, value, dropout).transpose(1, 2)
        rows = attended.reshape(self.shape.numel(), rows.size(-1) // 3)
        return rows if self.padded else gather_rows(rows, self._place_of_token)

    def batch_of_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """
        From shape `(num_rows, dim)` to `(batch_size * timesteps, dim)`, each token where it stands
        in the batch. What is at padding must not be used.
        """
        to_batch, back = self._rows_to_batch
        return gather_rows(rows, to_batch, back)
