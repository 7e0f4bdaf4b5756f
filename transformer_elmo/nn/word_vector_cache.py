"""Vectors of words met before, for a word encoder whose weights stand still."""

import functools
import threading
from typing import Any, Callable, Optional, Sequence, Tuple, Type

import numpy as np
import torch
from numpy.typing import NDArray

from transformer_elmo.nn.weights_watch import WeightsWatch

# 65,536 words of the billion-word model take 150 MB; they are nine tenths and more of any English
# text.
WORDS_IN_CACHE = 2**16


def word_hashes(characters: torch.Tensor) -> torch.Tensor:
    """
    A number for each word, mostly different for different words. Whoever uses it must compare the
    words.

    # Parameters

    characters : `torch.Tensor`
        Shape `(num_words, num_characters)`, integers.

    # Returns

    `torch.Tensor`
        Shape `(num_words,)`, 64-bit integers.
    """
    return (characters * _factors(characters.size(1), characters.device)).sum(-1)


@functools.lru_cache(maxsize=16)
def _factors(width: int, device: torch.device) -> torch.Tensor:
    """Odd numbers, one for each character of a word."""
    generator = torch.Generator().manual_seed(width)
    factors = torch.randint(-(2**62), 2**62, (width,), generator=generator) * 2 + 1
    return factors.to(device)


class WordVectorCache:
    """
    Remembers what a function made of words, for as long as the weights that it depends on stay as
    they are and where they are. It never holds more than `max_words` words: when the next
    ones don't fit, it forgets all and begins again.

    # Parameters

    max_words : `int`, optional (default = `65536`)
    """

    def __init__(self, max_words: int = WORDS_IN_CACHE) -> None:
        self.max_words = max_words
        self._lock = threading.Lock()
        self._watch = WeightsWatch()
        self._made: Any = None
        self.clear()

    def clear(self) -> None:
        """Forgets all words."""
        self._num_words = 0
        # Sorted, and the row of each one's word.
        self._hashes: Optional[torch.Tensor] = None
        self._rows: Optional[torch.Tensor] = None
        # As many rows as have been needed, rounded up: words, and their vectors.
        self._words: Optional[torch.Tensor] = None
        self._vectors: Optional[torch.Tensor] = None

    def forget(self) -> None:
        """As `clear`, while other threads use it."""
        with self._lock:
            self._made = None
            self.clear()

    def __len__(self) -> int:
        return self._num_words

    def __reduce__(self) -> Tuple[Type["WordVectorCache"], Tuple[int]]:
        # Copies and pickles of a model begin with an empty one; a lock can't be copied.
        return type(self), (self.max_words,)

    def vectors(
        self,
        words: torch.Tensor,
        weights: Sequence[torch.Tensor],
        encode: Callable[[torch.Tensor], torch.Tensor],
        setting: Tuple = (),
    ) -> torch.Tensor:
        """
        # Parameters

        words : `torch.Tensor`
            Shape `(num_words, num_characters)`, each word once.
        weights : `Sequence[torch.Tensor]`
            All that `encode` depends on, besides the words.
        encode : `Callable[[torch.Tensor], torch.Tensor]`
            From words, shape `(n, num_characters)`, to vectors, shape `(n, dim)`.
        setting : `Tuple`, optional (default = `()`)
            What else it depends on, such as the precision.

        # Returns

        `torch.Tensor`
            Shape `(num_words, dim)`, without a gradient.
        """
        # Outside inference mode, or what is kept could never take part in training.
        with self._lock, torch.inference_mode(False), torch.no_grad():
            words = words.clone() if words.is_inference() else words
            if not self._watch.unchanged(weights, (*setting, words.device, words.size(1))):
                self._made = None
                self.clear()
            return self._vectors_of(words, encode)

    def kept(self, make: Callable[[], Any]) -> Any:
        """
        What `make` returns, kept while the weights stand still. For `encode` to call.
        """
        if self._made is None:
            self._made = make()
        return self._made

    def _vectors_of(
        self, words: torch.Tensor, encode: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        hashes = word_hashes(words)
        if self._hashes is None or self._rows is None:
            vectors = encode(words)
            self._remember(words, hashes, vectors)
            return vectors
        assert self._words is not None and self._vectors is not None
        place = torch.searchsorted(self._hashes, hashes).clamp_(max=self._num_words - 1)
        row = self._rows[place]
        # Two words may share a hash; then the second is never found, and encoded each time.
        taken = self._hashes[place] == hashes
        known = taken & (self._words[row] == words).all(-1)
        vectors = self._vectors[row]
        # Both in one copy, for which a host has to wait for its device.
        taken_known = torch.stack([taken, known]).cpu().numpy()
        missing = np.flatnonzero(~taken_known[1])
        if missing.size:
            places = _on_device(missing, words.device)
            encoded = encode(words[places])
            vectors[places] = encoded
            is_new = np.flatnonzero(~taken_known[0, missing])
            if is_new.size < missing.size:
                of_new = _on_device(is_new, words.device)
                places, encoded = places[of_new], encoded[of_new]
            self._remember(words[places], hashes[places], encoded)
        return vectors

    def _remember(self, words: torch.Tensor, hashes: torch.Tensor, vectors: torch.Tensor) -> None:
        if self._num_words + words.size(0) > self.max_words:
            self.clear()
        words, hashes, vectors = (tensor[: self.max_words] for tensor in (words, hashes, vectors))
        count = words.size(0)
        if not count:
            return
        start, stop = self._num_words, self._num_words + count
        self._words = _with_room(self._words, words, start, stop, self.max_words)
        self._vectors = _with_room(self._vectors, vectors, start, stop, self.max_words)
        rows = torch.arange(start, stop, device=words.device)
        if self._hashes is not None and self._rows is not None:
            hashes, rows = torch.cat([self._hashes, hashes]), torch.cat([self._rows, rows])
        hashes, order = hashes.sort()
        # Together, for memory may run out before.
        self._hashes, self._rows = hashes, rows[order]
        self._num_words = stop


def _on_device(numbers: NDArray[np.int64], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(numbers).to(device, non_blocking=True)


def _with_room(
    table: Optional[torch.Tensor], new: torch.Tensor, start: int, stop: int, most: int
) -> torch.Tensor:
    """`table` with `new` at `start:stop`, grown to twice its size if that is out of bounds."""
    if table is None or table.size(0) < stop:
        num_rows = min(most, max(stop, 2 * start, 1024))
        grown = new.new_zeros(num_rows, new.size(1))
        if table is not None:
            grown[:start] = table[:start]
        table = grown
    table[start:stop] = new
    return table
