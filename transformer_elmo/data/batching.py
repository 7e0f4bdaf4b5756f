"""
Which sentences make a batch, in which order the batches come, and which process takes which.
"""

from typing import Callable, Iterator, List, Optional, Tuple, TypeVar

import numpy as np
from allennlp.common.checks import ConfigurationError
from numpy.typing import NDArray

Indices = NDArray[np.int64]

BatchT = TypeVar("BatchT")


def random_order(length: int, seed: int, *path: int) -> Indices:
    """
    A random permutation that depends on the arguments alone.

    # Parameters

    length : `int`
    seed : `int`
    path : `int`
        What the permutation is for: a different path gives an independent one.
    """
    # NumPy promises that the raw numbers of a bit generator stay the same from version to version,
    # which it does not for `Generator.permutation`.
    bits = np.random.PCG64(np.random.SeedSequence(entropy=seed, spawn_key=path))
    return np.argsort(bits.random_raw(length), kind="stable")


def cut_into_batches(
    lengths: NDArray[np.int64],
    max_tokens: Optional[int],
    batch_size: Optional[int],
    shuffle: Optional[Tuple[int, ...]] = None,
) -> List[Indices]:
    """
    Cuts sentences into batches of about equal length.

    # Parameters

    lengths : `NDArray[int64]`
        Shape `(num_sentences,)`: the padded length that a sentence asks for.
    max_tokens : `int`, optional
        The most tokens that a batch may have, padding included. A longer sentence goes alone.
    batch_size : `int`, optional
        The most sentences that a batch may have.
    shuffle : `Tuple[int, ...]`, optional (default = `None`)
        A seed and a path (see :func:`random_order`): sentences of the same length and whole batches
        are shuffled by it. By default both keep their order, short sentences first.

    # Returns

    `List[NDArray[int64]]`
        The indices of each batch's sentences. Each sentence is in exactly one.
    """
    order = np.arange(len(lengths)) if shuffle is None else random_order(len(lengths), *shuffle, 0)
    order = order[np.argsort(lengths[order], kind="stable")]
    ascending = lengths[order]
    batches: List[Indices] = []
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


def deal(
    batches: Iterator[BatchT],
    rank: int,
    world_size: int,
    size: Callable[[BatchT], int],
    split: Callable[[BatchT, int], Tuple[BatchT, BatchT]],
    merge: Callable[[BatchT, BatchT], BatchT],
) -> Iterator[Tuple[BatchT, Optional[BatchT]]]:
    """
    Deals a sequence of batches, the same one in every process, out to the processes: each takes one
    of every `world_size` batches. All take the same number of batches and none is lost. Where the
    last round is short of batches, its largest ones are split until each process has one; if it has
    fewer sentences than there are processes, they join batches of the round before it.

    # Parameters

    batches : `Iterator[BatchT]`
    rank : `int`
    world_size : `int`
    size : `Callable[[BatchT], int]`
        The number of sentences of a batch.
    split : `Callable[[BatchT, int], Tuple[BatchT, BatchT]]`
        Cuts a batch after so many sentences.
    merge : `Callable[[BatchT, BatchT], BatchT]`
        Makes two batches one.

    # Returns

    `Iterator[Tuple[BatchT, Optional[BatchT]]]`
        This process's batch of each round, and the first batch of the round after it: a sequence
        begun there is dealt out the same.

    # Raises

    `ConfigurationError`
        If there are fewer sentences than processes.
    """
    # A round is held back until the one after it is complete.
    held: List[BatchT] = []
    dealt: List[BatchT] = []
    for batch in batches:
        dealt.append(batch)
        if len(dealt) == world_size:
            if held:
                yield held[rank], dealt[0]
            held, dealt = dealt, []
    if dealt:
        following = dealt[0]
        while len(dealt) < world_size and max(map(size, dealt)) > 1:
            largest = max(range(len(dealt)), key=lambda i: size(dealt[i]))
            dealt[largest : largest + 1] = split(dealt[largest], size(dealt[largest]) // 2)
        if len(dealt) == world_size:
            if held:
                yield held[rank], following
            held = dealt
        elif held:
            for i, batch in enumerate(dealt):
                held[i] = merge(held[i], batch)
        else:
            raise ConfigurationError(
                f"The corpus has {sum(map(size, dealt))} sentences, fewer than the {world_size} "
                "processes that share it. Use fewer processes or more text."
            )
    if held:
        yield held[rank], None
