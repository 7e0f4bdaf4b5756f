"""
Which batch of a corpus comes when: a pass over its shards, cut into chunks (the lines that are in
memory at a time, within which sentences are shuffled) and these into batches, as a function of a
seed, the number of the pass and the corpus alone; from its beginning or from any place where an
earlier run stopped.

Work done in the background, a bounded distance ahead of whoever uses it.
"""

import atexit
import contextlib
import logging
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.text.batching import Indices, cut_into_batches, random_order
from transformer_elmo.text.corpus import (
    Shards,
    TextOrWords,
    count_lines_of,
    decode,
    has_json,
    read_blocks,
    sentences_in,
)
from transformer_elmo.text.word_table import Rows, WordTable, text_bytes, words_per_line

T = TypeVar("T")

# Almost anything that a thread is in the middle of takes less. What takes longer (a chunk of text
# and a slow tokenizer, a file system that hangs) isn't waited for.
SECONDS_TO_END = 2.0

# The threads that haven't been told to end, each with its way to be told.
_running: dict[threading.Thread, threading.Event] = {}


@atexit.register
def _stop_all() -> None:
    # After an error or Ctrl-C, a traceback may hold on to an iterator until the interpreter is
    # taken down, when no thread runs any more that could be waited for.
    for stopped in _running.values():
        stopped.set()
    for thread in list(_running):
        thread.join(SECONDS_TO_END)


def prefetch(make_iterator: Callable[[], Iterator[T]], depth: int, name: str) -> Iterator[T]:
    """
    The items of an iterator that is made and run in a thread, up to `depth` items ahead. An
    exception in the thread is raised here, after the items before it. When this iterator is closed,
    or forgotten, the thread ends, at the next item if it is busy.
    """
    items: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not stopped.is_set():
            try:
                items.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        iterator = make_iterator()
        try:
            for item in iterator:
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=run, name=name, daemon=True)
    _running[thread] = stopped
    thread.start()
    try:
        while True:
            kind, value = items.get()
            if kind == "item":
                yield value
            elif kind == "error":
                raise value
            else:
                return
    finally:
        stopped.set()
        # An item that waits for room is let go, so that the thread sees at once that it is over.
        with contextlib.suppress(queue.Empty):
            items.get_nowait()
        _running.pop(thread, None)
        if thread is not threading.current_thread() and not sys.is_finalizing():
            thread.join(SECONDS_TO_END)


# A chunk ends here even if its lines are few: a corpus may have any number of words in a line.
MAX_CHUNK_BYTES = 2**26


@dataclass(frozen=True)
class LineStart:
    """A place between two lines of a list of shards."""

    shard: int = 0
    offset: int = 0
    line_number: int = 1


@dataclass
class TextChunk:
    """Some lines of a corpus, not decoded yet."""

    start: LineStart
    end: LineStart
    # Each piece is some whole lines of one shard, with its path and the number of the first of
    # them.
    pieces: list[tuple[bytes, Path, int]]

    def texts(self) -> Iterator[tuple[str, Path, int]]:
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
    start: LineStart = LineStart(),
    max_bytes: int = MAX_CHUNK_BYTES,
    check: Callable[[Path], None] = lambda path: None,
) -> Iterator[TextChunk]:
    """
    Reads shards, one after the other, as chunks of so many lines or bytes; the last one may have
    fewer. From the start of a chunk, the same chunks follow as if those before had been read.

    `check`: called with each shard before and after it is read; raises if anything is wrong.
    """
    pieces: list[tuple[bytes, Path, int]] = []
    place = start
    num_lines = num_bytes = 0
    for shard in range(start.shard, len(shards)):
        if shard != start.shard:
            place = LineStart(shard)
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
                place = LineStart(shard, place.offset + end, place.line_number + block_lines)
                num_lines += block_lines
                num_bytes += end
                block = block[end:]
                if num_lines >= max_lines or num_bytes >= max_bytes:
                    yield TextChunk(start, place, pieces)
                    start, pieces = place, []
                    num_lines = num_bytes = 0
        check(shards[shard])
    if pieces:
        yield TextChunk(start, LineStart(len(shards)), pieces)


