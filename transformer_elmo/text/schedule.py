"""
Which batch of a corpus comes when: a pass over its shards, cut into chunks and these into batches,
as a function of a seed, the number of the pass and the corpus alone; from its beginning or from any
place where an earlier run stopped.
"""

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.text.batching import cut_into_batches, random_order
from transformer_elmo.text.chunks import START, Chunk, Place, TextChunk, read_chunks
from transformer_elmo.text.shards import Shards

logger = logging.getLogger(__name__)

Encode = Callable[[Iterator[TextChunk]], Iterator[Tuple[TextChunk, Chunk]]]
"""Encodes chunks of text, in order."""


@dataclass(frozen=True)
class Position:
    """
    Where a pass over the corpus stands: at a batch of a chunk.
    """

    pass_number: int
    chunk_number: int = 0
    # Where the chunk begins in the shards as this pass orders them, and the sentences before it.
    place: Place = START
    num_sentences: int = 0
    batch_number: int = 0
    # Rounds from there on that have been dealt out already.
    num_skipped: int = 0

    def to_json(self) -> Dict[str, Any]:
        """As `from_json` takes it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Dict[str, Any]) -> "Position":
        """Also what earlier versions wrote, under their names."""
        value = {"chunk_number" if k == "window_number" else k: v for k, v in value.items()}
        return cls(**{**value, "place": Place(**value["place"])})


@dataclass(frozen=True)
class PlannedBatch:
    """
    A batch before it is made: some consecutive sentences of a chunk.
    """

    position: Position
    chunk: Chunk
    begin: int
    end: int

    def __len__(self) -> int:
        return self.end - self.begin

    def num_padded_tokens(self) -> int:
        """The sentences times the longest one's length."""
        return len(self) * int(self.chunk.lengths()[self.begin : self.end].max())

    def split(self, num_sentences: int) -> Tuple["PlannedBatch", "PlannedBatch"]:
        """
        Cuts the batch after so many sentences.
        """
        middle = self.begin + num_sentences
        return replace(self, end=middle), replace(self, begin=middle)

    def merge(self, other: "PlannedBatch") -> "PlannedBatch":
        """
        A batch of these sentences and then the other's.
        """
        ours = self.chunk.select(np.arange(self.begin, self.end))
        chunk = ours.join(other.chunk.select(np.arange(other.begin, other.end)))
        return PlannedBatch(self.position, chunk, 0, len(self) + len(other))


@dataclass(frozen=True)
class Schedule:
    """
    # Parameters

    max_tokens : `int`, optional
        The most tokens of a batch, padding included.
    batch_size : `int`, optional
        The most sentences of a batch.
    shuffle : `bool`
        If `False`, shards and chunks come in order, and the batches of a chunk from short sentences
        to long ones.
    seed : `int`
    max_lines : `int`
        The lines of a chunk.
    limit : `int`, optional
        Only the first so many sentences.
    num_boundary_tokens : `int`
        What each sentence has beside its words.
    min_length : `int`
        What sentences are padded to at least.
    """

    max_tokens: Optional[int] = None
    batch_size: Optional[int] = None
    shuffle: bool = True
    seed: int = 0
    max_lines: int = 32768
    limit: Optional[int] = None
    num_boundary_tokens: int = 0
    min_length: int = 0

    def plan(
        self, shards: Shards, position: Position, encode: Encode, report: "Report"
    ) -> Iterator[List[PlannedBatch]]:
        """
        The batches from a position to the end of its pass, a list of them for each chunk.

        # Parameters

        shards : `Shards`
        position : `Position`
        encode : `Encode`
        report : `Report`
            Told of what goes by.
        """
        pass_number = position.pass_number
        paths = shards.paths
        # With a limit, the sentences are those that AllenNLP would read: the first ones.
        if self.shuffle and self.limit is None:
            paths = [paths[i] for i in random_order(len(paths), self.seed, pass_number, 0)]
        chunks = read_chunks(paths, self.max_lines, position.place, check=shards.check)
        for text, chunk in encode(chunks):
            report.at(pass_number, text.start.shard, paths)
            position = replace(position, place=text.start)
            lengths = chunk.lengths()
            if self.limit is not None:
                lengths = lengths[: self.limit - position.num_sentences]
            report.add(int(lengths.sum()), chunk)
            if len(lengths):
                planned = self._cut(chunk, lengths, position)[position.batch_number :]
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
        report.end(position.num_sentences, len(paths))

    def _cut(self, chunk: Chunk, lengths: Any, position: Position) -> List[PlannedBatch]:
        path = (self.seed, position.pass_number, 1, position.chunk_number)
        batches = cut_into_batches(
            np.maximum(lengths + self.num_boundary_tokens, self.min_length),
            self.max_tokens,
            self.batch_size,
            path if self.shuffle else None,
        )
        # One pass over the chunk puts the words of each batch side by side.
        chunk = chunk.select(np.concatenate(batches))
        ends = np.cumsum([len(batch) for batch in batches]).tolist()
        return [
            PlannedBatch(replace(position, batch_number=i), chunk, begin, end)
            for i, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True))
        ]


@dataclass
class Report:
    """
    What the log says of a pass.

    # Parameters

    data_path : `Any`
        The corpus, as the user named it.
    max_length : `int`, optional
        Sentences of more tokens are dropped.
    quiet : `bool`, optional (default = `False`)
        Whether nothing is logged.
    """

    data_path: Any
    max_length: Optional[int]
    quiet: bool = False
    num_words: int = 0
    num_dropped: int = 0
    num_blank: int = 0
    _shard: int = -1

    def at(self, pass_number: int, shard: int, paths: List[Path]) -> None:
        """Where the number of batches isn't known, this is how to see what is left."""
        if self.quiet or len(paths) < 2 or shard == self._shard:
            return
        self._shard = shard
        logger.info(
            "Pass %d over the corpus: at file %d of %d, %s.",
            pass_number + 1,
            shard + 1,
            len(paths),
            paths[shard],
        )

    def add(self, num_words: int, chunk: Chunk) -> None:
        """Counts what a chunk had."""
        self.num_words += num_words
        self.num_dropped += chunk.num_dropped
        self.num_blank += chunk.num_blank

    def end(self, num_sentences: int, num_files: int) -> None:
        """
        # Raises

        `ConfigurationError`
            If there was no sentence.
        """
        if num_sentences == 0:
            dropped = ""
            if self.num_dropped:
                dropped = (
                    f", {self.num_dropped} sentences of more than {self.max_length} tokens "
                    "(max_sequence_length)"
                )
            raise ConfigurationError(
                f"There is no sentence in {self.data_path}: {num_files} files, {self.num_blank} "
                f"blank lines{dropped}. Expected text, one sentence a line."
            )
        if self.quiet:
            return
        logger.info(
            "Read %d words from %s; skipped %d blank lines.",
            self.num_words,
            self.data_path,
            self.num_blank,
        )
        if self.num_dropped:
            logger.warning(
                "Dropped %d sentences of %s of more than %s tokens (max_sequence_length).",
                self.num_dropped,
                self.data_path,
                self.max_length,
            )
