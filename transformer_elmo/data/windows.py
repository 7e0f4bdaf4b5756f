"""
A window: the lines that are in memory at a time, within which sentences are shuffled and put into
batches. It is read as text, and encoded as numbers or, where the indexers need it, as AllenNLP's
instances.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Protocol, Sequence, Tuple, Union

import numpy as np
from allennlp.data.batch import Batch
from allennlp.data.data_loaders.data_loader import TensorDict
from allennlp.data.instance import Instance
from allennlp.data.tokenizers import Tokenizer, WhitespaceTokenizer
from allennlp.data.vocabulary import Vocabulary
from numpy.typing import NDArray

from transformer_elmo.data.batching import Indices
from transformer_elmo.data.corpus import decode, read_blocks
from transformer_elmo.data.dataset_reader import SimpleLanguageModelingDatasetReader
from transformer_elmo.data.words import Rows, WordTable

# A window ends here even if its lines are few: a corpus may have any number of words in a line.
MAX_WINDOW_BYTES = 2**26


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
class TextWindow:
    """
    Some lines of a corpus, not decoded yet.
    """

    start: Place
    end: Place
    # Each piece is some whole lines of one shard, with its path and the number of the first of
    # them.
    pieces: List[Tuple[bytes, Path, int]]


def read_windows(
    shards: Sequence[Path],
    max_lines: int,
    start: Place = START,
    max_bytes: int = MAX_WINDOW_BYTES,
    check: Callable[[Path], None] = lambda path: None,
) -> Iterator[TextWindow]:
    """
    Reads shards, one after the other, as windows.

    # Parameters

    shards : `Sequence[Path]`
    max_lines : `int`
        The lines of a window. The last one may have fewer.
    start : `Place`, optional
        Where to begin. At the start of a window, the same windows follow as if the one before it
        had been read.
    max_bytes : `int`, optional (default = `2**26`)
        A window is complete when it has this many bytes, whatever the number of its lines.
    check : `Callable[[Path], None]`, optional
        Called with each shard before and after it is read; raises if something is wrong with it.

    # Returns

    `Iterator[TextWindow]`
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
                block_lines = block.count(b"\n") + (not block.endswith(b"\n"))
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
                    yield TextWindow(start, place, pieces)
                    start, pieces = place, []
                    num_lines = num_bytes = 0
        check(shards[shard])
    if pieces:
        yield TextWindow(start, Place(len(shards)), pieces)


class Window(Protocol):
    """
    The sentences of a window, encoded.
    """

    # Sentences left out for their length, and lines without words.
    num_dropped: int
    num_blank: int

    def lengths(self) -> NDArray[np.int64]:
        """
        The number of words of each sentence, without start and end tokens. Shape
        `(num_sentences,)`.
        """

    def select(self, indices: Indices) -> "Window":
        """
        A window of some of the sentences, in the order given.
        """

    def join(self, other: "Window") -> "Window":
        """
        A window of these sentences and then those of another window of the same kind.
        """