class Chunk(Protocol):
    """Some sentences, encoded or not yet."""

    def lengths(self) -> NDArray[np.int64]:
        """The words of each sentence, without boundary tokens, shape `(num_sentences,)`."""

    def select(self, indices: Indices) -> "Chunk":
        """Some of the sentences, in the order given."""

    def encoded(self) -> "Encoded":
        """The same, encoded."""


class Encoded(Chunk, Protocol):
    """Sentences ready for an encoder to make a batch of."""

    def select(self, indices: Indices) -> "Encoded":
        """Some of the sentences, in the order given."""

    def join(self, other: Any) -> "Encoded":
        """These sentences and then those of another chunk of the same kind."""


@dataclass
class Sentences:
    """
    The sentences of a chunk before they are encoded: a process needs all of their lengths, and the
    words only of those that it trains on.

    `num_words`, `numbers`: of each sentence, shape `(num_sentences,)`; `encode` knows it by its
    number. `num_dropped`, `num_blank`: sentences left out for their length, lines without words.
    """

    num_words: NDArray[np.int64]
    numbers: Indices
    encode: Callable[[Indices], Encoded]
    num_dropped: int = 0
    num_blank: int = 0

    @classmethod
    def of_lines(
        cls,
        num_words: NDArray[np.int64],
        num_lines: int,
        max_words: float,
        encode: Callable[[Indices], Encoded],
    ) -> "Sentences":
        """Those of lines that aren't blank and have at most `max_words` words."""
        kept = np.flatnonzero((num_words > 0) & (num_words <= max_words))
        found = int(np.count_nonzero(num_words))
        return cls(num_words[kept], kept, encode, found - len(kept), num_lines - found)

    def lengths(self) -> NDArray[np.int64]:
        return self.num_words

    def select(self, indices: Indices) -> "Sentences":
        return replace(self, num_words=self.num_words[indices], numbers=self.numbers[indices])

    def encoded(self) -> Encoded:
        return self.encode(self.numbers)


@dataclass
class WordsChunk:
    """Sentences as rows of a :class:`~transformer_elmo.text.word_table.WordTable`."""

    # Shape `(num_words,)`.
    rows: Rows
    # Shape `(num_sentences + 1,)`: where each sentence begins in `rows`, and where the last one
    # ends.
    starts: NDArray[np.int64]
    # The words of the rows from `num_known` on.
    new_words: list[str]
    num_known: int

    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.starts)

    def select(self, indices: Indices) -> "WordsChunk":
        lengths = self.lengths()[indices]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        shift = np.repeat(self.starts[indices] - starts[:-1], lengths)
        shift += np.arange(starts[-1])
        return WordsChunk(self.rows[shift], starts, self.new_words, self.num_known)

    def encoded(self) -> "WordsChunk":
        return self

    def join(self, other: "WordsChunk") -> "WordsChunk":
        theirs = np.where(
            other.rows >= other.num_known, other.rows + len(self.new_words), other.rows
        ).astype(np.int32)
        return WordsChunk(
            np.concatenate([self.rows, theirs]),
            np.concatenate([self.starts, self.starts[-1] + other.starts[1:]]),
            self.new_words + other.new_words,
            self.num_known,
        )


def _plain_pieces(chunk: TextChunk) -> list[bytes] | None:
    """Its pieces for a word table; `None` if there is JSON in them."""
    pieces = []
    for text, _, _ in chunk.texts():
        if has_json(text):
            return None
        pieces.append(text_bytes(text))
    return pieces


# Lines are looked up in parts of about this many bytes, so that the arrays in between stay in the
# processor's cache.
_BYTES_AT_A_TIME = 2**19

