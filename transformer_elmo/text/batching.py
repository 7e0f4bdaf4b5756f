"""
Which sentences make a batch, in which order the batches come, and which process takes which.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from transformer_elmo.errors import ConfigurationError

Indices = NDArray[np.int64]


def random_order(length: int, seed: int, *path: int) -> Indices:
    """A random permutation that depends on the arguments alone; `path`: what it is for."""
    # NumPy promises that the raw numbers of a bit generator stay the same from version to version,
    # which it does not for `Generator.permutation`.
    bits = np.random.PCG64(np.random.SeedSequence(entropy=seed, spawn_key=path))
    numbers = bits.random_raw(length)
    order = np.argsort(numbers)
    # A stable sort takes six times as long, and only matters for equal ones, which hardly occur.
    ascending = numbers[order]
    has_equal = bool((ascending[1:] == ascending[:-1]).any())
    return np.argsort(numbers, kind="stable") if has_equal else order


def cut_into_batches(
    lengths: NDArray[np.int64],
    max_tokens: int | None,
    batch_size: int | None,
    shuffle: tuple[int, ...] | None = None,
) -> list[Indices]:
    """
    Cuts sentences into batches of about equal length: the indices of each batch's sentences.

    `lengths`: the padded length that each sentence asks for, shape `(num_sentences,)`.
    `max_tokens`: the most tokens of a batch, padding included. A longer sentence goes alone.
    `batch_size`: the most sentences of a batch. `shuffle`: a seed and a path (see
    :func:`random_order`), by which sentences of the same length and whole batches are shuffled. By
    default both keep their order, short sentences first.
    """
    order = np.arange(len(lengths)) if shuffle is None else random_order(len(lengths), *shuffle, 0)
    # Numbers of 16 bits, as lengths are, are sorted in no time.
    keys = lengths.astype(np.min_scalar_type(lengths.max(initial=0)))
    order = order[np.argsort(keys[order], kind="stable")]
    ascending = lengths[order]
    batches: list[Indices] = []
    begin = 0
    while begin < len(order):
        most = len(order) - begin
        if batch_size is not None:
            most = min(most, batch_size)
        if max_tokens is not None:
            most = min(most, max(1, max_tokens // max(1, int(ascending[begin]))))
            # With each sentence more, both the number of rows and their width can only grow.
            padded = ascending[begin : begin + most] * np.arange(1, most + 1)
            most = max(1, int(np.searchsorted(padded, max_tokens, side="right")))
        batches.append(order[begin : begin + most])
        begin += most
    if shuffle is not None:
        batches = [batches[i] for i in random_order(len(batches), *shuffle, 1)]
    return batches


class Batch(Protocol):
    """A batch that can be dealt out: some sentences of known lengths."""

    def __len__(self) -> int:
        """The number of sentences."""

    def num_padded_tokens(self) -> int:
        """The sentences times the longest one's length."""

    def split(self, num_sentences: int) -> tuple[Any, Any]:
        """The batch cut after so many sentences."""

    def merge(self, other: Any) -> Any:
        """A batch of these sentences and then the other's."""


BatchT = TypeVar("BatchT", bound=Batch)


@dataclass(frozen=True)
class Round(Generic[BatchT]):
    """
    A batch for each process, and where the sequence can be taken up again after them.

    `resume_at`: a sequence begun at this batch is dealt out the same from there on, but for the
    first `num_skipped` rounds. `None` after the last round.
    """

    batches: list[BatchT]
    resume_at: BatchT | None
    num_skipped: int = 0


def deal_rounds(
    batches: Iterator[BatchT], world_size: int, corpus: str = "The corpus"
) -> Iterator[Round[BatchT]]:
    """
    Deals a sequence of batches, the same one in every process, out to the processes: each takes one
    of every `world_size` batches. All take the same number of batches, none is lost and none grows.
    Where the last round is short of batches, the largest of the last two rounds are split until
    each process has one more. Only where all of those are single sentences, some of them share a
    batch.

    Raises `ConfigurationError` if there are fewer sentences than processes.
    """
    # A round is held back until it is known whether the one after it is complete.
    held: list[BatchT] = []
    while dealt := list(islice(batches, world_size)):
        if sum(map(len, dealt)) < world_size:
            break
        if held:
            yield Round(held, dealt[0])
        held, first = _as_many(dealt, world_size), dealt[0]
    else:
        if held:
            yield Round(held, None)
        return
    num_sentences = sum(map(len, held + dealt))
    if num_sentences < world_size:
        raise ConfigurationError(
            f"{corpus} has {num_sentences} sentences, fewer than the {world_size} processes that "
            "share it. Use fewer processes or more text."
        )
    num_rounds = min(2, num_sentences // world_size)
    rest = _as_many(held + dealt, num_rounds * world_size)
    if num_rounds == 2:
        yield Round(rest[:world_size], first, 1)
    yield Round(rest[-world_size:], None)


def _as_many(batches: list[BatchT], number: int) -> list[BatchT]:
    """The same sentences in so many batches: the largest are split, or the last ones merged."""
    batches = list(batches)
    while len(batches) < number:
        largest = max(range(len(batches)), key=lambda i: len(batches[i]))
        batches[largest : largest + 1] = batches[largest].split(len(batches[largest]) // 2)
    while len(batches) > number:
        last = batches.pop()
        merged = [batch.merge(last) for batch in batches]
        growth = [m.num_padded_tokens() - b.num_padded_tokens() for m, b in zip(merged, batches)]
        best = growth.index(min(growth))
        batches[best] = merged[best]
    return batches


def regrouped(rounds: Iterable[Round[BatchT]], world_size: int) -> Iterator[Round[BatchT]]:
    """
    The batches of rounds, in their order, as rounds of another number of processes, which have the
    place of the round that their last batch comes from. What is left at the end is dealt out as
    `deal_rounds` does.
    """
    held: Round[BatchT] | None = None
    rest: list[BatchT] = []
    for of_round in rounds:
        rest += of_round.batches
        while len(rest) >= world_size:
            if held is not None:
                yield held
            held = replace(of_round, batches=rest[:world_size])
            rest = rest[world_size:]
    if held is not None and (not rest or sum(map(len, rest)) >= world_size):
        yield held
        held = None
    if rest:
        yield from deal_rounds(iter((held.batches if held is not None else []) + rest), world_size)
