import itertools

import numpy as np
import pytest

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.text.batching import cut_into_batches, deal_rounds, random_order, regrouped


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


def test_lengths_of_any_size_are_sorted():
    found = cut_into_batches(np.array([2**33, 300, 2, 70_000, 256]), 10, None)
    assert [batch.tolist() for batch in found] == [[2], [4], [1], [3], [0]]
    assert cut_into_batches(np.zeros(0, dtype=np.int64), 10, None) == []


class Sentences(list):
    """A batch of sentences, each its own length."""

    def num_padded_tokens(self):
        return len(self) * max(self)

    def split(self, number):
        return Sentences(self[:number]), Sentences(self[number:])

    def merge(self, other):
        return Sentences([*self, *other])


def some_batches(rng, num_batches, most=3):
    return [
        Sentences(rng.integers(1, 1000, size=rng.integers(1, most + 1)).tolist())
        for _ in range(num_batches)
    ]


def all_of(rounds):
    return sorted(n for step in rounds for batch in step.batches for n in batch)


@pytest.mark.parametrize("before", [1, 2, 3, 4])
@pytest.mark.parametrize("now", [1, 2, 3, 4])
def test_rounds_of_other_processes_have_the_same_order(before, now):
    rng = np.random.default_rng(before)
    for num_batches in range(6, 30):
        dealt = list(deal_rounds(iter(some_batches(rng, num_batches)), before))
        again = list(regrouped(iter(dealt), now))
        assert all(len(step.batches) == now and all(step.batches) for step in again)
        assert all_of(again) == all_of(dealt)
        flat = [batch for step in dealt for batch in step.batches]
        # The end may be divided.
        whole = (len(flat) // now - 1) * now
        assert [batch for step in again for batch in step.batches][:whole] == flat[:whole]
        if now == before:
            assert again == dealt


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("most", [1, 3])
def test_deal_gives_all_to_someone_in_equal_steps(world_size, most):
    rng = np.random.default_rng(world_size)
    for num_batches in range(1, 30):
        batches = some_batches(rng, num_batches, most)
        if sum(map(len, batches)) < world_size:
            continue
        dealt = list(deal_rounds(iter(batches), world_size))
        assert all(len(step.batches) == world_size and all(step.batches) for step in dealt)
        assert all_of(dealt) == sorted(n for batch in batches for n in batch)
        # Whole rounds are the sequence itself, whatever the number of processes.
        rounds = len(batches) // world_size
        for k in range(rounds - 1):
            assert dealt[k].batches == batches[k * world_size : (k + 1) * world_size]
        # A sequence begun where a step says gives the steps after it.
        for k, step in enumerate(dealt):
            if step.resume_at is None:
                assert k == len(dealt) - 1
                continue
            first = next(i for i, b in enumerate(batches) if b is step.resume_at)
            again = list(deal_rounds(iter(batches[first:]), world_size))
            assert again[step.num_skipped :] == dealt[k + 1 :]


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_no_batch_grows_where_sentences_suffice(world_size):
    """One sentence too many, and it is a long one."""
    for extra in range(1, world_size):
        short = [Sentences([3] * 100) for _ in range(2 * world_size)]
        batches = [*short, *(Sentences([400]) for _ in range(extra))]
        steps = list(deal_rounds(iter(batches), world_size))
        assert len(steps) == 3
        assert max(b.num_padded_tokens() for step in steps for b in step.batches) <= 400


def test_single_sentences_share_a_batch_with_their_like():
    batches = [Sentences([n]) for n in (5, 90, 91)]
    assert [step.batches for step in deal_rounds(iter(batches), 2)] == [[[5], [90, 91]]]


def test_fewer_sentences_than_processes():
    batches = [Sentences([1, 2]), Sentences([3])]
    with pytest.raises(ConfigurationError, match="3 sentences, fewer than the 4 processes"):
        list(deal_rounds(iter(batches), 4))
