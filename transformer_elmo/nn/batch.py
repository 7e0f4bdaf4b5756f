"""A batch of sentences as a model takes it."""

from dataclasses import dataclass, fields
from typing import Any, Mapping, Optional, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from transformer_elmo.text.sentences import WordReader


@dataclass(frozen=True)
class HostFacts:
    """
    What the host knows of a batch that is on a device, so that it needn't wait for it.

    # Attributes

    lengths : `NDArray[int64]`
        Shape `(batch_size,)`: the tokens of each sentence, which come first in their rows.
    longest_word : `int`
        How many characters the longest word has, with the marks around it.
    """

    lengths: NDArray[np.int64]
    longest_word: int


@dataclass(frozen=True)
class WordBatch:
    """
    # Attributes

    characters : `torch.Tensor`
        Shape `(num_distinct + 1, num_characters)`: each distinct word once; row 0 is for padding.
    word_index : `torch.Tensor`
        Shape `(batch_size, timesteps)`: the row of each word, 0 where padded.
    token_ids : `torch.Tensor`, optional
        Shape `(batch_size, timesteps)`: the vocabulary's numbers, 0 where padded.
    facts : `HostFacts`, optional
    """

    characters: torch.Tensor
    word_index: torch.Tensor
    token_ids: Optional[torch.Tensor] = None
    facts: Optional[HostFacts] = None

    @property
    def mask(self) -> torch.Tensor:
        """Shape `(batch_size, timesteps)`, boolean; `False` at padding."""
        return self.word_index > 0

    @property
    def lengths(self) -> Optional[NDArray[np.int64]]:
        return None if self.facts is None else self.facts.lengths

    @property
    def longest_word(self) -> Optional[int]:
        return None if self.facts is None else self.facts.longest_word

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], device: torch.device) -> "WordBatch":
        """
        # Parameters

        arrays : `Mapping[str, NDArray]`
            As `WordReader.arrays` gives them.
        device : `torch.device`
        """
        names = {field.name for field in fields(cls)}
        tensors = {
            name: torch.from_numpy(array).long().to(device, non_blocking=True)
            for name, array in arrays.items()
            if name in names
        }
        facts = HostFacts(arrays["lengths"], longest_word(arrays["characters"]))
        return cls(**tensors, facts=facts)


def longest_word(characters: NDArray[Any]) -> int:
    """
    # Parameters

    characters : `NDArray[int]`
        Shape `(num_words, num_characters)`. The last column is padding, but for the longest words.

    # Returns

    `int`
        How many characters of a word come before its padding, at most.
    """
    differs = (characters != characters[:, -1:]).any(0)
    return int(np.flatnonzero(differs)[-1]) + 1 if differs.any() else 0


class BatchReader(WordReader):
    """A `WordReader` that makes batches."""

    def batch(
        self, sentences: Sequence[Sequence[str]], device: torch.device, with_ids: bool = True
    ) -> WordBatch:
        """
        # Parameters

        sentences : `Sequence[Sequence[str]]`
            Their tokens, boundary tokens included.
        device : `torch.device`
        with_ids : `bool`, optional (default = `True`)
            Whether the vocabulary's numbers are wanted.
        """
        return WordBatch.from_arrays(self.arrays(sentences, with_ids), device)
