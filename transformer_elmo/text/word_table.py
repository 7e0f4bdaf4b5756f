"""
Words as numbers: the token id and the character ids of a word are worked out once, when it is first
seen, and from then on a word is its row in a table.

A Python dictionary needs an object for each word of the text, and holds the interpreter's lock
while it looks them up. Here the words never become objects: a word of up to 16 bytes is two 64-bit
numbers, its first eight bytes and its last eight, and a hash table of such numbers is searched by
array operations, for all words together. What is compared are the words themselves, not their
hashes, so the answer is exact.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transformer_elmo.errors import ConfigurationError

# Rows are 32-bit: half the memory traffic of the 64-bit ids that are made at the very end.
Rows = NDArray[np.int32]

# Token id 0 and character ids 0, as in AllenNLP.
PADDING_ROW = 0

# Characters as ELMo numbers them (AllenNLP's `ELMoCharacterMapper`): a word is its UTF-8 bytes
# between two marks, 50 ids in all; the two boundary words have a character of their own. All ids
# are then raised by one, so that 0 is free for the padding of sentences.
MAX_WORD_LENGTH = 50
MOST_BYTES = MAX_WORD_LENGTH - 2
BEGIN_SENTENCE, END_SENTENCE, BEGIN_WORD, END_WORD, WORD_PADDING = range(256, 261)
BOUNDARY_WORDS = {"<S>": BEGIN_SENTENCE, "</S>": END_SENTENCE}


def character_ids(
    words: Sequence[str], own_characters: Mapping[str, int] | None = None
) -> NDArray[np.int64]:
    """
    `own_characters`: words that are a single character, by its id (without the one added):
    `tokens_to_add` of AllenNLP's indexer. Returns shape `(num_words, 50)`. Longer words are cut;
    what is no UTF-8 is left out.
    """
    encoded = [word.encode("utf-8", "ignore")[:MOST_BYTES] for word in words]
    single = {**BOUNDARY_WORDS, **(own_characters or {})}
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    characters = np.frombuffer(b"".join(encoded), dtype=np.uint8)
    table = np.full((len(encoded), MAX_WORD_LENGTH), WORD_PADDING + 1, dtype=np.int64)
    table[:, 0] = BEGIN_WORD + 1
    first = np.arange(len(encoded)) * MAX_WORD_LENGTH + 1
    ends = np.cumsum(lengths)
    flat = table.reshape(-1)
    flat[np.repeat(first - (ends - lengths), lengths) + np.arange(len(characters))] = (
        characters.astype(np.int64) + 1
    )
    flat[first + lengths] = END_WORD + 1
    if not single.keys().isdisjoint(words):
        for row, word in enumerate(words):
            if word in single:
                table[row, 1:3] = single[word] + 1, END_WORD + 1
                table[row, 3:] = WORD_PADDING + 1
    return table


def is_cut(word: str) -> bool:
    """Whether a word has more bytes than :func:`character_ids` can say."""
    return len(word.encode("utf-8", "ignore")) > MOST_BYTES


class Column:
    """What is known of every word under one name; sentences are padded at least to a length."""

    key: str
    table: NDArray[Any]

    def __init__(self, min_padding_length: int = 0) -> None:
        self.min_padding_length = min_padding_length

    def values(self, words: Sequence[str]) -> NDArray[Any]:
        """What the column says of words, shape `(num_words, ...)`."""
        raise NotImplementedError

    def put(self, first_row: int, words: list[str]) -> None:
        """Gives words the rows from `first_row` on."""
        end = first_row + len(words)
        if end > len(self.table):
            # Room for as many new words again, so that growing is rare.
            room = first_row + 2 * len(words) if first_row > 1 else end
            table = np.zeros((room, *self.table.shape[1:]), dtype=self.table.dtype)
            table[: len(self.table)] = self.table
            self.table = table
        # In parts, so that what is in between stays small.
        for begin in range(0, len(words), _WORDS_AT_A_TIME):
            part = words[begin : begin + _WORDS_AT_A_TIME]
            self.table[first_row + begin : first_row + begin + len(part)] = self.values(part)

    def take(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Shape `(*rows.shape, ...)`."""
        return self.table.take(rows, axis=0)


