"""
Which way the kernels go on this machine: a fast one that is silently out of reach changes no
number.
"""

import contextlib

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode

from tests.device.pretend import moved, pretend_device
from tests.nn.kernels.comparing import exact_losses, sampled_losses
from tests.small_lm import model_config, random_sentences, tensors
from transformer_elmo.nn.kernels import attention, compiled
from transformer_elmo.nn.kernels import softmax as token_losses
from transformer_elmo.nn.kernels.attention import causal_attention
from transformer_elmo.nn.kernels.compiled import Compilable, compiling, is_wanted, taken, watched
from transformer_elmo.nn.kernels.dropout import Dropout
from transformer_elmo.nn.kernels.linear import FEWEST_ROWS, layout, linear, packed, product
from transformer_elmo.nn.kernels.weight_casts import cast_weights


def test_ways_are_counted_for_who_listens():
    taken("kernel", "nobody listens")
    with watched() as outer:
        taken("kernel", "one")
        with watched() as inner:
            taken("kernel", "other")
            taken("kernel", "other")
        taken("kernel", "one")
    taken("kernel", "nobody listens")
    assert inner == {"kernel: other": 2}
    assert outer == {"kernel: one": 2}
    with pytest.raises(ZeroDivisionError), watched() as broken:
        raise ZeroDivisionError
    taken("kernel", "nobody listens")
    assert not broken


# Of a whole model, on a CPU. What PyTorch was built without can't be taken.

needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this PyTorch has no oneDNN",
)

ALWAYS = {
    "character windows: a product a width",
    "_before_attention: as written",
    "_after_attention: as written",
    "precision: one by one",
}
SAMPLED = {"sampled softmax: in blocks", "softmax gradient: a row a word"}


@needs_onednn
@pytest.mark.parametrize(
    "case, expected",
    [
        ("training", {"attention: written out", "dropout: threshold of bits", *SAMPLED}),
        ("training without dropout", {"attention: fused", *SAMPLED}),
        (
            "evaluation",
            {"attention: fused", "exact softmax: in place", "linear: oneDNN, packed"},
        ),
        ("embedding", {"attention: fused", "linear: oneDNN, packed"}),
    ],
)
def test_ways_of_a_model(make_model, vocabulary, case, expected):
    changes = model_config()
    if case == "training without dropout":
        changes["contextualizer"].update(dropout=0.0, input_dropout=0.0)
    model = make_model(**changes).train(case.startswith("training"))
    batch = tensors(random_sentences(5), vocabulary)
    learns = case.startswith("training")
    with watched() as ways, contextlib.nullcontext() if learns else torch.no_grad():
        if case == "embedding":
            model.encode(batch["source"])
        else:
            loss = model(**batch)["loss"]
            if learns:
                loss.backward()
    others = set() if case == "embedding" else {"linear: oneDNN"}
    assert set(ways) == {*ALWAYS, *others, *expected}
    layers = 2 * model_config()["contextualizer"]["num_layers"]
    of_attention = next(count for way, count in ways.items() if way.startswith("attention: "))
    assert of_attention == layers


def test_ways_of_a_model_in_bfloat16(make_model, vocabulary):
    model = make_model(precision="bfloat16").train()
    with watched() as ways:
        model(**tensors(random_sentences(5), vocabulary))["loss"].backward()
    assert set(ways) == {
        *ALWAYS - {"precision: one by one"},
        *("precision: together", "attention: written out", "dropout: threshold of bits"),
        # PyTorch's own asks oneDNN where the processor has bfloat16.
        *("linear: torch", *SAMPLED),
    }


# Of each kernel.


@needs_onednn
def test_linear_goes_by_onednn():
    rows, weight, bias = torch.randn(8, 3), torch.randn(2, 3), torch.randn(2)
    rows.requires_grad_()
    with watched() as ways:
        linear(rows, weight, bias).sum().backward()
        product(rows.detach(), weight)
    assert ways == {"linear: oneDNN": 3}
    with watched() as ways:
        linear(rows.bfloat16(), weight.bfloat16(), bias.bfloat16())
        linear(rows[:0], weight, bias)
        product(rows.double(), weight.double())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            linear(rows, weight, bias)
            product(rows, weight)
    assert ways == {"linear: torch": 5}


