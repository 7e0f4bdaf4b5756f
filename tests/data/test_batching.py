import itertools

import numpy as np
import pytest
from allennlp.common.checks import ConfigurationError

from transformer_elmo.data.batching import cut_into_batches, deal, random_order


def test_random_order_is_a_permutation_of_its_own():
    orders = [random_order(100, seed, *path) for seed in (0, 1) for path in ((0,), (1,), (0, 1))]
    for order in orders:
        assert sorted(order) == list(range(100))
    assert len({tuple(order) for order in orders}) == len(orders)
    assert (random_order(100, 0, 1) == random_order(100, 0, 1)).all()
    # What NumPy promises to keep from version to version.
    assert random_order(8, 13, 2, 3).tolist() == [3, 5, 1, 0, 6, 2, 4, 7]


@pytest.mark.parametrize(
    "max_tokens, batch_size", [(50, None), (None, 7), (50, 3), (5, 4), (1, None)]
)
@pytest.mark.parametrize("shuffle", [None, (3, 0)])
def test_batches_keep_the_budget_and_are_full(max_tokens, batch_size, shuffle):
    lengths = np.random.default_rng(0).integers(1, 30, size=500)
    batches = cut_into_batches(lengths, max_tokens, batch_size, shuffle)
    assert sorted(np.concatenate(batches)) == list(range(500))
    if shuffle is not None:
        longest = [lengths[batch].max() for batch in batches]
        assert longest != sorted(longest)
        batches.sort(key=lambda batch: lengths[batch].max())
    for batch in batches:
        longest = lengths[batch].max()
        if len(batch) > 1:
            assert max_tokens is None or len(batch) * longest <= max_tokens
            assert batch_size is None or len(batch) <= batch_size
    if shuffle is None:
        flat = np.concatenate(batches)
        assert (np.diff(lengths[flat]) >= 0).all()
        for batch, following in itertools.pairwise(batches):
            # Nothing of the next batch would have had room.
            grown = (len(batch) + 1) * lengths[following[0]]
            assert (max_tokens is not None and grown > max_tokens) or len(batch) == batch_size


def test_nothing_makes_no_batch():
    assert cut_into_batches(np.zeros(0, dtype=np.int64), 10, None) == []


def split(batch, number):
    return batch[:number], batch[number:]


def merge(first, second):
    return first + second


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_deal_gives_all_to_someone_in_equal_steps(world_size):
    rng = np.random.default_rng(world_size)
    for num_batches in range(1, 20):
        numbers = iter(range(10_000))
        batches = [[next(numbers) for _ in range(rng.integers(1, 4))] for _ in range(num_batches)]
        if sum(map(len, batches)) < world_size:
            continue
        dealt = [
            list(deal(iter(batches), rank, world_size, len, split, merge))
            for rank in range(world_size)
        ]
        assert len({len(steps) for steps in dealt}) == 1
        everything = [n for steps in dealt for batch, _ in steps for n in batch]
        assert sorted(everything) == list(range(sum(map(len, batches))))
        assert all(batch for steps in dealt for batch, _ in steps)
        # Whole rounds are the sequence itself, whatever the number of processes.
        rounds = len(batches) // world_size
        for k in range(rounds - 1):
            assert [steps[k][0] for steps in dealt] == batches[
                k * world_size : (k + 1) * world_size
            ]
        # A sequence begun where a step says gives the steps after it.
        for k, (_, following) in enumerate(dealt[0]):
            if following is None:
                assert k == len(dealt[0]) - 1
                continue
            rest = batches[batches.index(following) :]
            for rank in range(world_size):
                again = list(deal(iter(rest), rank, world_size, len, split, merge))
                assert again == dealt[rank][k + 1 :]


def test_fewer_sentences_than_processes():
    with pytest.raises(ConfigurationError, match="3 sentences, fewer than the 4 processes"):
        list(deal(iter([[1, 2], [3]]), 0, 4, len, split, merge))