_WORDS_AT_A_TIME = 2**13


class TokenIds(Column):
    """
    The number of each word in a vocabulary.

    `ids`: the vocabulary. The word for padding may be in it, as 0; a word of that spelling in a
    text is unknown. `unknown`: the id of all words outside it; with `None` such a word is an error.
    """

    key = "tokens"

    def __init__(
        self,
        ids: Mapping[str, int],
        unknown: int | None,
        lowercase: bool = False,
        min_padding_length: int = 0,
    ) -> None:
        super().__init__(min_padding_length)
        self.ids = ids
        self._unknown = unknown
        self._lowercase = lowercase
        self.table = np.zeros(1, dtype=np.int32)

    def values(self, words: Sequence[str]) -> NDArray[Any]:
        keys = list(map(str.lower, words)) if self._lowercase else words
        unknown = -1 if self._unknown is None else self._unknown
        result = np.fromiter(
            map(self.ids.get, keys, itertools.repeat(unknown)), np.int32, len(keys)
        )
        if self._unknown:
            result[result == 0] = unknown
        elif unknown < 0 and (result < 0).any():
            raise ConfigurationError(
                f"The word {keys[int(result.argmin())]!r} isn't in the vocabulary, which has no "
                "entry for unknown words."
            )
        return result


class CharacterIds(Column):
    """The characters of each word: see :func:`character_ids`."""

    key = "elmo_tokens"

    def __init__(
        self, own_characters: Mapping[str, int] | None = None, min_padding_length: int = 0
    ) -> None:
        super().__init__(min_padding_length)
        self._own_characters = dict(own_characters or {})
        largest = max([WORD_PADDING, *self._own_characters.values()])
        dtype = np.int16 if largest + 1 <= np.iinfo(np.int16).max else np.int64
        self.table = np.zeros((1, MAX_WORD_LENGTH), dtype=dtype)

    def values(self, words: Sequence[str]) -> NDArray[Any]:
        return character_ids(words, self._own_characters).astype(self.table.dtype)


