"""Products of 8-bit integers: their numbers, and what becomes of a model's vectors."""

import copy
import pickle

import pytest
import torch

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn import precision
from transformer_elmo.nn.config import ContextualizerConfig
from transformer_elmo.nn.kernels import int8
from transformer_elmo.nn.kernels.compiled import watched
from transformer_elmo.nn.kernels.int8 import int8_weight, largest_weight, rounded_weight
from transformer_elmo.nn.kernels.linear import linear
from transformer_elmo.nn.precision import check_int8, computing
from transformer_elmo.nn.transformer import BidirectionalTransformer

pytestmark = pytest.mark.skipif(
    largest_weight() is None, reason="this PyTorch has no quantized linear layers of oneDNN's"
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("num_rows", [1, 22, 300])
@pytest.mark.parametrize("output_dim, input_dim", [(1, 1), (3, 7), (37, 20), (512, 128), (64, 513)])
def test_as_in_floating_point(num_rows, output_dim, input_dim):
    torch.manual_seed(0)
    rows, weight = torch.randn(num_rows, input_dim), torch.randn(output_dim, input_dim)
    # Channels and rows of all sizes.
    rows *= torch.logspace(-6, 6, num_rows).unsqueeze(1)
    weight *= torch.logspace(-5, 3, output_dim).unsqueeze(1)
    bias = torch.randn(output_dim)
    with watched() as ways:
        found = linear(rows, int8_weight(weight), bias)
    assert ways == {"linear: int8": 1}
    # In floating point: each row is rounded to whole steps of its own, as the weights are.
    integers, scales = rounded_weight(weight)
    step = rows.abs().amax(1, keepdim=True) / 127
    rounded = (rows / step + 0.5).floor().double()
    wanted = (rounded @ integers.double().t() * scales * step + bias).float()
    # Single numbers may be rounded the other way where they are half way between two.
    size = rows.abs().amax(1, keepdim=True) * weight.abs().amax(1)
    assert ((found - wanted).abs() <= 0.02 * size + 1e-5 * wanted.abs() + 1e-6).all()
    assert ((found - wanted).abs() <= 1e-5 * size * input_dim + 1e-6).float().mean() > 0.9


@pytest.mark.parametrize("input_dim", [64, 512, 2048])
def test_the_largest_numbers(input_dim):
    """Where two products are added up in 16 bits, they must not overflow."""
    generator = torch.Generator().manual_seed(1)
    signs = torch.randint(2, (64, input_dim), generator=generator) * 2.0 - 1
    for num_rows in (1, 22, 500):
        for row in (torch.ones(input_dim), -torch.ones(input_dim), signs[5]):
            for weight in (torch.ones(64, input_dim), -torch.ones(64, input_dim), signs):
                rows = 3 * row.expand(num_rows, -1)
                found = linear(rows, int8_weight(weight), torch.zeros(64))
                assert torch.allclose(found, rows @ weight.t(), rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize(
    "surroundings", [torch.device("meta"), torch.autocast("cpu", dtype=torch.bfloat16)]
)
def test_what_a_machine_can_does_not_depend_on_the_program(surroundings):
    largest_weight.cache_clear()
    expected = largest_weight()
    largest_weight.cache_clear()
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with surroundings:
            assert largest_weight() == expected
    finally:
        torch.set_default_dtype(dtype)
        largest_weight.cache_clear()


def test_weights_of_any_layout():
    rows, weight = torch.randn(4, 16), torch.randn(40, 24)
    for part in (weight.t()[:, 3:19], weight[2:9, 5:21], weight[:, :16]):
        like = part.clone(memory_format=torch.contiguous_format)
        found = [int8.int8_product(rows, int8_weight(weight)) for weight in (part, like)]
        assert torch.equal(*found)


def test_rows_without_numbers():
    weight, bias = torch.randn(5, 8), torch.randn(5)
    rows = torch.stack([torch.zeros(8), torch.full((8,), torch.nan), torch.randn(8)])
    rows = torch.cat([rows, torch.full((1, 8), torch.inf)])
    found = linear(rows, int8_weight(weight), bias)
    assert torch.equal(found[0], bias)
    assert found[1].isnan().all() and found[2].isfinite().all()
    assert not found[3].isfinite().any()
    assert torch.equal(linear(rows, int8_weight(torch.zeros(5, 8)), bias)[2], bias)


def test_a_row_depends_on_itself_alone():
    torch.manual_seed(0)
    rows, weight, bias = torch.randn(30, 64), int8_weight(torch.randn(48, 64)), torch.zeros(48)
    alone = torch.cat([linear(row.unsqueeze(0), weight, bias) for row in rows])
    assert torch.allclose(linear(rows, weight, bias), alone, atol=1e-5)
    rows[7] *= 1000
    assert torch.allclose(linear(rows, weight, bias)[8:], alone[8:], atol=1e-5)


@pytest.mark.parametrize("limit, expected", [(127, 127), (126, 63), (63, 63), (62, None)])
def test_seven_bits_where_eight_overflow(monkeypatch, limit, expected):
    """Processors whose products are right for weights up to a limit."""
    integers = []
    monkeypatch.setattr(int8, "_packed", lambda weight, scales: integers.append(weight.float()))

    def product(rows, weight):
        return rows @ integers[-1].t().clamp(-limit, limit)

    monkeypatch.setattr(int8, "int8_product", product)
    assert largest_weight.__wrapped__() == expected


# Of a contextualizer.


def transformer(activation="relu"):
    torch.manual_seed(0)
    return BidirectionalTransformer(ContextualizerConfig(64, 96, 3, activation=activation)).eval()


VECTORS = torch.randn(4, 9, 64, generator=torch.Generator().manual_seed(0))
MASK = torch.arange(9) < torch.tensor([[9], [4], [1], [7]])


def vectors_of(model, wanted, vectors=VECTORS, mask=MASK):
    with torch.no_grad(), computing(wanted, False, CPU):
        return model(vectors, mask)


@pytest.mark.parametrize("activation", ["relu", "relu_squared"])
def test_near_float32(activation):
    model = transformer(activation)
    exact = vectors_of(model, "float32")
    with watched() as ways:
        rounded = vectors_of(model, "int8")
    assert ways["linear: int8"] == 2 * 3 * 4
    assert not any("oneDNN" in way for way in ways)
    for wanted, found in zip(exact, rounded):
        assert found.dtype == torch.float32
        cosines = torch.cosine_similarity(wanted[MASK], found[MASK], dim=-1)
        assert 0.995 < cosines.min() < 0.999999
    # And back.
    assert torch.equal(vectors_of(model, "float32")[-1], exact[-1])
    assert torch.equal(vectors_of(model, "int8")[-1], rounded[-1])


def test_the_same_in_any_company():
    model = transformer()
    together = vectors_of(model, "int8")[-1]
    alone = vectors_of(model, "int8", VECTORS[1:2, :4], MASK[1:2, :4])[-1]
    # What is rounded the other way because of float32's last bit is a step of a 127th.
    assert torch.allclose(together[1, :4], alone[0], atol=2e-2)
    assert torch.cosine_similarity(together[1, :4], alone[0], dim=-1).min() > 0.99999


def test_follows_the_weights_and_is_not_of_them():
    model = transformer()
    state = copy.deepcopy(model.state_dict())
    before = vectors_of(model, "int8")[-1]
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, state.pop(name))
    assert not state
    other = pickle.loads(pickle.dumps(model))
    assert torch.equal(vectors_of(other, "int8")[-1], before)
    with torch.no_grad():
        other._backward_transformer.layers[1].self_attn.linears[2].weight.mul_(-1)
    assert not torch.allclose(vectors_of(other, "int8")[-1], before, atol=0.05)
    assert torch.equal(vectors_of(model, "int8")[-1], before)


def test_nothing_but_padding():
    assert not vectors_of(transformer(), "int8", mask=torch.zeros_like(MASK))[-1].any()


def test_no_gradients():
    model = transformer()
    with computing("int8", False, CPU):
        with pytest.raises(ConfigurationError, match=r"has no gradients.*float32"):
            model(VECTORS, MASK)
        model.requires_grad_(False)
        frozen = model(VECTORS, MASK)[-1]
        with pytest.raises(ConfigurationError, match="has no gradients"):
            model(VECTORS.clone().requires_grad_(), MASK)
    assert torch.equal(frozen, vectors_of(model, "int8")[-1])


def test_where_it_cannot_be_had(monkeypatch):
    with pytest.raises(ConfigurationError, match=r'"int8" is for the CPU.*cuda:1.*bfloat16'):
        check_int8(torch.device("cuda:1"))
    model = transformer()
    monkeypatch.setattr(precision, "largest_weight", lambda: None)
    with pytest.raises(ConfigurationError, match="needs a PyTorch with oneDNN"):
        vectors_of(model, "int8")