class PrivateProducts(TorchDispatchMode):
    """Notes the weights that PyTorch's private product is called with."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.mkldnn._linear_pointwise.default:
            self.weights.append((args[0].size(0), args[1]))
        return func(*args, **(kwargs or {}))

    def assert_measured(self):
        for num_rows, weight in self.weights:
            assert weight.is_mkldnn or num_rows >= FEWEST_ROWS[layout(weight)]


WIDE = torch.randn(30, 40)
OF_LAYOUTS = {
    "rows": [WIDE, WIDE[3:9], WIDE[4:5], torch.randn(61)[1:].view(6, 10), WIDE[:, :1].clone()],
    "columns": [WIDE.t(), WIDE.t()[:, 3:9], torch.randn(61)[1:].view(6, 10).t()],
    None: [
        *(WIDE.t()[3:9], WIDE[:, 3:9], WIDE[::2], WIDE[:, ::3], WIDE.t()[4:5], WIDE[:, 4:5]),
        *(WIDE[:1].expand(6, -1), WIDE[:, :1].expand(-1, 6), WIDE.t()[3:9, 2:7]),
    ],
}


@needs_onednn
@pytest.mark.parametrize("expected", list(OF_LAYOUTS))
@pytest.mark.parametrize("num_rows", [1, 7, 8, 1023, 1024])
def test_private_product_gets_layouts_that_were_measured(expected, num_rows):
    for weight in OF_LAYOUTS[expected]:
        assert layout(weight) == expected
        wide = torch.randn(num_rows, weight.size(1) + 3)
        for rows in (
            wide[:, 3:],
            wide[:, 3:].t().contiguous().t(),
            wide[:1, 3:].expand(num_rows, -1),
        ):
            with PrivateProducts() as products:
                found = product(rows, weight)
            products.assert_measured()
            assert bool(products.weights) == (num_rows >= FEWEST_ROWS.get(expected, 1024))
            assert torch.allclose(found, rows @ weight.t(), atol=1e-4)


@needs_onednn
@pytest.mark.parametrize("softmax", [{"num_samples": None}, {}, {"sparse_embeddings": False}])
@pytest.mark.parametrize("memory", [20, 2**21])
def test_a_model_asks_for_no_other_private_product(
    make_model, vocabulary, monkeypatch, softmax, memory
):
    """Although the full softmax works on slices of a transposed weight, block by block."""
    monkeypatch.setattr(token_losses, "CPU_LOGITS_IN_MEMORY", memory)
    model = make_model(**model_config(**softmax))
    with PrivateProducts() as products:
        for count in (1, 5):
            batch = tensors(random_sentences(count), vocabulary)
            model.train()(**batch)["loss"].backward()
            with torch.no_grad():
                model.eval()(**batch)
    assert products.weights
    products.assert_measured()


@needs_onednn
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (37, 20), (512, 128)])
def test_packed_weights_go_by_onednn(shape):
    weight, bias = torch.randn(shape), torch.randn(shape[0])
    for num_rows in (1, 22, 300):
        rows = torch.randn(num_rows, shape[1])
        with watched() as ways:
            found = linear(rows, packed(weight), bias)
        assert ways == {"linear: oneDNN, packed": 1}
        assert torch.allclose(found, F.linear(rows, weight, bias), atol=2e-4)
    for other in (weight.bfloat16(), weight.double(), weight[:0]):
        assert packed(other) is other


@pytest.mark.parametrize("how", ["switched off", "not in this PyTorch"])
def test_linear_without_onednn(monkeypatch, how):
    rows, weight, bias = torch.randn(4, 3), torch.randn(2, 3), torch.randn(2)
    expected = F.linear(rows, weight, bias)
    if how == "switched off":
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    else:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with watched() as ways:
        assert torch.equal(linear(rows, weight, bias), expected)
        assert torch.equal(product(rows, weight, bias), expected)
    assert ways == {"linear: torch": 2}


def heads(dtype=torch.float32, timesteps=7):
    """As a layer has them."""
    rows = torch.randn(3, timesteps, 3, 4, 2).to(dtype)
    return rows.permute(2, 0, 3, 1, 4).unbind()


@pytest.mark.parametrize(
    "dtype, p, way",
    [
        (torch.float32, 0.0, "fused"),
        (torch.float32, 0.1, "written out"),
        (torch.bfloat16, 0.0, "written out"),
        (torch.bfloat16, 0.1, "written out"),
    ],
)
def test_attention_goes_the_shortest_way(dtype, p, way):
    with watched() as ways:
        causal_attention(*heads(dtype), Dropout(p).train())
    assert ways[f"attention: {way}"] == 1
    with watched() as ways:
        causal_attention(*heads(dtype), Dropout(p).eval())
    assert ways == {f"attention: {'fused' if dtype == torch.float32 else 'written out'}": 1}


def test_attention_in_bfloat16_is_written_out_up_to_a_bound(monkeypatch):
    num_scores = 3 * 4 * 7 * 7
    for bound, way in ((num_scores, "written out"), (num_scores - 1, "fused")):
        monkeypatch.setattr(attention, "SCORES_IN_MEMORY", bound)
        with watched() as ways:
            causal_attention(*heads(torch.bfloat16), Dropout(0.0))
        assert ways == {f"attention: {way}": 1}


@pytest.mark.parametrize("learns", [False, True])
def test_pytorchs_attention_is_fused(learns):
    """PyTorch alone decides whether, by shapes and strides."""
    query, key, value = (tensor.requires_grad_(learns) for tensor in heads())
    choice = torch._fused_sdp_choice(query, key, value, None, 0.0, True)
    assert SDPBackend(choice) == SDPBackend.FLASH_ATTENTION


@pytest.mark.parametrize(
    "p, dtype, way",
    [
        (0.1, torch.float32, "threshold of bits"),
        (0.1, torch.bfloat16, "threshold of bits"),
        (0.1, torch.float64, "torch"),
        (0.999, torch.float32, "torch"),
        (0.0, torch.float32, None),
    ],
)
def test_dropout_goes_by_bits(p, dtype, way):
    dropout, tensor = Dropout(p).train(), torch.ones(3, 4, dtype=dtype)
    with watched() as ways:
        dropout(tensor)
        dropout(tensor, tensor)
        dropout.of_relu(tensor)
        dropout(tensor[:0])
        dropout.eval()(tensor)
    assert ways == ({} if way is None else {f"dropout: {way}": 3})


def test_precision_goes_together():
    weight = torch.randn(3, 2)
    with watched() as ways:
        cast_weights(torch.float32, [[weight], [weight]])
    assert not ways
    with watched() as ways:
        cast_weights(torch.float32, [[weight, weight], [weight]])
        cast_weights(torch.bfloat16, [[weight], [weight, weight]])
    assert ways == {"precision: one by one": 1, "precision: together": 1}


def test_ways_on_a_device(make_model, vocabulary):
    model, batch = make_model().train(), tensors(random_sentences(5), vocabulary)
    with pretend_device():
        model, batch = moved(model), moved(batch)
        with watched() as ways:
            model(**batch)["loss"].backward()
    assert set(ways) == {
        *("linear: torch", "character windows: one product", "precision: together"),
        *("_before_attention: as written", "_after_attention: as written", "attention: fused"),
        *("dropout: torch", "sampled softmax: in blocks", "softmax gradient: rows as they come"),
    }


# Compiled, where a user asks for it. A backend that counts stands in for the one that takes a
# minute.


@pytest.fixture
def graphs(monkeypatch):
    found = []

    def counting(graph, inputs):
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(compiled, "BACKEND", counting)
    torch._dynamo.reset()
    yield found
    torch._dynamo.reset()


def test_compiled_once_for_any_number_of_rows(graphs):
    function = Compilable(lambda weight, rows: (rows @ weight).relu(), "rows")
    weight = torch.randn(3, 2)
    for number in (5, 7, 30, 2):
        rows = torch.randn(number, 3)
        with compiling():
            assert is_wanted()
            assert torch.allclose(function(weight, rows), (rows @ weight).relu())
        assert not is_wanted()
    assert len(graphs) == 1
    with watched() as ways:
        function(weight, rows)
        with compiling():
            with compiling(False):
                function(weight, rows)
            function(weight, rows)
    assert ways == {"<lambda>: as written": 2, "<lambda>: compiled": 1}
    # Another weight is another shape.
    with compiling():
        function(torch.randn(3, 4), torch.randn(6, 3))
    assert len(graphs) == 2


def test_compiled_by_the_backend_that_is_set(graphs, monkeypatch):
    function = Compilable(lambda rows: rows + 1, "rows")
    with compiling():
        function(torch.ones(3))
        monkeypatch.setattr(compiled, "BACKEND", "eager")
        torch._dynamo.reset()
        assert torch.equal(function(torch.ones(4)), torch.full((4,), 2.0))
    assert len(graphs) == 1


def test_compiling_is_over_when_something_fails():
    with pytest.raises(ZeroDivisionError), compiling():
        raise ZeroDivisionError
    assert not is_wanted()


def test_what_is_compiled_can_be_told_by_its_name():
    function = compiled.compilable("logits")(token_losses._logsumexp.function)
    assert function.__name__ == "_logsumexp" and "half-precision" in function.__doc__


def test_compiled_softmaxes_are_the_same_function(graphs, monkeypatch):
    monkeypatch.setattr(token_losses, "CPU_LOGITS_IN_MEMORY", 20)
    torch.manual_seed(0)
    embeddings = torch.randn(6, 4, requires_grad=True)
    weight, bias = torch.randn(11, 4, requires_grad=True), torch.randn(11, requires_grad=True)
    targets, sampled_ids = torch.tensor([0, 3, 3, 7, 10, 8]), torch.tensor([0, 3, 5, 9])
    counts = torch.randn(6), torch.randn(4)
    results = []
    for wanted in (False, True):
        with compiling(wanted), watched() as ways:
            exact = token_losses.exact_token_losses(embeddings, weight, bias, targets)
            sampled = token_losses.sampled_token_losses(
                embeddings, weight, bias, targets, counts[0], sampled_ids, counts[1], False
            )
        losses = torch.cat([exact, sampled])
        gradients = torch.autograd.grad(
            (losses * torch.arange(12)).sum(), [embeddings, weight, bias]
        )
        results.append([losses, *gradients])
    # Blocks of three words, the last one of two.
    assert ways["_logsumexp: compiled"] == 4
    assert ways["_probabilities_at_once: compiled"] == ways["sampled softmax: at once"] == 1
    assert graphs
    for plain, ours in zip(*results):
        assert torch.allclose(plain, ours, atol=1e-5)
    wanted_losses = [
        exact_losses(embeddings, weight, bias, targets),
        sampled_losses(embeddings, weight, bias, targets, counts[0], sampled_ids, counts[1]),
    ]
    assert torch.allclose(results[1][0], torch.cat(wanted_losses), atol=1e-5)


def test_a_compiled_model_is_the_same_function(graphs, make_model, vocabulary):
    changes = model_config()
    changes["contextualizer"].update(dropout=0.0, input_dropout=0.0)
    model = make_model(**changes)
    batch = tensors(random_sentences(5), vocabulary)
    losses, gradients = [], []
    for wanted in (False, True):
        torch.manual_seed(1)
        model.zero_grad()
        with compiling(wanted), watched() as ways:
            losses.append(model.train()(**batch)["loss"])
        losses[-1].backward()
        gradients.append([p.grad.to_dense() for p in model.parameters()])
    # What is compiled listens to nobody: counting would be part of it.
    assert graphs and "linear: torch" not in ways
    assert torch.allclose(*losses, rtol=1e-5)
    for plain, ours in zip(*gradients):
        assert torch.allclose(plain, ours, atol=1e-5)