class WordTable:
    """
    The token ids and character ids of words, one row a word.

    Row 0 is the padding. The rows after it are the words of the vocabulary, worked out once. Words
    outside it have their own characters, so each has a row as well, but only among the words that
    are encoded together: a corpus has no end of them, and the table must not grow with the corpus.

    `columns`: by the names that :meth:`arrays` gives. `other_words`: words that keep their rows
    although the vocabulary may lack them.
    """

    def __init__(self, columns: Mapping[str, Column], other_words: Sequence[str] = ()) -> None:
        self._columns = dict(columns)
        vocabularies = [c.ids for c in self._columns.values() if isinstance(c, TokenIds)]
        words = list(dict.fromkeys(itertools.chain(other_words, *vocabularies)))
        self._rows = dict(zip(words, itertools.count(PADDING_ROW + 1)))
        self._hash_table = WordHashTable(words, PADDING_ROW + 1)
        # The rows that stay: the padding's and those of the vocabulary's words.
        self.num_known = len(words) + 1
        for column in self._columns.values():
            column.put(PADDING_ROW + 1, words)
        self._position_of_row = np.zeros(0, dtype=np.int32)

    def encode(self, parts: Iterable[bytes | Sequence[str]]) -> tuple[Rows, list[str]]:
        """
        The rows of the words of a text, one part of it after the other: a list of words, or what
        :func:`text_bytes` gives. And those words that are not in the vocabulary: the first has row
        `num_known`, and so on. Safe in several threads.
        """
        interner = _Interner(self._rows, self.num_known)
        all_rows = [np.zeros(0, dtype=np.int32)]
        for part in parts:
            if isinstance(part, bytes):
                rows, starts, ends = self._hash_table.find(part)
                unknown = np.flatnonzero(rows == PADDING_ROW)
                words = words_at(part, starts[unknown], ends[unknown])
                rows[unknown] = interner.rows(words)
            else:
                rows = interner.rows(part)
            all_rows.append(rows)
        return np.concatenate(all_rows), interner.new_words

    def put_new_words(self, words: list[str]) -> None:
        """
        Gives words outside the vocabulary the rows from `num_known` on, in place of those that have
        them, for :meth:`arrays`.
        """
        for column in self._columns.values():
            column.put(self.num_known, words)

    def arrays(
        self, rows: NDArray[Any], distinct_words: bool = False
    ) -> dict[str, dict[str, NDArray[Any]]]:
        """
        What AllenNLP's indexers give for a padded batch of words: for each column by its name, the
        token ids as `tokens`, shape `(batch_size, timesteps)`, or the characters as `elmo_tokens`,
        shape `(batch_size, timesteps, 50)`.

        `rows`: shape `(batch_size, timesteps)`; 0 where padded. `distinct_words`: if `True`,
        `elmo_tokens` has shape `(num_distinct_words + 1, 50)`, its row 0 is all zero, and
        `word_index`, shape `(batch_size, timesteps)`, says which row each word is, 0 where padded.
        """
        result: dict[str, dict[str, NDArray[Any]]] = {}
        distinct: tuple[NDArray[Any], NDArray[Any]] | None = None
        for name, column in self._columns.items():
            padded = _pad(rows, column.min_padding_length)
            if distinct_words and isinstance(column, CharacterIds):
                if distinct is None or distinct[1].shape != padded.shape:
                    distinct = self._distinct(padded)
                result[name] = {column.key: column.take(distinct[0]), "word_index": distinct[1]}
            else:
                result[name] = {column.key: column.take(padded)}
        return result

    def _distinct(self, rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        # Each row remembers the last position that has it, which needs no sorting.
        flat = rows.reshape(-1)
        num_rows = int(flat.max(initial=0)) + 1
        if num_rows > len(self._position_of_row):
            self._position_of_row = np.zeros(
                max(num_rows, 2 * len(self._position_of_row), self.num_known), dtype=np.int32
            )
        positions = np.arange(len(flat), dtype=np.int32)
        self._position_of_row[flat] = positions
        last = self._position_of_row[flat]
        is_last = (last == positions) & (flat != PADDING_ROW)
        words = np.concatenate([[PADDING_ROW], flat[is_last]])
        index = np.cumsum(is_last)[last] * (flat != PADDING_ROW)
        return words, index.reshape(rows.shape)


class _Interner(dict[str, int]):
    """The rows of words: those that are known, and the next ones for all others."""

    def __init__(self, known: Mapping[str, int], next_row: int) -> None:
        super().__init__()
        self._known = known
        self._next_row = next_row
        self.new_words: list[str] = []

    def __missing__(self, word: str) -> int:
        row = self._known.get(word)
        if row is None:
            row = self._next_row + len(self.new_words)
            self.new_words.append(word)
        self[word] = row
        return row

    def rows(self, words: Sequence[str]) -> Rows:
        return np.fromiter(map(self.__getitem__, words), np.int32, len(words))


def _pad(rows: NDArray[Any], min_length: int) -> NDArray[Any]:
    missing = min_length - rows.shape[1]
    if missing <= 0:
        return rows
    return np.pad(rows, ((0, 0), (0, missing)), constant_values=PADDING_ROW)


# Longer words are not looked for: two numbers couldn't tell them apart.
MAX_BYTES = 16

# What `str.split` takes for white space, beside the characters of one byte in `_is_space`.
_WIDE_SPACES = [chr(code) for code in range(128, 0x10000) if not chr(code).split()]

# The first eight bytes of a word of so many bytes.
_MASKS = np.array([2 ** (8 * min(length, 8)) - 1 for length in range(9)], dtype=np.uint64)

# Odd numbers without a pattern, to spread words over the table.
_MIX = [np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)]