@dataclass
class WordsWindow:
    """
    Sentences as rows of a :class:`~transformer_elmo.data.words.WordTable`.
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

    def select(self, indices: Indices) -> "WordsWindow":
        lengths = self.lengths()[indices]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        shift = np.repeat(self.starts[indices] - starts[:-1], lengths)
        shift += np.arange(starts[-1])
        return WordsWindow(self.rows[shift], starts, self.new_words, self.num_known)

    def join(self, other: Window) -> "WordsWindow":
        assert isinstance(other, WordsWindow)
        theirs = np.where(
            other.rows >= other.num_known, other.rows + len(self.new_words), other.rows
        ).astype(np.int32)
        return WordsWindow(
            np.concatenate([self.rows, theirs]),
            np.concatenate([self.starts, self.starts[-1] + other.starts[1:]]),
            self.new_words + other.new_words,
            self.num_known,
        )


@dataclass
class InstancesWindow:
    """
    Sentences as AllenNLP's instances, not indexed yet.
    """

    instances: List[Instance]
    num_words: List[int]
    num_dropped: int = 0
    num_blank: int = 0

    def lengths(self) -> NDArray[np.int64]:
        return np.array(self.num_words, dtype=np.int64)

    def select(self, indices: Indices) -> "InstancesWindow":
        return InstancesWindow(
            [self.instances[i] for i in indices], [self.num_words[i] for i in indices]
        )

    def join(self, other: Window) -> "InstancesWindow":
        assert isinstance(other, InstancesWindow)
        return InstancesWindow(self.instances + other.instances, self.num_words + other.num_words)


class WordsCodec:
    """
    The fast path: text to rows of a table, and rows to tensors.

    # Parameters

    reader : `SimpleLanguageModelingDatasetReader`
        Its indexers must be those that `WordTable` supports.
    vocab : `Vocabulary`
    distinct_words : `bool`
        See :meth:`~transformer_elmo.data.words.WordTable.tensors`.
    """

    def __init__(
        self,
        reader: SimpleLanguageModelingDatasetReader,
        vocab: Vocabulary,
        distinct_words: bool,
    ) -> None:
        start_words = [token.ensure_text() for token in reader.start_tokens]
        end_words = [token.ensure_text() for token in reader.end_tokens]
        self._table = WordTable(reader.token_indexers, vocab, [*start_words, *end_words])
        self._start_rows = self._table.encode(start_words)
        self._end_rows = self._table.encode(end_words)
        # None: words are what `str.split` makes.
        self._tokenizer: Optional[Tokenizer] = (
            None if type(reader.tokenizer) is WhitespaceTokenizer else reader.tokenizer
        )
        self._distinct_words = distinct_words
        self._loaded: Optional[WordsWindow] = None

    @property
    def is_fast(self) -> bool:
        """
        Whether reading a corpus takes no longer than a few seconds for a hundred megabytes.
        """
        return self._tokenizer is None

    def encode(self, window: TextWindow, max_words: Optional[int]) -> WordsWindow:
        """
        # Parameters

        window : `TextWindow`
        max_words : `int`, optional
            Sentences of more words are dropped.
        """
        all_rows, all_lengths = [], []
        num_dropped = num_blank = 0
        for block, shard, line_number in window.pieces:
            text = decode(block, shard, line_number)
            if self._tokenizer is None:
                rows, lengths = self._table.encode_lines(
                    text if text.endswith("\n") else text + "\n"
                )
            else:
                words: List[str] = []
                counts: List[int] = []
                for sentence in _tokenize(self._tokenizer, text):
                    words.extend(sentence)
                    counts.append(len(sentence))
                rows, lengths = self._table.encode(words), np.array(counts, dtype=np.int64)
            all_rows.append(rows)
            all_lengths.append(lengths)
            num_blank += _count_lines(text) - len(lengths)
        rows, lengths = np.concatenate(all_rows), np.concatenate(all_lengths)
        if max_words is not None:
            keep = lengths <= max_words
            num_dropped = int(len(keep) - keep.sum())
            if num_dropped:
                rows, lengths = rows[np.repeat(keep, lengths)], lengths[keep]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        new_words = self._table.forget_new_words()
        return WordsWindow(rows, starts, new_words, self._table.num_known, num_dropped, num_blank)

    def tensors(self, window: Window, begin: int, end: int) -> TensorDict:
        """
        The batch of the sentences from `begin` to `end` (not included).
        """
        assert isinstance(window, WordsWindow)
        if self._loaded is not window:
            self._table.put_new_words(window.new_words)
            self._loaded = window
        starts = window.starts[begin : end + 1]
        lengths = np.diff(starts)
        first, last = len(self._start_rows), len(self._end_rows)
        width = first + int(lengths.max()) + last
        rows = np.zeros((end - begin, width), dtype=np.int32)
        rows[:, :first] = self._start_rows
        columns = np.arange(width)
        ends = (first + lengths)[:, None]
        rows[(columns >= first) & (columns < ends)] = window.rows[starts[0] : starts[-1]]
        if last:
            np.put_along_axis(rows, ends + np.arange(last), self._end_rows[None, :], axis=1)
        # AllenNLP's `TensorDict` has no name for a dictionary of dictionaries, which every text
        # field is.
        source: Dict[str, Dict] = self._table.tensors(rows, self._distinct_words)
        return {"source": source}  # type: ignore[dict-item]


class InstancesCodec:
    """
    AllenNLP's general path: text to instances, and instances to tensors.
    """

    is_fast = False

    def __init__(self, reader: SimpleLanguageModelingDatasetReader, vocab: Vocabulary) -> None:
        self._reader = reader
        self._vocab = vocab

    def encode(self, window: TextWindow, max_words: Optional[int]) -> InstancesWindow:
        """
        # Parameters

        window : `TextWindow`
        max_words : `int`, optional
            Sentences of more words are dropped.
        """
        result = InstancesWindow([], [])
        for block, shard, line_number in window.pieces:
            text = decode(block, shard, line_number)
            result.num_blank += _count_lines(text)
            for line in _lines(text):
                tokens = self._reader.tokenizer.tokenize(line)
                if not tokens:
                    continue
                result.num_blank -= 1
                if max_words is not None and len(tokens) > max_words:
                    result.num_dropped += 1
                else:
                    result.instances.append(self._reader.tokens_to_instance(tokens))
                    result.num_words.append(len(tokens))
        return result

    def tensors(self, window: Window, begin: int, end: int) -> TensorDict:
        """
        The batch of the sentences from `begin` to `end` (not included).
        """
        assert isinstance(window, InstancesWindow)
        batch = Batch(window.instances[begin:end])
        for instance in batch.instances:
            self._reader.apply_token_indexers(instance)
        batch.index_instances(self._vocab)
        return batch.as_tensor_dict()


Codec = Union[WordsCodec, InstancesCodec]


def _lines(text: str) -> Iterator[str]:
    for line in text.split("\n"):
        if line and not line.isspace():
            yield line[:-1] if line.endswith("\r") else line


def _tokenize(tokenizer: Tokenizer, text: str) -> Iterator[List[str]]:
    for tokens in tokenizer.batch_tokenize(list(_lines(text))):
        if tokens:
            yield [token.ensure_text() for token in tokens]


def _count_lines(text: str) -> int:
    return text.count("\n") + (not text.endswith("\n"))