# Of a process that needs more of the words than this, the few others are looked up, too: that costs
# less than to gather its lines.
_NEARLY_ALL = 0.9


class WordsEncoder:
    """
    From text to rows of a table, and from rows to the arrays of a batch.

    `start_words`, `end_words`: put around each sentence. The table keeps their rows: they are among
    its vocabulary or its `other_words`. `split`: from lines to their words; by default words are
    what `str.split` makes. `distinct_words`: see
    :meth:`~transformer_elmo.text.word_table.WordTable.arrays`.
    """

    def __init__(
        self,
        table: WordTable,
        start_words: Sequence[str] = (),
        end_words: Sequence[str] = (),
        split: Callable[[list[str]], Iterator[list[str]]] | None = None,
        distinct_words: bool = False,
    ) -> None:
        self._table = table
        self._start_rows, _ = table.encode([start_words])
        self._end_rows, _ = table.encode([end_words])
        self._split = split
        self._distinct_words = distinct_words
        self._loaded: WordsChunk | None = None

    def sentences(self, chunk: TextChunk, max_words: float) -> Sentences:
        """`max_words`: sentences of more words are dropped."""
        pieces = None if self._split is not None else _plain_pieces(chunk)
        if pieces is None:
            words = self._all_words(chunk)
            return Sentences.of_lines(words.lengths(), chunk.num_lines(), max_words, words.select)
        begins, ends, num_words = zip(*map(words_per_line, pieces))
        piece_of = np.repeat(np.arange(len(pieces)), list(map(len, begins)))
        places = np.stack([piece_of, np.concatenate(begins), np.concatenate(ends)])
        lengths = np.concatenate(num_words)
        encode = partial(self._encode_lines, pieces, places, lengths)
        return Sentences.of_lines(lengths, len(lengths), max_words, encode)

    def _all_words(self, chunk: TextChunk) -> WordsChunk:
        """Of text that has to be parsed or tokenized before it is known how long sentences are."""
        lengths: list[int] = []

        def parts() -> Iterator[list[str]]:
            for piece in chunk.texts():
                sentences = list(self._words(list(sentences_in(*piece))))
                lengths.extend(map(len, sentences))
                yield [word for words in sentences for word in words]

        rows, new_words = self._table.encode(parts())
        return self._chunk(rows, new_words, np.array(lengths, dtype=np.int64))

    def _words(self, sentences: list[TextOrWords]) -> Iterator[list[str]]:
        texts = [sentence for sentence in sentences if isinstance(sentence, str)]
        split = map(str.split, texts) if self._split is None else self._split(texts)
        return (next(split) if isinstance(s, str) else s for s in sentences)

    def _encode_lines(
        self, pieces: list[bytes], places: Indices, lengths: Indices, numbers: Indices
    ) -> WordsChunk:
        """`places`: each line's piece, and where it begins and ends in it, `(3, num_lines)`."""
        if lengths[numbers].sum() > _NEARLY_ALL * lengths.sum():
            return self._chunk(*self._table.encode(pieces), lengths).select(numbers)
        views = [memoryview(piece) for piece in pieces]

        def parts() -> Iterator[bytes]:
            num_bytes = int((places[2, numbers] - places[1, numbers]).sum())
            for part in np.array_split(numbers, 1 + num_bytes // _BYTES_AT_A_TIME):
                lines = zip(*places[:, part].tolist())
                yield b"\n".join([views[piece][begin:end] for piece, begin, end in lines])

        return self._chunk(*self._table.encode(parts()), lengths[numbers])

    def _chunk(self, rows: Rows, new_words: list[str], lengths: Indices) -> WordsChunk:
        starts = np.concatenate([[0], np.cumsum(lengths)])
        return WordsChunk(rows, starts, new_words, self._table.num_known)

    def arrays(
        self, chunk: WordsChunk, begin: int, end: int
    ) -> tuple[dict[str, dict[str, NDArray[Any]]], NDArray[np.int64]]:
        """
        The batch of the sentences from `begin` to `end` (not included).

        Returns the batch as `WordTable.arrays` gives it, and the lengths of its sentences with
        start and end words, shape `(batch_size,)`.
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


logger = logging.getLogger(__name__)

FindSentences = Callable[[Iterator[TextChunk]], Iterator[tuple[TextChunk, Sentences]]]
"""Finds the sentences of chunks of text, in order."""


@dataclass(frozen=True)
class Position:
    """Where a pass over the corpus stands: at a batch of a chunk."""

    pass_number: int
    chunk_number: int = 0
    # Where the chunk begins in the shards as this pass orders them, and the sentences before it.
    place: LineStart = LineStart()
    num_sentences: int = 0
    batch_number: int = 0
    # Rounds from there on that have been dealt out already.
    num_skipped: int = 0

    def to_json(self) -> dict[str, Any]:
        """As `from_json` takes it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Position":
        """Also what earlier versions wrote, under their names."""
        value = {"chunk_number" if k == "window_number" else k: v for k, v in value.items()}
        return cls(**{**value, "place": LineStart(**value["place"])})


@dataclass
class PlannedBatch:
    """A batch before it is made: some consecutive sentences of a chunk."""

    chunk_position: Position
    batch_number: int
    chunk: Chunk
    begin: int
    end: int

    @property
    def position(self) -> Position:
        """Where a pass that begins with this batch stands."""
        return replace(self.chunk_position, batch_number=self.batch_number)

    def __len__(self) -> int:
        return self.end - self.begin

    def num_padded_tokens(self) -> int:
        """The sentences times the longest one's length."""
        return len(self) * int(self.chunk.lengths()[self.begin : self.end].max())

    def split(self, num_sentences: int) -> tuple["PlannedBatch", "PlannedBatch"]:
        """The batch cut after so many sentences."""
        middle = self.begin + num_sentences
        return replace(self, end=middle), replace(self, begin=middle)

    def merge(self, other: "PlannedBatch") -> "PlannedBatch":
        """A batch of these sentences and then the other's."""
        chunk = self._alone().join(other._alone())
        return replace(self, chunk=chunk, begin=0, end=len(self) + len(other))

    def encoded(self) -> "PlannedBatch":
        """The batch with its words looked up, if they aren't yet."""
        if not isinstance(self.chunk, Sentences):
            return self
        return replace(self, chunk=self._alone(), begin=0, end=len(self))

    def _alone(self) -> Encoded:
        return self.chunk.select(np.arange(self.begin, self.end)).encoded()


@dataclass(frozen=True)
class Schedule:
    """
    `max_tokens`: the most tokens of a batch, padding included. `batch_size`: the most sentences of
    a batch. `shuffle`: if `False`, shards and chunks come in order, and the batches of a chunk from
    short sentences to long ones. `max_lines`: the lines of a chunk. `limit`: only the first so many
    sentences. `num_boundary_tokens`: what each sentence has beside its words. `min_length`: what
    sentences are padded to at least.
    """

    max_tokens: int | None = None
    batch_size: int | None = None
    shuffle: bool = True
    seed: int = 0
    max_lines: int = 32768
    limit: int | None = None
    num_boundary_tokens: int = 0
    min_length: int = 0

    def plan(
        self,
        shards: Shards,
        position: Position,
        find_sentences: FindSentences,
        log: "PassLog",
        share: tuple[int, int] | None = None,
    ) -> Iterator[list[PlannedBatch]]:
        """
        The batches from a position to the end of its pass, a list of them for each chunk; `log` is
        told of what goes by. `share`: the rank of a process and their number. The batches that come
        to it when they are dealt out in turns are encoded, all of a chunk's together.
        """
        pass_number = position.pass_number
        paths = shards.paths
        # With a limit, the sentences are those that AllenNLP would read: the first ones.
        if self.shuffle and self.limit is None:
            paths = [paths[i] for i in random_order(len(paths), self.seed, pass_number, 0)]
        chunks = read_chunks(paths, self.max_lines, position.place, check=shards.check)
        num_planned = 0
        for text, sentences in find_sentences(chunks):
            log.at(pass_number, text.start.shard, paths)
            lengths = sentences.lengths()
            if self.limit is not None:
                lengths = lengths[: self.limit - position.num_sentences]
            log.add(int(lengths.sum()), sentences)
            if len(lengths):
                batches = self._cut(lengths, position)
                planned = _planned(sentences, batches, position)
                if planned and share is not None:
                    rank, world_size = share
                    _encode(planned[(rank - num_planned) % world_size :: world_size])
                num_planned += len(planned)
                if planned:
                    yield planned
            position = Position(
                pass_number,
                position.chunk_number + 1,
                text.end,
                position.num_sentences + len(lengths),
            )
            if self.limit is not None and position.num_sentences >= self.limit:
                break
        log.end(position.num_sentences, len(paths))

    def _cut(self, lengths: NDArray[np.int64], position: Position) -> list[Indices]:
        path = (self.seed, position.pass_number, 1, position.chunk_number)
        return cut_into_batches(
            np.maximum(lengths + self.num_boundary_tokens, self.min_length),
            self.max_tokens,
            self.batch_size,
            path if self.shuffle else None,
        )


def _planned(
    sentences: Sentences, batches: list[Indices], position: Position
) -> list[PlannedBatch]:
    """The batches of a chunk from a position on."""
    ordered = sentences.select(np.concatenate(batches))
    ends = np.cumsum([len(batch) for batch in batches]).tolist()
    places = zip([0, *ends[:-1]], ends, strict=True)
    planned = [PlannedBatch(position, i, ordered, *place) for i, place in enumerate(places)]
    return planned[position.batch_number :]


def _encode(batches: list[PlannedBatch]) -> None:
    """Encodes batches of a chunk, side by side."""
    if not batches:
        return
    chosen = np.concatenate([np.arange(batch.begin, batch.end) for batch in batches])
    chunk = batches[0].chunk.select(chosen).encoded()
    begin = 0
    for batch in batches:
        batch.chunk, batch.begin, batch.end = chunk, begin, begin + len(batch)
        begin = batch.end


@dataclass
class PassLog:
    """
    What the log says of a pass over `data_path`, from which sentences of more than `max_length`
    tokens are dropped. `quiet`: nothing.
    """

    data_path: Any
    max_length: int | None
    quiet: bool = False
    num_words: int = 0
    num_dropped: int = 0
    num_blank: int = 0
    _shard: int = -1

    def at(self, pass_number: int, shard: int, paths: list[Path]) -> None:
        """Where the number of batches isn't known, this is how to see what is left."""
        if not self.quiet and len(paths) > 1 and shard != self._shard:
            place = f"file {shard + 1} of {len(paths)}, {paths[shard]}"
            logger.info("Pass %d over the corpus: at %s.", pass_number + 1, place)
        self._shard = shard

    def add(self, num_words: int, chunk: Sentences) -> None:
        """Counts what a chunk had."""
        self.num_words += num_words
        self.num_dropped += chunk.num_dropped
        self.num_blank += chunk.num_blank

    def end(self, num_sentences: int, num_files: int) -> None:
        """Raises `ConfigurationError` if there was no sentence."""
        found = f"{self.num_blank} blank lines"
        if self.num_dropped:
            most = f"{self.max_length} tokens (max_sequence_length)"
            found += f", {self.num_dropped} sentences of more than {most}"
        if num_sentences == 0:
            raise ConfigurationError(
                f"There is no sentence in {self.data_path}: {num_files} files, {found}. Expected "
                "text, one sentence a line."
            )
        if not self.quiet:
            level = logging.WARNING if self.num_dropped else logging.INFO
            read = f"{self.num_words} words from {self.data_path}"
            logger.log(level, "Read %s; skipped %s.", read, found)