class WordHashTable:
    """
    A hash table from words to rows.

    `words`: distinct words. `first_row`: the row of the first one, at least 1. The others follow.
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
        self._lengths = np.full(num_rows, -1, dtype=np.int8)
        self._heads[first_row:], self._tails[first_row:] = heads, tails
        self._lengths[first_row:] = np.minimum(lengths, MAX_BYTES + 1)

        # At least twice as many slots as words: most words are found where they are looked for
        # first.
        self._shift = np.uint64(64 - max(10, len(words).bit_length() + 1))
        self._slots = np.zeros(1 << (64 - int(self._shift)), dtype=np.int32)
        found = np.flatnonzero((lengths > 0) & (lengths <= MAX_BYTES))
        rows = first_row + found
        slots = self._first_slots(heads[found], tails[found], lengths[found])
        while len(rows):
            free = self._slots[slots] == 0
            # Where several want one slot the last one gets it, so the first, most frequent, is put
            # last.
            self._slots[slots[free][::-1]] = rows[free][::-1]
            left = self._slots[slots] != rows
            rows, slots = rows[left], self._next(slots[left])

    def find(self, data: bytes) -> tuple[Rows, NDArray[np.int64], NDArray[np.int64]]:
        """
        The row of each word of a text as :func:`text_bytes` gives it, 0 if it has none or is longer
        than 16 bytes; and where each begins and ends. All have shape `(num_words,)`.
        """
        is_space = np.ones(len(data) + 2, dtype=bool)
        _is_space(np.frombuffer(data, dtype=np.uint8), out=is_space[1:-1])
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
        return rows, starts, ends

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
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The first eight bytes of words, and the last eight of those that have more."""
    # With room on both sides, every eight bytes that are looked at exist.
    room = bytes(8)
    padded = room + data + room
    # A number at every byte: they overlap.
    numbers: NDArray[np.uint64] = np.ndarray(
        (len(padded) - 7,), dtype="<u8", buffer=padded, strides=(1,)
    )
    lengths = ends - starts
    heads = numbers[starts + 8] & _MASKS.take(lengths, mode="clip")
    tails = numbers[ends] * (lengths > 8)
    return heads.astype(np.uint64, copy=False), tails.astype(np.uint64, copy=False)


def text_bytes(text: str) -> bytes:
    """A text as UTF-8, with plain spaces for all the spaces of more than one byte."""
    if not text.isascii():
        for space in _WIDE_SPACES:
            if space in text:
                text = text.replace(space, " ")
    return text.encode("utf-8")


def words_per_line(data: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    r"""
    Where each line of a text as :func:`text_bytes` gives it begins, where it ends, without its
    `\n`, and how many words it has. All have shape `(num_lines,)`.
    """
    characters = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(characters == ord("\n"))
    if data and not data.endswith(b"\n"):
        ends = np.append(ends, len(data))
    begins = np.concatenate([[0], ends + 1])[: len(ends)]
    is_space = np.ones(len(data) + 1, dtype=bool)
    _is_space(characters, out=is_space[1:])
    is_start = is_space[:-1] > is_space[1:]
    num_words = np.add.reduceat(is_start.view(np.uint8), begins, dtype=np.int64)
    return begins, ends, num_words


def _is_space(characters: NDArray[np.uint8], out: NDArray[np.bool_]) -> None:
    """Which bytes of UTF-8 `str.split` takes for spaces."""
    np.equal(characters, ord(" "), out=out)
    # Smaller ones come out as large ones.
    for first, last in (("\t", "\r"), ("\x1c", "\x1f")):
        out |= characters - np.uint8(ord(first)) <= ord(last) - ord(first)


def words_at(data: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> list[str]:
    """The words that begin and end there."""
    return [
        data[start:end].decode("utf-8")
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
