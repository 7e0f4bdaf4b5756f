"""
Finds all the words of a text in a vocabulary at once.

A Python dictionary needs an object for each word of the text, and holds the interpreter's lock
while it looks them up. Here the words never become objects: a word of up to 16 bytes is two 64-bit
numbers, its first eight bytes and its last eight, and a hash table of such numbers is searched by
array operations, for all words together. What is compared are the words themselves, not their
hashes, so the answer is exact.
"""

from typing import List, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

MAX_BYTES = 16
"""
Longer words are not looked for: two numbers couldn't tell them apart.
"""

# What `str.split` takes for white space among the characters of one byte; all others are in
# _WIDE_SPACES.
_IS_SPACE = np.array([not chr(byte).split() and byte < 128 for byte in range(256)])
_WIDE_SPACES = [chr(code) for code in range(128, 0x10000) if not chr(code).split()]

# The first eight bytes of a word of so many bytes.
_MASKS = np.array([2 ** (8 * min(length, 8)) - 1 for length in range(9)], dtype=np.uint64)

# Odd numbers without a pattern, to spread words over the table.
_MIX = [np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)]


class WordHashTable:
    """
    A hash table from words to rows.

    # Parameters

    words : `Sequence[str]`
        Distinct words.
    first_row : `int`
        The row of the first one, at least 1. The others follow.
    """

    def __init__(self, words: Sequence[str], first_row: int) -> None:
        # A lone surrogate comes out as bytes that no text has.
        encoded = [word.encode("utf-8", "surrogatepass") for word in words]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        starts = np.cumsum(lengths) - lengths
        heads, tails = _numbers(b"".join(encoded), starts, starts + lengths)

        num_rows = first_row + len(words)
        self._heads = np.zeros(num_rows, dtype=np.uint64)
        self._tails = np.zeros(num_rows, dtype=np.uint64)
        # No word has the length of a row that isn't a word's.
        self._lengths = np.full(num_rows, -1, dtype=np.int64)
        self._heads[first_row:], self._tails[first_row:] = heads, tails
        self._lengths[first_row:] = lengths

        # At least twice as many slots as words: most words are found where they are looked for
        # first.
        self._shift = np.uint64(64 - max(10, len(words).bit_length() + 1))
        self._slots = np.zeros(1 << (64 - int(self._shift)), dtype=np.int32)
        rows = first_row + np.flatnonzero((lengths > 0) & (lengths <= MAX_BYTES))
        slots = self._first_slots(self._heads[rows], self._tails[rows], self._lengths[rows])
        while len(rows):
            free = self._slots[slots] == 0
            # Where several want one slot the last one gets it, so the first, most frequent, is put
            # last.
            self._slots[slots[free][::-1]] = rows[free][::-1]
            left = self._slots[slots] != rows
            rows, slots = rows[left], self._next(slots[left])

    def find(
        self, text: str
    ) -> Tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64], bytes]:
        """
        # Parameters

        text : `str`

        # Returns

        rows : `NDArray[int32]`
            Shape `(num_words,)`: the row of each word of `text.split()`; 0 if it has none or is
            longer than 16 bytes.
        starts, ends : `NDArray[int64]`
            Shape `(num_words,)`: where each word begins and ends in `data`.
        data : `bytes`
            The text as UTF-8, with plain spaces for all the spaces of more than one byte.
        """
        if not text.isascii():
            for space in _WIDE_SPACES:
                if space in text:
                    text = text.replace(space, " ")
        data = text.encode("utf-8")
        is_space = np.ones(len(data) + 2, dtype=bool)
        _IS_SPACE.take(np.frombuffer(data, dtype=np.uint8), out=is_space[1:-1], mode="clip")
        edges = np.flatnonzero(is_space[1:] != is_space[:-1])
        starts, ends = edges[::2].copy(), edges[1::2].copy()

        heads, tails = _numbers(data, starts, ends)
        lengths = ends - starts
        slots = self._first_slots(heads, tails, lengths)
        rows = self._slots.take(slots)
        unlike = np.flatnonzero((rows != 0) & ~self._is(rows, heads, tails, lengths))
        if len(unlike):
            pending, slots = unlike, slots[unlike]
            heads, tails, lengths = heads[pending], tails[pending], lengths[pending]
            while len(pending):
                slots = self._next(slots)
                found = self._slots.take(slots)
                rows[pending] = found
                unlike = np.flatnonzero((found != 0) & ~self._is(found, heads, tails, lengths))
                pending, slots = pending[unlike], slots[unlike]
                heads, tails, lengths = heads[unlike], tails[unlike], lengths[unlike]
        return rows, starts, ends, data

    def _is(
        self,
        rows: NDArray[np.int32],
        heads: NDArray[np.uint64],
        tails: NDArray[np.uint64],
        lengths: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        same: NDArray[np.bool_] = self._heads.take(rows) == heads
        same &= self._tails.take(rows) == tails
        same &= self._lengths.take(rows) == lengths
        return same

    def _first_slots(
        self, heads: NDArray[np.uint64], tails: NDArray[np.uint64], lengths: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        mixed = heads * _MIX[0]
        mixed ^= (tails + lengths.view(np.uint64)) * _MIX[1]
        mixed ^= mixed >> np.uint64(32)
        mixed *= _MIX[2]
        return (mixed >> self._shift).view(np.int64)

    def _next(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        return (slots + 1) & (len(self._slots) - 1)


def _numbers(
    data: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> Tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """
    The first eight bytes of words, and the last eight of those that have more.
    """
    # With room on both sides, every eight bytes that are looked at exist.
    room = bytes(8)
    padded = room + data + room
    # A number at every byte: they overlap.
    numbers: NDArray[np.uint64] = np.ndarray(
        (len(padded) - 7,), dtype="<u8", buffer=padded, strides=(1,)
    )
    lengths = ends - starts
    heads = numbers[starts + 8] & _MASKS[np.minimum(lengths, 8)]
    tails = numbers[ends]
    tails[lengths <= 8] = 0
    return heads.astype(np.uint64, copy=False), tails.astype(np.uint64, copy=False)


def words_at(data: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> List[str]:
    """
    The words that begin and end there.
    """
    return [
        data[start:end].decode("utf-8")
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
