"""
The fast path: text on disk to padded tensors, arrays all the way.
"""

import hashlib
import logging
import multiprocessing
import os
import threading
import time
from collections import deque
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Callable, Deque, Dict, Iterator, List, Optional, Tuple

import numpy as np
import torch
import torch.distributed as dist
from allennlp.common.checks import ConfigurationError
from allennlp.common.tqdm import Tqdm
from allennlp.common.util import is_distributed
from allennlp.data.data_loaders.data_loader import DataLoader, TensorDict
from allennlp.data.dataset_readers.dataset_reader import DatasetReader
from allennlp.data.instance import Instance
from allennlp.data.token_indexers import ELMoTokenCharactersIndexer
from allennlp.data.vocabulary import Vocabulary
from overrides import overrides

from transformer_elmo.data.batching import cut_into_batches, deal, random_order
from transformer_elmo.data.corpus import DataPath, find_shards, has_sentences
from transformer_elmo.data.dataset_reader import SimpleLanguageModelingDatasetReader
from transformer_elmo.data.prefetch import prefetch
from transformer_elmo.data.windows import (
    START,
    Codec,
    InstancesCodec,
    Place,
    TextWindow,
    Window,
    WordsCodec,
    read_windows,
)
from transformer_elmo.data.words import WordTable

logger = logging.getLogger(__name__)

# Batches made ahead of the one in use. A few are enough to hide the time that one takes, and they
# are the largest thing that the loader keeps: 400 bytes a token.
PREFETCHED_BATCHES = 8

# Windows encoded ahead of the one in use.
PREFETCHED_WINDOWS = 1

# Corpora of up to this many bytes are looked through when a loader is made, and counted when
# somebody asks for the number of batches.
MAX_BYTES_TO_COUNT = 2**24


@dataclass(frozen=True)
class Position:
    """
    Where a pass over the corpus stands: at a batch of a window.
    """

    pass_number: int
    window_number: int = 0
    # Where the window begins in the shards as this pass orders them, and the sentences before it.
    place: Place = START
    num_sentences: int = 0
    batch_number: int = 0


@dataclass(frozen=True)
class PlannedBatch:
    """
    A batch before it is made: some consecutive sentences of a window.
    """

    position: Position
    window: Window
    begin: int
    end: int

    def __len__(self) -> int:
        return self.end - self.begin

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
        ours = self.window.select(np.arange(self.begin, self.end))
        window = ours.join(other.window.select(np.arange(other.begin, other.end)))
        return PlannedBatch(self.position, window, 0, len(self) + len(other))


