"""
What is made of a model's weights and kept for as long as they are what they were: weights joined,
cast or laid out for a kernel, vectors of words met before, tables of them.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

# 65,536 words of the billion-word model take 150 MB; they are nine tenths and more of any English
# text.
WORDS_IN_CACHE = 2**16

# Bytes of 64-bit numbers that are added up, side by side in memory, which is twice as fast as one
# below the other. An odd number of them, so that no two columns change places unnoticed, nor the
# signs of all; fewer than a large matrix has in a row. Others are compared as they are.
_SUMMED = 8 * 129
_LARGE = 2**19

_unshared: ContextVar[bool] = ContextVar("unshared", default=False)


@contextmanager
def weights_unshared(unshared: bool) -> Iterator[None]:
    """
    Within the block, only what PyTorch counts changes weights: nobody else has been given them, who
    could do so through `.data` or an array. They needn't be read then: 223 MB for the billion-word
    model, half the time of a sentence.
    """
    token = _unshared.set(unshared)
    try:
        yield
    finally:
        _unshared.reset(token)


@torch.no_grad()
def checksum(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """
    What changes with any number of the weights, and if rows or columns change places. Sums are ten
    times as fast as any hash in PyTorch.
    """
    sums: list[torch.Tensor] = []
    others: list[torch.Tensor] = []
    for weight in weights:
        numbers = weight.reshape(-1)
        if numbers.numel() * numbers.itemsize > _LARGE:
            size = _SUMMED // numbers.itemsize
            count = numbers.numel() // size
            summed, numbers = numbers[: count * size], numbers[count * size :]
            if summed.data_ptr() % 8:
                summed = summed.clone()
            sums.append(summed.view(torch.int64).view(count, -1).sum(1))
        others.append(numbers)
    # Bytes are compared, for a NaN isn't equal to itself; eight at a time, which is faster.
    missing = -sum(map(torch.numel, others)) % 8
    return torch.cat([*sums, torch.cat([*others, others[0].new_zeros(missing)]).view(torch.int64)])


class Kept:
    """
    Something made of weights. It is derived: copies and pickles of a model begin without any. As
    PyTorch doesn't count changes through `.data` or an array that shares the memory, all numbers
    are read at each use, unless :func:`weights_unshared`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._made: Any = None
        self._described: list[Any] | None = None
        self._checksum: torch.Tensor | None = None
        # They hold on to the memory, so that nothing else can come to lie there.
        self._weights: list[torch.Tensor] = []

    def __reduce__(self) -> tuple[type["Kept"], tuple[()]]:
        # A lock can't be copied.
        return type(self), ()

    def forget(self) -> None:
        """Gives back the memory that it takes."""
        if self._made is not None:
            with self._lock:
                self._forget()

    def get(self, weights: Sequence[torch.Tensor], setting: tuple, make: Callable[[], Any]) -> Any:
        """What `make` returned when weights and `setting` were these. Nobody may change it."""
        with self._lock, torch.inference_mode(False), torch.no_grad():
            counted = not any(weight.is_inference() for weight in weights)
            described = [setting, *(_described(weight, counted) for weight in weights)]
            same = described == self._described
            if not (counted and _unshared.get()):
                before, self._checksum = self._checksum, checksum(weights)
                same = same and before is not None and torch.equal(before, self._checksum)
            elif not same:
                self._checksum = None
            if not same:
                # Not twice in memory.
                self._made = self._described = None
                self._made = make()
                self._described = described
                self._weights = [weight.detach() for weight in weights]
            return self._made


def _described(weight: torch.Tensor, counted: bool) -> tuple:
    version = weight._version if counted else None
    return weight.data_ptr(), version, weight.dtype, weight.shape, weight.stride()


class WordVectors:
    """
    Remembers what was made of words. It never holds more than `WORDS_IN_CACHE` of them: when the
    next ones don't fit, it forgets all and begins again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Where in the table a word's vector is, by the bytes of its characters.
        self._rows: dict[bytes, int] = {}
        self._table: torch.Tensor | None = None

    def get(
        self, words: torch.Tensor, encode: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """
        The vectors of distinct words, shape `(num_words, num_characters)`, without a gradient:
        shape `(num_words, dim)`. `encode` makes them of the new ones.
        """
        # Outside inference mode, or what is kept could never take part in training.
        with self._lock, torch.inference_mode(False), torch.no_grad():
            keys = [word.tobytes() for word in words.cpu().numpy()]
            new = [number for number, key in enumerate(keys) if key not in self._rows]
            if len(self._rows) + len(new) > WORDS_IN_CACHE:
                self._rows, new = {}, list(range(len(keys)))
            if len(new) > WORDS_IN_CACHE:
                return encode(words)
            if new:
                start, stop = len(self._rows), len(self._rows) + len(new)
                vectors = encode(words[torch.tensor(new).to(words.device, non_blocking=True)])
                self._table = _with_room(self._table, vectors, start, stop)
                # Last, for memory may run out before.
                self._rows.update(zip((keys[number] for number in new), range(start, stop)))
            assert self._table is not None
            rows = torch.tensor([self._rows[key] for key in keys])
            return self._table[rows.to(words.device, non_blocking=True)]


def _with_room(
    table: torch.Tensor | None, new: torch.Tensor, start: int, stop: int
) -> torch.Tensor:
    """`table` with `new` at `start:stop`, grown to twice its size if that is out of bounds."""
    if table is None or table.size(0) < stop:
        grown = new.new_empty(min(WORDS_IN_CACHE, max(stop, 2 * start, 1024)), new.size(1))
        if table is not None:
            grown[:start] = table[:start]
        table = grown
    table[start:stop] = new
    return table
