"""The fast path: text on disk to padded tensors, arrays all the way."""

import hashlib
import multiprocessing
import threading
import time
from collections import deque
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Callable, Deque, Dict, Iterator, List, Optional, Tuple, TypeVar

import torch
import torch.distributed as dist
from allennlp.common.tqdm import Tqdm
from allennlp.data.data_loaders.data_loader import DataLoader, TensorDict
from allennlp.data.dataset_readers.dataset_reader import DatasetReader
from allennlp.data.instance import Instance
from allennlp.data.token_indexers import ELMoTokenCharactersIndexer
from allennlp.data.vocabulary import Vocabulary
from overrides import overrides

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.kernels.sparse_gradients import several_processes
from transformer_elmo.plugin.dataset_reader import SimpleLanguageModelingDatasetReader, fits_a_table
from transformer_elmo.plugin.encoders import Encoder, InstancesEncoder, TableEncoder
from transformer_elmo.text.batching import Round, deal_rounds, regrouped
from transformer_elmo.text.corpus import DataPath, Shards, find_shards, has_sentences, most_words
from transformer_elmo.text.training_stream import (
    Chunk,
    PassLog,
    PlannedBatch,
    Position,
    Schedule,
    TextChunk,
    prefetch,
)
from transformer_elmo.text.vocabulary import NAMESPACE

T = TypeVar("T")

# Batches made ahead of the one in use. A few are enough to hide the time that one takes, and they
# are the largest thing that the loader keeps: 400 bytes a token.
PREFETCHED_BATCHES = 8

# Chunks encoded ahead of the one in use.
PREFETCHED_CHUNKS = 1

# Corpora of up to this many bytes are looked through when a loader is made, and counted when
# somebody asks for the number of batches.
MAX_BYTES_TO_COUNT = 2**24