@DataLoader.register("language_modeling", exist_ok=True)
class LanguageModelingDataLoader(DataLoader):
    """
    Streams a corpus of any size as batches of sentences of about equal length.

    The corpus is read as windows of `max_instances_in_memory` lines. Within a window, sentences are
    sorted by length and cut into batches; with `shuffle`, the order of the shards, the sentences of
    equal length and the order of the batches of a window are random. The order is a function of the
    seed, the number of the epoch and the corpus, and of nothing else: not of workers, processes or
    restarts.

    With the reader's tokenizer `just_spaces` and token indexers `single_id` and `elmo_characters`,
    no object is made per sentence or token. Any other tokenizer or indexer works too, and the
    batches are exactly what AllenNLP makes of the same sentences.

    Under `torch.distributed`, the same sequence of batches is dealt out to the processes: process
    `r` of `W` takes the batches `r`, `r + W`, ... Every process takes the same number of steps, and
    no sentence is lost: where the last round is short of batches, its largest ones are split, and
    if it is short of sentences even, they join batches of the round before it.

    Registered as a `DataLoader` with name "language_modeling".

    # Parameters

    reader : `DatasetReader`
        A `SimpleLanguageModelingDatasetReader`, which says what words and tensors are.
    data_path : `str` or `List[str]`
        What :func:`~transformer_elmo.data.corpus.find_shards` takes. With `None` there are no
        instances, and iterating is an error.
    max_tokens : `int`, optional (default = `None`)
        The most tokens that a batch may have: its sentences times the longest one, start and end
        tokens included. A longer sentence goes alone.
    batch_size : `int`, optional (default = `None`)
        The most sentences that a batch may have. `max_tokens`, `batch_size` or both must be given.
    shuffle : `bool`, optional (default = `True`)
        If `False`, shards and windows come in order, and the batches of a window from short
        sentences to long ones.
    max_instances_in_memory : `int`, optional (default = `32768`)
        The number of lines of a window.
    batches_per_epoch : `int`, optional (default = `None`)
        If given, an epoch has exactly this many batches, and the next one goes on where it ended.
    distinct_words : `bool`, optional (default = `False`)
        If `True`, `elmo_characters` gives each distinct word of a batch once: `elmo_tokens` has
        shape
        `(num_distinct_words + 1, 50)`, its row 0 is the padding, and `word_index`, of shape
        `(batch_size, timesteps)`, says which row each word is.
    keep_long_sentences : `bool`, optional (default = `False`)
        If `True`, the reader's `max_sequence_length` is ignored: whoever evaluates wants every
        sentence.
    num_workers : `int`, optional (default = `0`)
        The number of processes that tokenize and look up words. With 0 a thread does it, which is
        enough for `just_spaces`.
    seed : `int`, optional (default = `0`)
        The seed of the order.
    quiet : `bool`, optional (default = `False`)
        If `True`, there is no progress bar where instances are read.
    """

    def __init__(
        self,
        reader: DatasetReader,
        data_path: Optional[DataPath],
        *,
        max_tokens: Optional[int] = None,
        batch_size: Optional[int] = None,
        shuffle: bool = True,
        max_instances_in_memory: int = 32768,
        batches_per_epoch: Optional[int] = None,
        distinct_words: bool = False,
        keep_long_sentences: bool = False,
        num_workers: int = 0,
        seed: int = 0,
        quiet: bool = False,
    ) -> None:
        if not isinstance(reader, SimpleLanguageModelingDatasetReader):
            raise ConfigurationError(
                'The data loader "language_modeling" reads sentences, one a line, and needs '
                'transformer_elmo\'s dataset reader "simple_language_modeling"; this one is a '
                f"{type(reader).__name__}."
            )
        if max_tokens is None and batch_size is None:
            raise ConfigurationError(
                'The data loader "language_modeling" needs "max_tokens" (the size of a batch in '
                'tokens, padding included), "batch_size" (in sentences), or both.'
            )
        for name, value, least in (
            ("max_tokens", max_tokens, 1),
            ("batch_size", batch_size, 1),
            ("max_instances_in_memory", max_instances_in_memory, 1),
            ("batches_per_epoch", batches_per_epoch, 1),
            ("num_workers", num_workers, 0),
            ("seed", seed, 0),
        ):
            if value is not None and value < least:
                raise ConfigurationError(f'"{name}" must be at least {least}, and is {value}.')
        self._words_only = all(map(WordTable.supports, reader.token_indexers.values()))
        if distinct_words and not (
            self._words_only
            and any(
                isinstance(indexer, ELMoTokenCharactersIndexer)
                for indexer in reader.token_indexers.values()
            )
        ):
            raise ConfigurationError(
                '"distinct_words" needs a token indexer "elmo_characters", and beside it none but '
                '"single_id" with its default feature and no tokens of its own. There are: '
                f"{reader.token_indexers}."
            )
        self.reader = reader
        self.data_path = data_path
        self.max_tokens = max_tokens
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.max_instances_in_memory = max_instances_in_memory
        self.batches_per_epoch = batches_per_epoch
        self.distinct_words = distinct_words
        self.num_workers = num_workers
        self.seed = seed
        self.quiet = quiet
        self.seconds_waited = 0.0
        """
        How long whoever iterates has waited for batches, in all.
        """
        self._keep_long_sentences = keep_long_sentences
        # AllenNLP makes a loader of `"validation_data_path": null` where it makes a vocabulary.
        self._shards = _Shards([] if data_path is None else find_shards(data_path))
        if self._shards.paths and self._shards.num_bytes <= MAX_BYTES_TO_COUNT:
            # What is wrong with the text for validation is better known now than after an epoch.
            if not sum(has_sentences(path) for path in self._shards.paths):
                raise ConfigurationError(
                    f"There is no sentence in {self.data_path}: {len(self._shards.paths)} files, "
                    f"{self._shards.num_bytes} bytes. Expected text, one sentence a line."
                )
        self._device: Optional[torch.device] = None
        self._vocab: Optional[Vocabulary] = None
        self._codec: Optional[Codec] = None
        # The threads of a pass that was given up may still be busy when the next one begins, and a
        # codec is for one at a time.
        self._encoding = threading.Lock()
        self._making_tensors = threading.Lock()
        self._num_batches: Optional[int] = None

        # The pass that begins next, and where the current one goes on (None when it is over).
        self._next_pass = 0
        self._position: Optional[Position] = None
        # With `batches_per_epoch`, a pass goes on from one epoch to the next.
        self._current_pass: Optional[Iterator[TensorDict]] = None
        self._resumption: Optional[_Resumption] = None

    def keep_long_sentences(self) -> None:
        """
        From the next epoch on, no sentence is dropped for its length, whatever the reader's
        `max_sequence_length`.
        """
        self._keep_long_sentences = True
        self._num_batches = None

    @overrides
    def index_with(self, vocab: Vocabulary) -> None:
        self._vocab = vocab
        self._codec = None
        self._num_batches = None

    @overrides
    def set_target_device(self, device: torch.device) -> None:
        self._device = device

    @overrides
    def iter_instances(self) -> Iterator[Instance]:
        if self.data_path is None:
            return
        instances = self.reader.read(self.data_path)  # type: ignore[arg-type]
        if not self.quiet:
            instances = iter(Tqdm.tqdm(instances, desc="loading instances"))
        for instance in instances:
            if self._vocab is not None:
                instance.index_fields(self._vocab)
            yield instance

    @overrides
    def __len__(self) -> int:
        """
        The number of batches of an epoch (for this process), where it is known and the same in all
        of them: with `batches_per_epoch`; for a corpus of a single window; and without `shuffle`,
        once the corpus has been read. A small corpus is counted on the spot.

        # Raises

        `TypeError`
            Where it isn't known, as AllenNLP wants it.
        """
        if self.batches_per_epoch is not None:
            return self.batches_per_epoch
        if (
            self._num_batches is None
            and self._vocab is not None
            and self._shards.num_bytes <= MAX_BYTES_TO_COUNT
            and self._make_codec().is_fast
        ):
            for _ in self._deal(self._plan(Position(0), quiet=True)):
                pass  # Coming to the end is what sets the number.
        if self._num_batches is None:
            raise TypeError("The number of batches of this corpus is not known.")
        return self._num_batches

    @overrides
    def __iter__(self) -> Iterator[TensorDict]:
        if self._vocab is None:
            raise ValueError(
                "The data loader has no vocabulary yet: call index_with(vocab) before iterating "
                "over it."
            )
        if self.data_path is None:
            raise ConfigurationError("The path of the corpus is null: name a file.")
        num_replayed = 0
        if self._resumption is not None:
            if self._resumption.num_epochs > 0:
                # Nobody looks at the batches of an epoch that was finished before, so there are
                # none.
                self._resumption.num_epochs -= 1
                return
            num_replayed = self._resumption.num_batches
            for _ in range(num_replayed):
                yield {}
            on_resumed = self._resumption.on_resumed
            self._resumption = None
            on_resumed()
            if num_replayed and self._position is None:
                # The run was stopped after the last batch of an epoch.
                return
        if self.batches_per_epoch is None:
            if not num_replayed:
                self._position = None
            yield from self._iterate_pass()
            return
        for _ in range(self.batches_per_epoch - num_replayed):
            batch = None if self._current_pass is None else next(self._current_pass, None)
            if batch is None:
                self._current_pass = self._iterate_pass()
                batch = next(self._current_pass)
            yield batch

    def state_dict(self) -> Dict[str, Any]:
        """
        Where the loader stands: after the batch that was handed out last.
        """
        return {
            "next_pass": self._next_pass,
            "position": None if self._position is None else asdict(self._position),
            "settings": self._settings(),
        }

    def resume(
        self,
        state: Dict[str, Any],
        num_epochs: int,
        num_batches: int,
        on_resumed: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Goes on where another loader of the same corpus and settings stood. AllenNLP's trainer asks
        again for the batches that it has seen, without looking at them; they are not read again.

        # Parameters

        state : `Dict[str, Any]`
            What :meth:`state_dict` gave.
        num_epochs : `int`
            How many finished epochs will be asked for again. They are empty.
        num_batches : `int`
            How many batches of the epoch after those will be asked for again. They are `{}`.
        on_resumed : `Callable[[], None]`, optional
            Called before the first batch that is new.

        # Raises

        `ConfigurationError`
            If the corpus or a setting that the order depends on is another one.
        """
        settings = self._settings()
        for name, value in settings.items():
            # A checkpoint of an earlier version may say less.
            before = state["settings"].get(name, value)
            if before != value:
                raise ConfigurationError(
                    f"Can't go on where the run was stopped: {name} is now {value}, and was "
                    f"{before}. Restore it, or begin a new run."
                )
        self._next_pass = state["next_pass"]
        position = state["position"]
        self._position = (
            None
            if position is None
            else Position(**{**position, "place": Place(**position["place"])})
        )
        self._current_pass = None
        self._resumption = _Resumption(num_epochs, num_batches, on_resumed)

    def _settings(self) -> Dict[str, Any]:
        return {
            "the corpus": self._shards.description,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "max_tokens": self.max_tokens,
            "batch_size": self.batch_size,
            "max_instances_in_memory": self.max_instances_in_memory,
            "max_sequence_length": self._max_length(),
            "max_instances": self.reader.max_instances,
            # They say how long sentences are.
            "the tokenizer": type(self.reader.tokenizer).__name__,
            "the number of start and end tokens": self.reader.num_boundary_tokens,
        }

    def _max_length(self) -> Optional[int]:
        return None if self._keep_long_sentences else self.reader.max_sequence_length

    def _make_codec(self) -> Codec:
        if self._codec is None:
            assert self._vocab is not None
            if self._words_only:
                self._codec = WordsCodec(self.reader, self._vocab, self.distinct_words)
            else:
                self._codec = InstancesCodec(self.reader, self._vocab)
        return self._codec

    def _iterate_pass(self) -> Iterator[TensorDict]:
        position = self._position or Position(self._next_pass)
        self._next_pass = position.pass_number + 1
        batches = prefetch(lambda: self._make_batches(position), PREFETCHED_BATCHES, "batches")
        try:
            while True:
                begin = time.perf_counter()
                item = next(batches, None)
                self.seconds_waited += time.perf_counter() - begin
                if item is None:
                    return
                batch, self._position = item
                if self._device is not None and self._device.type != "cpu":
                    batch = _map_tensors(
                        lambda tensor: tensor.to(self._device, non_blocking=True), batch
                    )
                yield batch
        finally:
            batches.close()  # type: ignore[attr-defined]

    def _make_batches(self, position: Position) -> Iterator[Tuple[TensorDict, Optional[Position]]]:
        codec = self._make_codec()
        pin_memory = self._device is not None and self._device.type == "cuda"
        # Words are looked up in a thread of their own, so that no batch waits for a whole window of
        # them.
        planned = prefetch(lambda: self._plan(position), PREFETCHED_WINDOWS, "windows")
        for batch, following in self._deal(planned):
            with self._making_tensors:
                tensors = codec.tensors(batch.window, batch.begin, batch.end)
            if pin_memory:
                tensors = _map_tensors(torch.Tensor.pin_memory, tensors)
            yield tensors, None if following is None else following.position

    def _deal(
        self, planned: Iterator[List[PlannedBatch]]
    ) -> Iterator[Tuple[PlannedBatch, Optional[PlannedBatch]]]:
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)
        num_windows = num_batches = 0
        whole_pass = False

        def flatten() -> Iterator[PlannedBatch]:
            nonlocal num_windows, whole_pass
            for batches in planned:
                if num_windows == 0:
                    first = batches[0].position
                    whole_pass = first.window_number == 0 and first.batch_number == 0
                num_windows += 1
                yield from batches

        for item in deal(flatten(), rank, world_size, len, PlannedBatch.split, PlannedBatch.merge):
            num_batches += 1
            yield item
        # Shuffling spreads sentences over windows differently each time, so several windows may
        # have one batch more or less in the next epoch.
        if whole_pass and (num_windows == 1 or not self.shuffle):
            self._num_batches = num_batches

    def _plan(self, position: Position, quiet: bool = False) -> Iterator[List[PlannedBatch]]:
        """
        The batches from a position to the end of its pass, a list of them for each window. If
        `quiet`, nothing is logged.
        """
        pass_number = position.pass_number
        shards = self._shards.paths
        # With `max_instances`, the sentences are those that AllenNLP would read: the first ones.
        limit = self.reader.max_instances
        if self.shuffle and limit is None:
            shards = [shards[i] for i in random_order(len(shards), self.seed, pass_number, 0)]
        windows = read_windows(
            shards, self.max_instances_in_memory, position.place, check=self._shards.check
        )
        min_length = max(
            indexer._token_min_padding_length for indexer in self.reader.token_indexers.values()
        )
        num_words = num_dropped = num_blank = 0
        shard = -1
        for text, window in self._encode(windows):
            if not quiet and len(shards) > 1 and text.start.shard != shard:
                # Where the number of batches isn't known, this is how to see what is left.
                shard = text.start.shard
                logger.info(
                    "Pass %d over the corpus: at file %d of %d, %s.",
                    pass_number + 1,
                    shard + 1,
                    len(shards),
                    shards[shard],
                )
            num_dropped += window.num_dropped
            num_blank += window.num_blank
            position = replace(position, place=text.start)
            lengths = window.lengths()
            if limit is not None:
                lengths = lengths[: limit - position.num_sentences]
            if len(lengths):
                num_words += int(lengths.sum())
                batches = cut_into_batches(
                    np.maximum(lengths + self.reader.num_boundary_tokens, min_length),
                    self.max_tokens,
                    self.batch_size,
                    (self.seed, pass_number, 1, position.window_number) if self.shuffle else None,
                )
                # One pass over the window puts the words of each batch side by side.
                window = window.select(np.concatenate(batches))
                ends = np.cumsum([len(batch) for batch in batches]).tolist()
                planned = [
                    PlannedBatch(replace(position, batch_number=i), window, begin, end)
                    for i, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True))
                ]
                if position.batch_number < len(planned):
                    yield planned[position.batch_number :]
            position = Position(
                pass_number,
                position.window_number + 1,
                text.end,
                position.num_sentences + len(lengths),
            )
            if limit is not None and position.num_sentences >= limit:
                break
        if position.num_sentences == 0:
            dropped = ""
            if num_dropped:
                dropped = (
                    f", {num_dropped} sentences of more than {self._max_length()} tokens "
                    "(max_sequence_length)"
                )
            raise ConfigurationError(
                f"There is no sentence in {self.data_path}: {len(shards)} files, {num_blank} blank "
                f"lines{dropped}. Expected text, one sentence a line."
            )
        if quiet:
            return
        logger.info(
            "Read %d words from %s; skipped %d blank lines.", num_words, self.data_path, num_blank
        )
        if num_dropped:
            logger.warning(
                "Dropped %d sentences of %s of more than %s tokens (max_sequence_length).",
                num_dropped,
                self.data_path,
                self._max_length(),
            )

    def _encode(self, windows: Iterator[TextWindow]) -> Iterator[Tuple[TextWindow, Window]]:
        codec = self._make_codec()
        max_length = self._max_length()
        max_words = None if max_length is None else max_length - self.reader.num_boundary_tokens
        if self.num_workers == 0:
            for text in windows:
                with self._encoding:
                    window = codec.encode(text, max_words)
                yield text, window
            return
        # A forked process has the vocabulary without being sent it. It never touches a device.
        start_method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
        executor = ProcessPoolExecutor(
            self.num_workers,
            mp_context=multiprocessing.get_context(start_method),
            initializer=_start_worker,
            initargs=(codec,),
        )
        pending: Deque[Tuple[TextWindow, Future[Window]]] = deque()
        try:
            for text in windows:
                pending.append((text, executor.submit(_encode_in_worker, text, max_words)))
                if len(pending) > self.num_workers:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        except BrokenExecutor as error:
            raise ConfigurationError(
                "A process that tokenizes for the data loader ended before its work was done. The "
                "system may have stopped it for want of memory: try fewer than "
                f'{self.num_workers} for "num_workers", or a smaller "max_instances_in_memory" '
                f"than {self.max_instances_in_memory}."
            ) from error
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


@dataclass
class _Resumption:
    num_epochs: int
    num_batches: int
    on_resumed: Callable[[], None]


class _Shards:
    """
    The files of a corpus, as they were when it was opened.
    """

    def __init__(self, paths: List[Path]) -> None:
        self.paths = paths
        self._seen = {path: self._look_at(path) for path in paths}
        sizes = [self._seen[path][0] for path in paths]
        self.num_bytes = sum(sizes)
        names = "\n".join(f"{path.name} {size}" for path, size in zip(paths, sizes, strict=True))
        digest = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
        self.description = (
            f"{len(paths)} files of {self.num_bytes} bytes (names and sizes: {digest[:16]})"
        )

    @staticmethod
    def _look_at(path: Path) -> Tuple[int, int]:
        try:
            status = os.stat(path)
        except OSError as error:
            raise ConfigurationError(f"Can't read {path}: {error.strerror}.") from error
        return status.st_size, status.st_mtime_ns

    def check(self, path: Path) -> None:
        """
        Raises a `ConfigurationError` if a file is gone or isn't what it was: an epoch of two
        different corpora would look like any other.
        """
        if self._look_at(path) != self._seen[path]:
            raise ConfigurationError(
                f"{path} has changed since the run opened it. Restore it, or begin a new run."
            )


_worker_codec: Optional[Codec] = None


def _start_worker(codec: Codec) -> None:
    global _worker_codec
    _worker_codec = codec


def _encode_in_worker(text: TextWindow, max_words: Optional[int]) -> Window:
    assert _worker_codec is not None
    return _worker_codec.encode(text, max_words)


def _map_tensors(function: Callable[[torch.Tensor], torch.Tensor], batch: Any) -> Any:
    if isinstance(batch, torch.Tensor):
        return function(batch)
    if isinstance(batch, dict):
        return {key: _map_tensors(function, value) for key, value in batch.items()}
    return batch
