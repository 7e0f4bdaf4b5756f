"""What is kept of weights, vectors of words among it, is what they are now, however changed."""

import copy
import math
import pickle
import random
from unittest import mock

import pytest
import torch

from transformer_elmo.nn import caches
from transformer_elmo.nn.batch import PackedBatch
from transformer_elmo.nn.caches import Kept, WordVectors, checksum, weights_unshared
from transformer_elmo.nn.config import ContextualizerConfig
from transformer_elmo.nn.transformer import BidirectionalTransformer


def by_step(module):
    module(torch.ones(1, 5)).sum().backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()


def behind_the_back(module):
    module.weight.data[:, 1:] *= 2.0


CHANGES = [
    by_step,
    behind_the_back,
    # By an array, and by weights that have gaps in memory, or are others.
    lambda module: module.weight.detach().numpy().fill(0.5),
    lambda module: setattr(module, "weight", torch.nn.Parameter(module.weight.t().clone().t())),
    lambda module: setattr(module, "weight", torch.nn.Parameter(torch.randn(4, 5))),
    lambda module: setattr(module.bias, "data", torch.full((4,), 2.0)),
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_kept_follows_each_change(change):
    module, kept = torch.nn.Linear(5, 4), Kept()

    def made():
        weights = list(module.parameters())
        return kept.get(weights, (), lambda: [weight.clone() for weight in weights])

    first = made()
    assert made() is first
    change(module)
    assert made() is not first and made() is made()
    assert all(torch.equal(mine, weight) for mine, weight in zip(made(), module.parameters()))
    # And what changes then, in whatever layout.
    behind_the_back(module)
    assert torch.equal(made()[0], module.weight)


def test_settings_forgetting_and_copying():
    kept, weights = Kept(), [torch.tensor([1.0, float("nan")])]
    first = kept.get(weights, (1,), object)
    assert kept.get(weights, (1,), object) is first
    for other in (copy.deepcopy(kept), pickle.loads(pickle.dumps(kept))):
        assert other.get(weights, (1,), lambda: 3) == 3
    assert kept.get(weights, (1,), object) is first and kept.get(weights, (2,), object) is not first
    kept.forget()
    assert kept.get(weights, (2,), lambda: 4) == 4


def test_unshared_weights_are_not_read():
    kept, weight = Kept(), torch.ones(3)

    def made(unshared):
        with weights_unshared(unshared):
            return kept.get([weight], (), lambda: weight.clone())

    assert made(True) is made(True)
    weight.add_(1)
    assert torch.equal(made(True), weight)
    # From when on they are shared, nothing is believed that wasn't read.
    weight.data.add_(1)
    assert torch.equal(made(False), weight)
    assert made(False) is made(True)
    weight.data.add_(1)
    assert torch.equal(made(False), weight)


def test_weights_of_inference_mode_are_read():
    """Nothing counts their changes."""
    with torch.inference_mode(), weights_unshared(True):
        kept, weight = Kept(), torch.ones(3)
        kept.get([weight], (), weight.clone)
        weight.add_(1)
        assert torch.equal(kept.get([weight], (), weight.clone), weight)


@pytest.mark.parametrize("shape", [(), (0,), (7,), (32750,), (512, 257), (3, 5, 8193)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_each_number_counts(shape, dtype):
    torch.manual_seed(0)
    # Not where a number of 64 bits may begin.
    flat = torch.randn(math.prod(shape) + 1).to(dtype)[1:]
    weights, size = [flat.view(shape), torch.randn(9).to(dtype)], flat.numel()
    before = checksum(weights)
    assert torch.equal(before, checksum([weight.clone() for weight in weights]))
    bits = flat.view(torch.uint8)
    for place in {0, 1, size - 1, *torch.randint(max(1, size), (20,)).tolist()} & set(range(size)):
        bits[place * flat.itemsize] ^= 1
        assert not torch.equal(before, checksum(weights))
        bits[place * flat.itemsize] ^= 1


@pytest.mark.parametrize("shape", [(512, 512), (512, 2048), (262, 16)])
@pytest.mark.parametrize("dim", [0, 1])
def test_places_and_signs_of_rows_and_columns_count(shape, dim):
    torch.manual_seed(0)
    weight, order = torch.randn(shape), torch.arange(shape[dim])
    changed = [weight.flip(dim), -weight]
    for first, second in ((0, 1), (0, 2), (0, len(order) // 2), (3, len(order) - 1)):
        swapped = order.clone()
        swapped[[first, second]] = order[[second, first]]
        changed.append(weight.index_select(dim, swapped))
    every_second = weight.clone()
    every_second.transpose(0, dim)[1::2].neg_()
    for other in (*changed, every_second):
        assert not torch.equal(checksum([weight]), checksum([other]))


# The contextualizer keeps its weights.


@torch.no_grad()
def test_a_model_keeps_its_weights_in_each_precision(monkeypatch):
    torch.manual_seed(0)
    model = BidirectionalTransformer(ContextualizerConfig(16, 24, 2, dropout=0.0)).eval()
    vectors, packing = torch.randn(2, 5, 16), PackedBatch(torch.ones(2, 5, dtype=torch.bool))

    def top():
        return model.rows(vectors, packing)[0][-1]

    def is_kept(expected):
        with mock.patch.object(model, "_weights", side_effect=AssertionError):
            return torch.equal(top(), expected)

    exact = top()
    assert is_kept(exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = top()
        assert is_kept(rounded)
    assert torch.equal(top(), exact) and 0 < (exact - rounded).abs().max() < 0.2
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert torch.allclose(top(), exact, atol=1e-5)
    assert not any(weights.heads[0].is_mkldnn for weights in model._kept._made)
    with torch.enable_grad():
        # Where something is learned, it is given back.
        assert torch.allclose(top(), exact, atol=1e-5) and model._kept._made is None


# Vectors of words.


def counted(calls, table):
    def encode(words):
        calls.append(len(words))
        return table[words].sum(1)

    return encode


def test_words_are_encoded_once_within_the_bound(monkeypatch):
    monkeypatch.setattr(caches, "WORDS_IN_CACHE", 8)
    table, cache = torch.arange(200.0).view(40, 5), WordVectors()
    known, generator = torch.randint(40, (30, 3)).unique(dim=0), random.Random(6)
    for size, new in ((3, 3), (3, 0), (5, None), (4, None), (29, 29), (2, None), (8, None), (9, 9)):
        calls = []
        if new != 0:
            words = known[generator.sample(range(len(known)), size)]
        assert torch.equal(cache.get(words, counted(calls, table)), table[words].sum(1))
        assert new is None or sum(calls) == new
        assert len(cache._rows) <= 8 and (cache._table is None or len(cache._table) <= 8)


def test_what_was_kept_in_inference_mode_takes_part_in_training():
    cache, table = WordVectors(), torch.arange(50.0).view(10, 5)
    with torch.inference_mode():
        words = torch.tensor([[1, 2, 3], [4, 5, 6]])
        cache.get(words, counted([], table))
    for again in (words.clone(), torch.tensor([[4, 5, 6], [7, 8, 9]])):
        factor = torch.ones(5, requires_grad=True)
        (cache.get(again, counted([], table)) * factor).sum().backward()
        assert factor.grad is not None and torch.equal(factor.grad, table[again].sum((0, 1)))