@DataLoader.register("language_modeling", exist_ok=True)
class LanguageModelingDataLoader(DataLoader):
    """
    Streams a corpus of any size as batches of sentences of about equal length.

    The corpus is read as chunks of `max_instances_in_memory` lines. Within a chunk, sentences are
    sorted by length and cut into batches; with `shuffle`, the order of the shards, the sentences of
    equal length and the order of the batches of a chunk are random. The order is a function of the
    seed, the number of the epoch and the corpus, and of nothing else: not of workers, processes or
    restarts.

    With the reader's tokenizer `just_spaces` and token indexers `single_id` and `elmo_characters`,
    no object is made per sentence or token. Any other tokenizer or indexer works too, and the
    batches are exactly what AllenNLP makes of the same sentences.

    Under `torch.distributed`, the same sequence of batches is dealt out to the processes: process
    `r` of `W` takes the batches `r`, `r + W`, ... Every process takes the same number of steps, and
    no sentence is lost: where the last round is short of batches, the largest ones are split. So a
    step takes as many batches as there are processes, times the trainer's
    `num_gradient_accumulation_steps`. A run that goes on with another number of processes, which
    must divide that number, keeps the steps.

    Registered as a `DataLoader` with name "language_modeling".

    - `reader`: A `SimpleLanguageModelingDatasetReader`, which says what words and tensors are.
    - `data_path`: What :func:`~transformer_elmo.text.corpus.find_shards` takes. With `None` there
      are no instances, and iterating is an error.
    - `max_tokens`: The most tokens that a batch may have: its sentences times the longest one,
      start and end tokens included. A longer sentence goes alone.
    - `batch_size`: The most sentences that a batch may have. `max_tokens`, `batch_size` or both
      must be given.
    - `shuffle`: If `False`, shards and chunks come in order, and the batches of a chunk from short
      sentences to long ones.
    - `max_instances_in_memory`: The number of lines of a chunk.
    - `batches_per_epoch`: If given, an epoch has exactly this many batches, and the next one goes
      on where it ended.
    - `distinct_words`: If `True`, `elmo_characters` gives each distinct word of a batch once:
      `elmo_tokens` has shape `(num_distinct_words + 1, 50)`, its row 0 is the padding, and
      `word_index`, of shape `(batch_size, timesteps)`, says which row each word is.
    - `keep_long_sentences`: If `True`, the reader's `max_sequence_length` is ignored: whoever
      evaluates wants every sentence.
    - `num_workers`: The number of processes that tokenize and look up words. With 0 a thread does
      it, which is enough for `just_spaces`.
    - `seed`: The seed of the order.
    - `quiet`: If `True`, there is no progress bar where instances are read.
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
        self._words_only = all(map(fits_a_table, reader.token_indexers.values()))
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
        """How long whoever iterates has waited for batches, in all."""
        self._keep_long_sentences = keep_long_sentences
        # AllenNLP makes a loader of `"validation_data_path": null` where it makes a vocabulary.
        self._shards = Shards([] if data_path is None else find_shards(data_path))
        if self._shards.paths and self._shards.num_bytes <= MAX_BYTES_TO_COUNT:
            # What is wrong with the text for validation is better known now than after an epoch.
            if not sum(has_sentences(path) for path in self._shards.paths):
                raise ConfigurationError(
                    f"There is no sentence in {self.data_path}: {len(self._shards.paths)} files, "
                    f"{self._shards.num_bytes} bytes. Expected text, one sentence a line."
                )
        self._device: Optional[torch.device] = None
        self._vocab: Optional[Vocabulary] = None
        self._vocabulary_description: Optional[str] = None
        self._encoder: Optional[Encoder] = None
        # The threads of a pass that was given up may still be busy when the next one begins, and a
        # encoder is for one at a time.
        self._encoding = threading.Lock()
        self._making_tensors = threading.Lock()
        self._num_batches: Optional[int] = None

        # The pass that begins next, and where the current one goes on (None when it is over).
        self._next_pass = 0
        self._position: Optional[Position] = None
        # With `batches_per_epoch`, a pass goes on from one epoch to the next.
        self._current_pass: Optional[Iterator[TensorDict]] = None
        self._resumption: Optional[_Resumption] = None
        # Of a run that was begun with another number of processes: their number.
        self._dealt_to: Optional[int] = None

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
        self._vocabulary_description = None
        self._encoder = None
        self._num_batches = None
        if several_processes() and self._shards.paths:
            self._check_enough_for(dist.get_world_size())

    def _check_enough_for(self, num_processes: int) -> None:
        # Of text for validation, better now than after an epoch.
        if self._shards.num_bytes > MAX_BYTES_TO_COUNT or not self._make_encoder().is_fast:
            return
        num_sentences = 0
        for batches in self._plan(Position(0), quiet=True):
            num_sentences += sum(map(len, batches))
            if num_sentences >= num_processes:
                return
        raise ConfigurationError(
            f"{self.data_path} has {num_sentences} sentences, fewer than the {num_processes} "
            "processes that share it. Use fewer processes (distributed.cuda_devices) or more text."
        )

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
        of them: with `batches_per_epoch`; for a corpus of a single chunk; and without `shuffle`,
        once the corpus has been read. A small corpus is counted on the spot.

        Raises `TypeError` where it isn't known, as AllenNLP wants it.
        """
        if self._rounds_per_epoch is not None:
            return self._rounds_per_epoch
        if (
            self._num_batches is None
            and self._vocab is not None
            and self._shards.num_bytes <= MAX_BYTES_TO_COUNT
            and self._make_encoder().is_fast
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
        num_replayed, goes_on = 0, False
        if self._resumption is not None:
            if self._resumption.num_epochs > 0:
                # Nobody looks at the batches of an epoch that was finished before, so there are
                # none.
                self._resumption.num_epochs -= 1
                return
            num_replayed, goes_on = self._resumption.num_batches, self._position is not None
            for _ in range(num_replayed):
                yield {}
            on_resumed = self._resumption.on_resumed
            self._resumption = None
            on_resumed()
        if self._rounds_per_epoch is None:
            # An epoch is a pass: at its end, the epoch is over, too.
            if goes_on or not num_replayed:
                self._position = self._position if goes_on else None
                yield from self._iterate_pass()
            return
        for _ in range(self._rounds_per_epoch - num_replayed):
            batch = None if self._current_pass is None else next(self._current_pass, None)
            if batch is None:
                self._current_pass = self._iterate_pass()
                batch = next(self._current_pass)
            yield batch

    def state_dict(self) -> Dict[str, Any]:
        """Where the loader stands: after the batch that was handed out last."""
        return {
            "next_pass": self._next_pass,
            "position": None if self._position is None else self._position.to_json(),
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

        - `state`: What :meth:`state_dict` gave.
        - `num_epochs`: How many finished epochs will be asked for again. They are empty.
        - `num_batches`: How many batches of the epoch after those will be asked for again. They are
          `{}`.
        - `on_resumed`: Called before the first batch that is new.

        Raises `ConfigurationError` if the corpus or a setting that the order depends on is another
        one.
        """
        self.check_same_data(state)
        self._next_pass = state["next_pass"]
        position = state["position"]
        self._position = None if position is None else Position.from_json(position)
        self._current_pass = None
        self._resumption = _Resumption(num_epochs, num_batches, on_resumed)

    def deal_as(self, num_processes: int) -> None:
        """
        From now on, batches come in the order of a run on another number of processes, so that
        those of its steps are shared by these. Called before :meth:`resume`.

        Raises `ConfigurationError` if an epoch's batches can't be shared so.
        """
        self._dealt_to = num_processes
        _, world_size = _place_among_processes()
        if self.batches_per_epoch is not None and num_processes % world_size:
            raise ConfigurationError(
                "A run with batches_per_epoch goes on with a number of processes that divides the "
                f"{num_processes} that it was begun with, and there are {world_size}."
            )

    @property
    def _rounds_per_epoch(self) -> Optional[int]:
        if self.batches_per_epoch is None or self._dealt_to is None:
            return self.batches_per_epoch
        return self.batches_per_epoch * self._dealt_to // _place_among_processes()[1]

    def check_same_data(self, state: Dict[str, Any]) -> None:
        """
        - `state`: What :meth:`state_dict` gave.

        Raises `ConfigurationError` if the corpus or a setting that the order depends on is another
        one.
        """
        for name, value in self._settings().items():
            # A checkpoint of an earlier version may say less.
            before = state["settings"].get(name, value)
            if before != value:
                raise ConfigurationError(
                    f"Can't go on where the run was stopped: {name} is now {value}, and was "
                    f"{before}. Restore it, or begin a new run."
                )

    def _settings(self) -> Dict[str, Any]:
        return {
            "the corpus": self._shards.description,
            "the corpus's content": self._shards.content,
            "the vocabulary": self._describe_vocabulary(),
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

    def _describe_vocabulary(self) -> str:
        if self._vocabulary_description is None:
            assert self._vocab is not None
            words = self._vocab.get_index_to_token_vocabulary(NAMESPACE)
            listed = "\n".join(words[number] for number in sorted(words))
            digest = hashlib.sha256(listed.encode("utf-8", "surrogatepass")).hexdigest()
            self._vocabulary_description = f"{len(words)} words ({digest[:16]})"
        return self._vocabulary_description

    def _max_length(self) -> Optional[int]:
        return None if self._keep_long_sentences else self.reader.max_sequence_length

    def _make_encoder(self) -> Encoder:
        if self._encoder is None:
            assert self._vocab is not None
            if self._words_only:
                self._encoder = TableEncoder(self.reader, self._vocab, self.distinct_words)
            else:
                self._encoder = InstancesEncoder(self.reader, self._vocab)
        return self._encoder

    def _iterate_pass(self) -> Iterator[TensorDict]:
        position = self._position or Position(self._next_pass)
        self._next_pass = position.pass_number + 1
        for batch, following in self._prefetched(lambda: self._make_batches(position)):
            self._position = following
            yield self._on_device(batch)

    def _prefetched(self, make: Callable[[], Iterator[T]]) -> Iterator[T]:
        batches = prefetch(make, PREFETCHED_BATCHES, "batches")
        try:
            while True:
                begin = time.perf_counter()
                item = next(batches, None)
                self.seconds_waited += time.perf_counter() - begin
                if item is None:
                    return
                yield item
        finally:
            batches.close()  # type: ignore[attr-defined]

    def _on_device(self, batch: TensorDict) -> TensorDict:
        if self._device is None or self._device.type == "cpu":
            return batch
        return _map_tensors(lambda tensor: tensor.to(self._device, non_blocking=True), batch)

    def _make_batches(self, position: Position) -> Iterator[Tuple[TensorDict, Optional[Position]]]:
        for batch, following in self._deal(self._plan_ahead(position), position.num_skipped):
            yield self._tensors(batch), following

    def _plan_ahead(self, position: Position) -> Iterator[List[PlannedBatch]]:
        # Words are looked up in a thread of their own, so that no batch waits for a whole chunk of
        # them.
        return prefetch(lambda: self._plan(position), PREFETCHED_CHUNKS, "chunks")

    def _tensors(self, batch: PlannedBatch) -> TensorDict:
        with self._making_tensors:
            tensors = self._make_encoder().tensors(batch.chunk, batch.begin, batch.end)
        if self._device is not None and self._device.type == "cuda":
            tensors = _map_tensors(torch.Tensor.pin_memory, tensors)
        return tensors

    def _deal(
        self, planned: Iterator[List[PlannedBatch]], num_skipped: int = 0
    ) -> Iterator[Tuple[PlannedBatch, Optional[Position]]]:
        """
        This process's batches, and where each leaves the corpus: on another number of processes
        than the run was begun with, only at the end of a step.
        """
        rank, world_size = _place_among_processes()
        num_chunks = num_batches = 0
        whole_pass = False

        def counted() -> Iterator[PlannedBatch]:
            nonlocal num_chunks, whole_pass
            for batches in planned:
                if num_chunks == 0:
                    first = batches[0].position
                    whole_pass = first.chunk_number == first.batch_number == num_skipped == 0
                num_chunks += 1
                yield from batches

        dealt_to = self._dealt_to or world_size
        rounds: Iterator[Round[PlannedBatch]] = islice(
            deal_rounds(counted(), dealt_to), num_skipped, None
        )
        if dealt_to != world_size:
            rounds = regrouped(rounds, world_size)
        for of_round in rounds:
            num_batches += 1
            following = None
            if of_round.resume_at is not None:
                following = replace(of_round.resume_at.position, num_skipped=of_round.num_skipped)
            yield of_round.batches[rank], following
        # Shuffling spreads sentences over chunks differently each time, so several chunks may
        # have one batch more or less in the next epoch.
        if whole_pass and (num_chunks == 1 or not self.shuffle):
            self._num_batches = num_batches

    def _plan(self, position: Position, quiet: bool = False) -> Iterator[List[PlannedBatch]]:
        """The batches from a position to the end of its pass, a list of them for each chunk."""
        schedule = Schedule(
            self.max_tokens,
            self.batch_size,
            self.shuffle,
            self.seed,
            self.max_instances_in_memory,
            self.reader.max_instances,
            self.reader.num_boundary_tokens,
            max(i._token_min_padding_length for i in self.reader.token_indexers.values()),
        )
        log = PassLog(self.data_path, self._max_length(), quiet)
        return schedule.plan(self._shards, position, self._encode, log)

    def _encode(self, chunks: Iterator[TextChunk]) -> Iterator[Tuple[TextChunk, Chunk]]:
        encoder = self._make_encoder()
        max_words = most_words(self._max_length(), self.reader.num_boundary_tokens)
        if self.num_workers == 0:
            for text in chunks:
                with self._encoding:
                    chunk = encoder.encode(text, max_words)
                yield text, chunk
            return
        # A forked process has the vocabulary without being sent it. It never touches a device.
        start_method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
        executor = ProcessPoolExecutor(
            self.num_workers,
            mp_context=multiprocessing.get_context(start_method),
            initializer=_start_worker,
            initargs=(encoder,),
        )
        pending: Deque[Tuple[TextChunk, Future[Chunk]]] = deque()
        try:
            for text in chunks:
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


def _place_among_processes() -> Tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if several_processes() else (0, 1)


@dataclass
class _Resumption:
    num_epochs: int
    num_batches: int
    on_resumed: Callable[[], None]


_worker_encoder: Optional[Encoder] = None


def _start_worker(encoder: Encoder) -> None:
    global _worker_encoder
    _worker_encoder = encoder


def _encode_in_worker(text: TextChunk, max_words: float) -> Chunk:
    assert _worker_encoder is not None
    return _worker_encoder.encode(text, max_words)


def _map_tensors(function: Callable[[torch.Tensor], torch.Tensor], batch: Any) -> Any:
    if isinstance(batch, torch.Tensor):
        return function(batch)
    if isinstance(batch, dict):
        return {key: _map_tensors(function, value) for key, value in batch.items()}
    return batch
