"""
A chunk: the lines of a corpus that are in memory at a time, within which sentences are shuffled and
put into batches. It is read as text and encoded as rows of a table of words.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Protocol, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from transformer_elmo.text.batching import Indices
from transformer_elmo.text.corpus import (
    TextOrWords,
    count_lines_of,
    decode,
    has_json,
    read_blocks,
    sentences_in,
)
from transformer_elmo.text.words import Rows, WordTable

# A chunk ends here even if its lines are few: a corpus may have any number of words in a line.
MAX_CHUNK_BYTES = 2**26


@dataclass(frozen=True)
class Place:
    """
    A place between two lines of a list of shards.
    """

    shard: int = 0
    offset: int = 0
    line_number: int = 1


START = Place()


@dataclass
class TextChunk:
    """
    Some lines of a corpus, not decoded yet.
    """

    start: Place
    end: Place
    # Each piece is some whole lines of one shard, with its path and the number of the first of
    # them.
    pieces: List[Tuple[bytes, Path, int]]

    def texts(self) -> Iterator[Tuple[str, Path, int]]:
        """The pieces, decoded."""
        for block, shard, line_number in self.pieces:
            yield decode(block, shard, line_number), shard, line_number

    def sentences(self) -> Iterator[TextOrWords]:
        """Texts and lists of words, without blank lines."""
        for piece in self.texts():
            yield from sentences_in(*piece)

    def num_lines(self) -> int:
        """How many lines there are, blank ones too."""
        return sum(count_lines_of(block) for block, _, _ in self.pieces)


def read_chunks(
    shards: Sequence[Path],
    max_lines: int,
    start: Place = START,
    max_bytes: int = MAX_CHUNK_BYTES,
    check: Callable[[Path], None] = lambda path: None,
) -> Iterator[TextChunk]:
    """
    Reads shards, one after the other, as chunks.

    # Parameters

    shards : `Sequence[Path]`
    max_lines : `int`
        The lines of a chunk. The last one may have fewer.
    start : `Place`, optional
        Where to begin. At the start of a chunk, the same chunks follow as if the one before it
        had been read.
    max_bytes : `int`, optional (default = `2**26`)
        A chunk is complete when it has this many bytes, whatever the number of its lines.
    check : `Callable[[Path], None]`, optional
        Called with each shard before and after it is read; raises if something is wrong with it.

    # Returns

    `Iterator[TextChunk]`
    """
    pieces: List[Tuple[bytes, Path, int]] = []
    place = start
    num_lines = num_bytes = 0
    for shard in range(start.shard, len(shards)):
        if shard != start.shard:
            place = Place(shard)
        check(shards[shard])
        for block in read_blocks(shards[shard], place.offset):
            while block:
                block_lines = count_lines_of(block)
                end = len(block)
                if num_lines + block_lines > max_lines:
                    block_lines = max_lines - num_lines
                    line_ends = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n"))
                    end = int(line_ends[block_lines - 1]) + 1
                pieces.append((block[:end], shards[shard], place.line_number))
                place = Place(shard, place.offset + end, place.line_number + block_lines)
                num_lines += block_lines
                num_bytes += end
                block = block[end:]
                if num_lines >= max_lines or num_bytes >= max_bytes:
                    yield TextChunk(start, place, pieces)
                    start, pieces = place, []
                    num_lines = num_bytes = 0
        check(shards[shard])
    if pieces:
        yield TextChunk(start, Place(len(shards)), pieces)


class Chunk(Protocol):
    """
    The sentences of a chunk, encoded.
    """

    # Sentences left out for their length, and lines without words.
    num_dropped: int
    num_blank: int

    def lengths(self) -> NDArray[np.int64]:
        """
        The number of words of each sentence, without start and end tokens. Shape
        `(num_sentences,)`.
        """

    def select(self, indices: Indices) -> "Chunk":
        """
        A chunk of some of the sentences, in the order given.
        """

    def join(self, other: "Chunk") -> "Chunk":
        """
        A chunk of these sentences and then those of another chunk of the same kind.
        """


@dataclass
class WordsChunk:
    """
    Sentences as rows of a :class:`~transformer_elmo.text.words.WordTable`.
    """

    # Shape `(num_words,)`.
    rows: Rows
    # Shape `(num_sentences + 1,)`: where each sentence begins in `rows`, and where the last one
    # ends.
    starts: NDArray[np.int64]
    # The words of the rows from `num_known` on.
    new_words: List[str]
    num_known: int
    num_dropped: int = 0
    num_blank: int = 0

    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.starts)

    def select(self, indices: Indices) -> "WordsChunk":
        lengths = self.lengths()[indices]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        shift = np.repeat(self.starts[indices] - starts[:-1], lengths)
        shift += np.arange(starts[-1])
        return WordsChunk(self.rows[shift], starts, self.new_words, self.num_known)

    def join(self, other: Chunk) -> "WordsChunk":
        assert isinstance(other, WordsChunk)
        theirs = np.where(
            other.rows >= other.num_known, other.rows + len(self.new_words), other.rows
        ).astype(np.int32)
        return WordsChunk(
            np.concatenate([self.rows, theirs]),
            np.concatenate([self.starts, self.starts[-1] + other.starts[1:]]),
            self.new_words + other.new_words,
            self.num_known,
        )


class WordsEncoder:
    """
    From text to rows of a table, and from rows to the arrays of a batch.

    # Parameters

    table : `WordTable`
    start_words, end_words : `Sequence[str]`
        Put around each sentence. The table keeps their rows: they are among its vocabulary or its
        `other_words`.
    split : `Callable[[List[str]], Iterator[List[str]]]`, optional (default = `None`)
        From lines to their words; by default words are what `str.split` makes.
    distinct_words : `bool`, optional (default = `False`)
        See :meth:`~transformer_elmo.text.words.WordTable.arrays`.
    """

    def __init__(
        self,
        table: WordTable,
        start_words: Sequence[str] = (),
        end_words: Sequence[str] = (),
        split: Optional[Callable[[List[str]], Iterator[List[str]]]] = None,
        distinct_words: bool = False,
    ) -> None:
        self._table = table
        self._start_rows = table.encode(start_words)
        self._end_rows = table.encode(end_words)
        self._split = split
        self._distinct_words = distinct_words
        self._loaded: Optional[WordsChunk] = None

    def encode(self, chunk: TextChunk, max_words: Optional[int]) -> WordsChunk:
        """
        # Parameters

        chunk : `TextChunk`
        max_words : `int`, optional
            Sentences of more words are dropped.
        """
        all_rows, all_lengths = [], []
        for text, shard, line_number in chunk.texts():
            if self._split is None and not has_json(text):
                rows, lengths = self._table.encode_lines(
                    text if text.endswith("\n") else text + "\n"
                )
            else:
                found = self._words(list(sentences_in(text, shard, line_number)))
                sentences = [words for words in found if words]
                rows = self._table.encode([word for words in sentences for word in words])
                lengths = np.fromiter(map(len, sentences), np.int64, len(sentences))
            all_rows.append(rows)
            all_lengths.append(lengths)
        rows, lengths = np.concatenate(all_rows), np.concatenate(all_lengths)
        num_blank, num_dropped = chunk.num_lines() - len(lengths), 0
        if max_words is not None:
            keep = lengths <= max_words
            num_dropped = int(len(keep) - keep.sum())
            if num_dropped:
                rows, lengths = rows[np.repeat(keep, lengths)], lengths[keep]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        new_words = self._table.forget_new_words()
        return WordsChunk(rows, starts, new_words, self._table.num_known, num_dropped, num_blank)

    def _words(self, sentences: List[TextOrWords]) -> Iterator[List[str]]:
        texts = [sentence for sentence in sentences if isinstance(sentence, str)]
        split = map(str.split, texts) if self._split is None else self._split(texts)
        return (next(split) if isinstance(s, str) else s for s in sentences)

    def arrays(
        self, chunk: WordsChunk, begin: int, end: int
    ) -> Tuple[Dict[str, Dict[str, NDArray[Any]]], NDArray[np.int64]]:
        """
        The batch of the sentences from `begin` to `end` (not included).

        # Returns

        `Tuple[Dict[str, Dict[str, NDArray]], NDArray[int64]]`
            The batch as `WordTable.arrays` gives it, and the lengths of its sentences with start
            and end words, shape `(batch_size,)`.
        """
        if self._loaded is not chunk:
            self._table.put_new_words(chunk.new_words)
            self._loaded = chunk
        starts = chunk.starts[begin : end + 1]
        lengths = np.diff(starts)
        first, last = len(self._start_rows), len(self._end_rows)
        width = first + int(lengths.max()) + last
        rows = np.zeros((end - begin, width), dtype=np.int32)
        rows[:, :first] = self._start_rows
        columns = np.arange(width)
        ends = (first + lengths)[:, None]
        rows[(columns >= first) & (columns < ends)] = chunk.rows[starts[0] : starts[-1]]
        if last:
            np.put_along_axis(rows, ends + np.arange(last), self._end_rows[None, :], axis=1)
        return self._table.arrays(rows, self._distinct_words), lengths + first + last
