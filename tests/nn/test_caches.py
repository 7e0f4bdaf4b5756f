"""What is kept of weights, vectors of words among it, is what they are now, however changed."""

import copy
import math
import pickle
from unittest import mock

import pytest
import torch

from transformer_elmo.nn.caches import Kept, WordVectors, checksum, weights_unshared
from transformer_elmo.nn.config import ContextualizerConfig
from transformer_elmo.nn.transformer import BidirectionalTransformer


def transformer(seed=0):
    torch.manual_seed(seed)
    return BidirectionalTransformer(ContextualizerConfig(16, 24, 2, dropout=0.0)).eval()


VECTORS, MASK = torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.bool)


def learning(model):
    """What it computes with weights as they are: nothing is kept where there are gradients."""
    with torch.enable_grad():
        return [layer.detach() for layer in model(VECTORS, MASK)]


def assert_up_to_date(model):
    expected = learning(model)
    with torch.no_grad():
        for _ in range(2):
            for ours, wanted in zip(model(VECTORS, MASK), expected):
                assert torch.allclose(ours, wanted, atol=1e-5)


def by_step(model):
    torch.optim.SGD(model.parameters(), lr=0.1).zero_grad()
    sum(layer.square().sum() for layer in model(VECTORS, MASK)).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def in_place(model):
    with torch.no_grad():
        model._backward_transformer.layers[1].self_attn.linears[2].bias[3] += 1.0


def behind_the_back(model):
    for parameter in model.parameters():
        parameter.data.mul_(1.5)


def columns_behind_the_back(model):
    model._forward_transformer.layers[0].self_attn.linears[3].weight.data[:, 8:] = 0


def a_row_behind_the_back(model):
    model._forward_transformer.layers[0].feed_forward.w_1.weight.data[5] = 3.0


def by_an_array(model):
    weight = model._backward_transformer.layers[0].feed_forward.w_2.weight
    weight.detach().numpy()[:, 1:] = 0


def by_one_with_gaps(model):
    module = model._forward_transformer.layers[0].feed_forward.w_2
    module.weight = torch.nn.Parameter((2 * module.weight.detach()).t().contiguous().t())


def by_another(model):
    weight = torch.randn(16, 24)
    model._forward_transformer.layers[0].feed_forward.w_2.weight = torch.nn.Parameter(weight)


def by_data(model):
    norm = model._forward_transformer.layers[1].sublayer[0].norm
    norm.gamma.data = torch.full((16,), 2.0)


def by_loading(model):
    model.load_state_dict(transformer(seed=1).state_dict())


@pytest.mark.parametrize(
    "change",
    [
        *(by_step, in_place, behind_the_back, columns_behind_the_back, a_row_behind_the_back),
        *(by_an_array, by_one_with_gaps, by_another, by_data, by_loading),
    ],
)
def test_kept_weights_follow_each_change(change):
    model = transformer()
    before = learning(model)
    with torch.no_grad():
        model(VECTORS, MASK)
    kept = model._kept._made
    change(model)
    with torch.no_grad():
        model(VECTORS, MASK)
    assert model._kept._made is not kept
    assert not torch.allclose(before[-1], learning(model)[-1])
    assert_up_to_date(model)


def test_made_once():
    model = transformer()
    with torch.no_grad():
        model(VECTORS, MASK)
        # Nothing is joined or laid out.
        with mock.patch.object(model, "_weights", side_effect=AssertionError):
            model(VECTORS, MASK)


def test_kept_in_each_precision():
    model = transformer()
    with torch.no_grad():
        exact = model(VECTORS, MASK)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(VECTORS, MASK)
            with mock.patch.object(model, "_weights", side_effect=AssertionError):
                again = model(VECTORS, MASK)
        back = model(VECTORS, MASK)
    assert torch.equal(rounded[-1], again[-1]) and torch.equal(exact[-1], back[-1])
    assert 0 < (exact[-1] - rounded[-1]).abs().max() < 0.2


def test_given_back_when_training():
    model = transformer()
    with torch.no_grad():
        model(VECTORS, MASK)
    assert model._kept._made is not None
    model(VECTORS, MASK)
    assert model._kept._made is None


def test_onednn_switched_off(monkeypatch):
    model = transformer()
    with torch.no_grad():
        expected = model(VECTORS, MASK)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        found = model(VECTORS, MASK)
    assert not any(weights.heads[0].is_mkldnn for weights in model._kept._made)
    assert torch.allclose(found[-1], expected[-1], atol=1e-5)


