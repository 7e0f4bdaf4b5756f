"""The fast path: text on disk to padded tensors, arrays all the way."""

import hashlib
import multiprocessing
import os
import threading
from collections import deque
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import replace
from functools import cached_property
from itertools import chain, islice
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple

import numpy as np
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
from transformer_elmo.text.batching import deal_rounds, regrouped
from transformer_elmo.text.corpus import DataPath, Shards, find_shards, has_sentences, most_words
from transformer_elmo.text.training_stream import (
    PassLog,
    PlannedBatch,
    Position,
    Schedule,
    Sentences,
    TextChunk,
    prefetch,
)
from transformer_elmo.text.vocabulary import NAMESPACE

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
    restarts. Batches are exactly what AllenNLP makes of the same sentences; with the tokenizer
    `just_spaces` and token indexers `single_id` and `elmo_characters` no object is made per token.

    Under `torch.distributed`, process `r` of `W` takes the batches `r`, `r + W`, ... of the same
    sequence. Every process takes the same number of steps, and no sentence is lost: where the last
    round is short of batches, the largest ones are split. So a step takes as many batches as there
    are processes, times the trainer's `num_gradient_accumulation_steps`. A run that goes on with
    another number of processes, which must divide that number, keeps the steps.

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
                'The data loader "language_modeling" needs transformer_elmo\'s dataset reader '
                f'"simple_language_modeling"; this one is a {type(reader).__name__}.'
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
        indexers = reader.token_indexers.values()
        self._words_only = all(map(fits_a_table, indexers))
        has_characters = any(isinstance(i, ELMoTokenCharactersIndexer) for i in indexers)
        if distinct_words and not (self._words_only and has_characters):
            raise ConfigurationError(
                '"distinct_words" needs a token indexer "elmo_characters", and beside it none but '
                '"single_id" with its default feature and no tokens of its own. There are: '
                f"{reader.token_indexers}."
            )
        self.reader = reader
        self.data_path = data_path
        self.max_tokens = max_tokens
        self.batch_size = batch_size
        self.batches_per_epoch = batches_per_epoch
        self._distinct_words = distinct_words
        self._keep_long_sentences = keep_long_sentences
        self._num_workers = num_workers
        self._quiet = quiet
        self._schedule = Schedule(
            max_tokens,
            batch_size,
            shuffle,
            seed,
            max_instances_in_memory,
            reader.max_instances,
            reader.num_boundary_tokens,
            max(indexer._token_min_padding_length for indexer in indexers),
        )
        # AllenNLP makes a loader of `"validation_data_path": null` where it makes a vocabulary.
        self._shards = Shards([] if data_path is None else find_shards(data_path))
        # What is wrong with the text for validation is better known now than after an epoch.
        if self._is_small and not sum(has_sentences(path) for path in self._shards.paths):
            raise ConfigurationError(
                f"There is no sentence in {data_path}: {len(self._shards.paths)} files, "
                f"{self._shards.num_bytes} bytes. Expected text, one sentence a line."
            )
        self._device = torch.device("cpu")
        self._vocab: Optional[Vocabulary] = None
        # The threads of a pass that was given up may still be busy when the next one begins, and
        # tokenizers, like the arrays that batches are made of, are for one at a time.
        self._tokenizing, self._making_tensors = threading.Lock(), threading.Lock()
        # By the longest sentences: the reader may be told to drop none.
        self._num_batches: Dict[Optional[int], Optional[int]] = {}

        # The pass that begins next, and where the current one goes on (None when it is over).
        self._next_pass = 0
        self._position: Optional[Position] = None
        # With `batches_per_epoch`, a pass goes on from one epoch to the next.
        self._passes = self._all_passes()
        # What `resume` was given, until the first new batch.
        self._resumption: Optional[Tuple[int, int, Callable[[], None]]] = None
        # Of a run that was begun with another number of processes: their number.
        self._dealt_to: Optional[int] = None

    @property
    def _is_small(self) -> bool:
        return bool(self._shards.paths) and self._shards.num_bytes <= MAX_BYTES_TO_COUNT

    @overrides
    def index_with(self, vocab: Vocabulary) -> None:
        self._vocab = vocab
        for of_vocab in ("_encoder", "_vocabulary"):
            vars(self).pop(of_vocab, None)
        self._num_batches.clear()
        if several_processes():
            # Of text for validation, it is better known now whether all of them get a sentence.
            self._count()

    @overrides
    def set_target_device(self, device: torch.device) -> None:
        self._device = device

    @overrides
    def iter_instances(self) -> Iterator[Instance]:
        if self.data_path is None:
            return
        instances = self.reader.read(self.data_path)  # type: ignore[arg-type]
        if not self._quiet:
            instances = iter(Tqdm.tqdm(instances, desc="loading instances"))
        for instance in instances:
            if self._vocab is not None:
                instance.index_fields(self._vocab)
            yield instance

    @overrides
    def __len__(self) -> int:
        """
        The number of batches of an epoch (for this process), where it is known and the same in all
        of them: with `batches_per_epoch`; and of a corpus of up to 16 MB, which is counted, if it
        is a single chunk or isn't shuffled.

        Raises `TypeError` where it isn't known, as AllenNLP wants it.
        """
        number = self._rounds_per_epoch or self._count()
        if number is None:
            raise TypeError("The number of batches of this corpus is not known.")
        return number

    def _count(self) -> Optional[int]:
        longest = self._max_length
        if longest not in self._num_batches:
            self._num_batches[longest] = None
            if self._is_small and self._vocab is not None and self._encoder.is_fast:
                chunks = list(self._plan(Position(0), quiet=True))
                number = sum(1 for _ in self._deal(chunks))
                # Shuffling spreads sentences over chunks differently each time, so that several of
                # them may have one batch more or less in the next epoch.
                if len(chunks) == 1 or not self._schedule.shuffle:
                    self._num_batches[longest] = number
        return self._num_batches[longest]

    @overrides
    def __iter__(self) -> Iterator[TensorDict]:
        if self._vocab is None:
            raise ValueError("The data loader has no vocabulary yet: call index_with(vocab) first.")
        if self.data_path is None:
            raise ConfigurationError("The path of the corpus is null: name a file.")
        num_replayed, position = 0, None
        if self._resumption is not None:
            num_epochs, num_replayed, on_resumed = self._resumption
            if num_epochs > 0:
                # Nobody looks at the batches of an epoch that was finished before: there are none.
                self._resumption = num_epochs - 1, num_replayed, on_resumed
                return
            position = self._position
            for _ in range(num_replayed):
                yield {}
            self._resumption = None
            on_resumed()
        if self._rounds_per_epoch is not None:
            yield from islice(self._passes, self._rounds_per_epoch - num_replayed)
        elif position is not None or num_replayed == 0:
            # An epoch is a pass: if that was at its end, there is nothing left of the epoch.
            self._position = position
            yield from self._iterate_pass()

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
        again for what it has seen, without looking at it; it is not read again.

        `state`: what :meth:`state_dict` gave. `num_epochs`: how many finished epochs will be asked
        for again; they are empty. `num_batches`: how many batches of the epoch after those; they
        are `{}`. `on_resumed`: called before the first batch that is new. Raises
        `ConfigurationError` as :meth:`check_same_data` does.
        """
        self.check_same_data(state)
        self._next_pass = state["next_pass"]
        position = state["position"]
        self._position = None if position is None else Position.from_json(position)
        self._passes = self._all_passes()
        self._resumption = num_epochs, num_batches, on_resumed

    def deal_as(self, num_processes: int) -> None:
        """
        From now on, batches come in the order of a run on another number of processes, so that
        those of its steps are shared by these. Called before :meth:`resume`.

        Raises `ConfigurationError` if an epoch's batches can't be shared so.
        """
        self._dealt_to = num_processes
        self._num_batches.clear()
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
        `state`: what :meth:`state_dict` gave. Raises `ConfigurationError` if the corpus or a
        setting that the order depends on is another one.
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
        schedule = self._schedule
        return {
            "the corpus": self._shards.description,
            "the corpus's content": self._shards.content,
            "the vocabulary": self._vocabulary,
            "seed": schedule.seed,
            "shuffle": schedule.shuffle,
            "max_tokens": schedule.max_tokens,
            "batch_size": schedule.batch_size,
            "max_instances_in_memory": schedule.max_lines,
            "max_sequence_length": self._max_length,
            "max_instances": schedule.limit,
            # They say how long sentences are.
            "the tokenizer": type(self.reader.tokenizer).__name__,
            "the number of start and end tokens": schedule.num_boundary_tokens,
        }

    @cached_property
    def _vocabulary(self) -> str:
        """What it comes to."""
        assert self._vocab is not None
        words = self._vocab.get_index_to_token_vocabulary(NAMESPACE)
        listed = "\n".join(words[number] for number in sorted(words))
        digest = hashlib.sha256(listed.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{len(words)} words ({digest[:16]})"

    @cached_property
    def _encoder(self) -> Encoder:
        assert self._vocab is not None
        if self._words_only:
            return TableEncoder(self.reader, self._vocab, self._distinct_words)
        return InstancesEncoder(self.reader, self._vocab)

    @property
    def _max_length(self) -> Optional[int]:
        return None if self._keep_long_sentences else self.reader.max_sequence_length

    def _all_passes(self) -> Iterator[TensorDict]:
        return chain.from_iterable(iter(self._iterate_pass, None))

    def _iterate_pass(self) -> Iterator[TensorDict]:
        position = self._position or Position(self._next_pass)
        self._next_pass = position.pass_number + 1
        made = prefetch(lambda: self._make_batches(position), PREFETCHED_BATCHES, "batches")
        for batch, following in made:
            self._position = following
            if self._device.type != "cpu":
                batch = _map_tensors(lambda t: t.to(self._device, non_blocking=True), batch)
            yield batch

    def _make_batches(self, position: Position) -> Iterator[Tuple[TensorDict, Optional[Position]]]:
        # Words are looked up in a thread of their own: no batch waits for a whole chunk of them.
        share = _place_among_processes()
        planned = prefetch(lambda: self._plan(position, share), PREFETCHED_CHUNKS, "chunks")
        for batch, following in self._deal(planned, position.num_skipped):
            batch = batch.encoded()
            with self._making_tensors:
                tensors = self._encoder.tensors(batch.chunk, batch.begin, batch.end)
            if self._device.type == "cuda":
                tensors = _map_tensors(torch.Tensor.pin_memory, tensors)
            yield tensors, following

    def _deal(
        self, planned: Iterable[List[PlannedBatch]], num_skipped: int = 0
    ) -> Iterator[Tuple[PlannedBatch, Optional[Position]]]:
        """
        This process's batches, and where each leaves the corpus: on another number of processes
        than the run was begun with, only at the end of a step.
        """
        rank, world_size = _place_among_processes()
        dealt_to = self._dealt_to or world_size
        dealt = deal_rounds(chain.from_iterable(planned), dealt_to, str(self.data_path))
        rounds = islice(dealt, num_skipped, None)
        for of_round in rounds if dealt_to == world_size else regrouped(rounds, world_size):
            following = None
            if of_round.resume_at is not None:
                following = replace(of_round.resume_at.position, num_skipped=of_round.num_skipped)
            yield of_round.batches[rank], following

    def _plan(
        self, position: Position, share: Optional[Tuple[int, int]] = None, quiet: bool = False
    ) -> Iterator[List[PlannedBatch]]:
        """The batches from a position to the end of its pass, a list of them for each chunk."""
        log = PassLog(self.data_path, self._max_length, quiet)
        return self._schedule.plan(self._shards, position, self._find_sentences, log, share)

    def _find_sentences(self, chunks: Iterator[TextChunk]) -> Iterator[Tuple[TextChunk, Sentences]]:
        max_words = most_words(self._max_length, self.reader.num_boundary_tokens)
        if self._num_workers == 0:
            for text in chunks:
                with self._tokenizing:
                    found = self._encoder.sentences(text, max_words)
                yield text, found
            return
        # A forked process has the vocabulary without being sent it. It never touches a device.
        context = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
        executor = ProcessPoolExecutor(self._num_workers, context, _start_worker, (self._encoder,))
        tasks = ((text, executor.submit(_encode_in_worker, text, max_words)) for text in chunks)
        try:
            pending = deque(islice(tasks, self._num_workers))
            while pending:
                text, future = pending.popleft()
                pending.extend(islice(tasks, 1))
                yield text, future.result()
        except BrokenExecutor as error:
            raise ConfigurationError(
                "A process that tokenizes for the data loader ended before its work was done. The "
                "system may have stopped it for want of memory: try fewer than "
                f'{self._num_workers} for "num_workers", or a smaller "max_instances_in_memory" '
                f"than {self._schedule.max_lines}."
            ) from error
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def _place_among_processes() -> Tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if several_processes() else (0, 1)


_worker_encoder: Optional[Encoder] = None


def _start_worker(encoder: Encoder) -> None:
    global _worker_encoder
    _worker_encoder = encoder


def _encode_in_worker(text: TextChunk, max_words: float) -> Sentences:
    assert _worker_encoder is not None
    found = _worker_encoder.sentences(text, max_words)
    return replace(found, numbers=np.arange(len(found.numbers)), encode=found.encoded().select)


def _map_tensors(function: Callable[[torch.Tensor], torch.Tensor], batch: Any) -> Any:
    if isinstance(batch, torch.Tensor):
        return function(batch)
    if isinstance(batch, dict):
        return {key: _map_tensors(function, value) for key, value in batch.items()}
    return batch