def test_not_part_of_the_model():
    model = transformer()
    names = set(model.state_dict())
    with torch.no_grad():
        model(VECTORS, MASK)
    assert set(model.state_dict()) == names
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other._kept._made is None
        assert_up_to_date(other)
    # A copy's weights are its own.
    in_place(other)
    assert_up_to_date(other)
    assert_up_to_date(model)


def test_weights_of_inference_mode():
    with torch.inference_mode():
        model = transformer()
        first = model(VECTORS, MASK)
        assert torch.equal(model(VECTORS, MASK)[-1], first[-1])
        # Nothing counts their changes.
        model._forward_transformer.layers[1].self_attn.linears[3].weight[3, 2] += 1.0
        expected = copy.deepcopy(model)(VECTORS, MASK)
        assert torch.equal(model(VECTORS, MASK)[-1], expected[-1])


def test_weights_with_gaps_in_memory():
    model = transformer()
    by_one_with_gaps(model)
    with torch.no_grad():
        model(VECTORS, MASK)
    model._forward_transformer.layers[0].feed_forward.w_2.weight.data.mul_(3)
    assert_up_to_date(model)


def test_a_nan_is_what_it_was():
    kept, weights = Kept(), [torch.tensor([1.0, float("nan")])]
    assert kept.get(weights, (), object) is kept.get(weights, (), object)


@pytest.mark.parametrize("shape", [(), (0,), (7,), (32750,), (512, 257), (3, 5, 8193)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_each_number_counts(shape, dtype):
    torch.manual_seed(0)
    # Not where a number of 64 bits may begin.
    flat = torch.randn(math.prod(shape) + 1).to(dtype)[1:]
    weights = [flat.view(shape), torch.randn(9).to(dtype)]
    before, size = checksum(weights), flat.numel()
    assert torch.equal(before, checksum([weight.clone() for weight in weights]))
    for place in {0, 1, 2, size - 1, *torch.randint(max(1, size), (20,)).tolist()} & set(
        range(size)
    ):
        flat.view(torch.uint8)[place * flat.itemsize] ^= 1
        assert not torch.equal(before, checksum(weights))
        flat.view(torch.uint8)[place * flat.itemsize] ^= 1
    if size:
        flat.neg_()
        assert not torch.equal(before, checksum(weights))


@pytest.mark.parametrize("shape", [(512, 512), (2048, 512), (512, 2048), (262, 16)])
def test_places_of_rows_and_columns_count(shape):
    torch.manual_seed(0)
    weight = torch.randn(shape)
    before = checksum([weight])
    for dim, size in enumerate(shape):
        for first, second in ((0, 1), (1, 2), (0, 2), (0, size // 2), (3, size - 1)):
            order = torch.arange(size)
            order[first], order[second] = second, first
            assert not torch.equal(before, checksum([weight.index_select(dim, order)]))
        assert not torch.equal(before, checksum([weight.flip(dim)]))
        half = weight.clone()
        half.transpose(0, dim)[1::2].neg_()
        assert not torch.equal(before, checksum([half]))


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


def test_nothing_but_padding():
    model = transformer()
    with torch.no_grad():
        (*_, top) = model(VECTORS, torch.zeros(2, 5, dtype=torch.bool))
    assert not top.any()


def test_forgetting_while_it_is_empty():
    kept = Kept()
    kept.forget()
    assert kept.get([torch.ones(2)], (), lambda: 3) == 3
    kept.forget()
    assert kept.get([torch.ones(2)], (), lambda: 4) == 4


# Vectors of words.

WORDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def vectors_of(cache, table, words=WORDS):
    return cache.get(words, lambda some: table[some].sum(1))


def test_what_was_kept_in_inference_mode_takes_part_in_training():
    cache, table = WordVectors(), torch.randn(10, 5)
    with torch.inference_mode():
        vectors_of(cache, table, WORDS.clone())
    again = torch.cat([WORDS, torch.tensor([[7, 8, 9]])])
    for words in (WORDS, again):
        factor = torch.ones(5, requires_grad=True)
        vectors = vectors_of(cache, table, words)
        (vectors * factor).sum().backward()
        assert factor.grad is not None
        assert torch.allclose(factor.grad, table[words].sum((0, 1)))


def test_words_made_in_inference_mode():
    cache, table = WordVectors(), torch.randn(10, 5)
    with torch.inference_mode():
        words = WORDS.clone()
        vectors_of(cache, table, words)
    assert torch.equal(vectors_of(cache, table), table[WORDS].sum(1))
