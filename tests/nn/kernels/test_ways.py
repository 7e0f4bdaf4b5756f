"""
Which way the kernels go on this machine: a fast one that is silently out of reach changes no
number.
"""

import functools
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.nn.kernels.comparing import assert_same_function, exact_losses
from tests.small_lm import model_config, random_sentences, tensors
from transformer_elmo.nn.kernels import attention
from transformer_elmo.nn.kernels import softmax as token_losses
from transformer_elmo.nn.kernels.linear import FEWEST_ROWS, layout, linear, packed, product
from transformer_elmo.nn.precision import computing

needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this PyTorch has no oneDNN",
)

PRODUCT = "_linear_pointwise"
FUSED = "_scaled_dot_product_flash_attention_for_cpu"


class Operators(TorchDispatchMode):
    """Counts PyTorch's operators, and notes the weights that its private product is called with."""

    def __init__(self):
        super().__init__()
        self.counts, self.products = Counter(), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.counts[name] += 1
        if name == PRODUCT:
            self.products.append((args[0].size(0), args[1]))
        return func(*args, **(kwargs or {}))

    def __getitem__(self, name):
        return self.counts[name]

    def assert_measured(self):
        for num_rows, weight in self.products:
            assert weight.is_mkldnn or num_rows >= FEWEST_ROWS[layout(weight)]


CASES = ["training", "without dropout", "full softmax", "embedding", "bfloat16", "long, bfloat16"]


@needs_onednn
@pytest.mark.parametrize("case", CASES)
def test_ways_of_a_model(make_model, vocabulary, monkeypatch, case):
    changes, learns = model_config(), case != "embedding"
    if case == "without dropout" or "bfloat16" in case:
        changes["contextualizer"].update(dropout=0.0, input_dropout=0.0)
    if case == "full softmax":
        # It works on slices of a transposed weight, block by block.
        changes["num_samples"] = None
        monkeypatch.setattr(token_losses, "CPU_LOGITS_IN_MEMORY", 20)
    if case != "bfloat16":
        monkeypatch.setattr(attention, "SCORES_IN_MEMORY", 0)
    changes["precision"] = "bfloat16" if "bfloat16" in case else "float32"
    model = make_model(**changes).train(learns)
    batch = tensors(random_sentences(5), vocabulary)
    with Operators() as ways, torch.set_grad_enabled(learns):
        model(**batch)["loss"].backward() if learns else model.encode(batch["source"])
    layers = 2 * changes["contextualizer"]["num_layers"]
    assert not ways["native_dropout"] and not ways["bernoulli_"] and not ways["convolution"]
    assert bool(ways["threshold_backward"]) == learns
    # Written out with dropout, and in bfloat16 as long as scores are few.
    assert ways[FUSED] == (layers if case in ("without dropout", "embedding", CASES[-1]) else 0)
    # Four in each layer, and those of words; where something is learned, their gradients, too.
    assert ways["_reorder_linear_weight"] == (0 if learns else 4 * layers + 3)
    if "bfloat16" in case:
        # PyTorch's own product asks oneDNN where the processor has bfloat16.
        assert not ways.products and ways["_foreach_copy_"]
    else:
        of_layers = [weight for _, weight in ways.products if weight.is_mkldnn or learns]
        assert len(of_layers) >= 4 * layers
        ways.assert_measured()


# Of each kernel.


@needs_onednn
def test_linear_goes_by_onednn(monkeypatch):
    rows, weight, bias = torch.randn(8, 3), torch.randn(8, 3), torch.randn(8)
    rows.requires_grad_(), weight.requires_grad_()
    with Operators() as ways:
        linear(rows, weight, bias).sum().backward()
        product(rows.detach(), weight.detach())
    assert ways[PRODUCT] == 4
    expected = F.linear(rows, weight, bias)
    with Operators() as ways:
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            assert linear(*(t.to(dtype) for t in (rows, weight, bias))).dtype == dtype
        linear(rows[:0], weight, bias)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert linear(rows, weight, bias).dtype == torch.bfloat16
            assert product(rows, weight).dtype == torch.bfloat16
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert torch.equal(linear(rows, weight, bias), expected)
        assert torch.equal(product(rows, weight, bias), expected)
    assert not ways[PRODUCT]


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
        wide = torch.randn(num_rows, weight.size(1) + 3)[:, 3:]
        for rows in (wide, wide.t().contiguous().t(), wide[:1].expand(num_rows, -1)):
            with Operators() as ways:
                found = product(rows, weight)
            ways.assert_measured()
            assert bool(ways.products) == (num_rows >= FEWEST_ROWS.get(expected, 1024))
            assert torch.allclose(found, rows @ weight.t(), atol=1e-4)


@needs_onednn
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (37, 20), (512, 128)])
def test_packed_weights_go_by_onednn(shape):
    weight, bias = torch.randn(shape), torch.randn(shape[0])
    for num_rows in (1, 22, 300):
        rows = torch.randn(num_rows, shape[1])
        with Operators() as ways:
            found = linear(rows, packed(weight), bias)
        assert [made.is_mkldnn for _, made in ways.products] == [True]
        assert torch.allclose(found, F.linear(rows, weight, bias), atol=2e-4)
    for other in (weight.bfloat16(), weight.double(), weight[:0]):
        assert packed(other) is other


# Products of ever new shapes, as the batches of a long text are, in memory that stays flat.

# In a process of its own: what is kept belongs to the process, and is set up once.
GROWTH = """
import resource, torch
from transformer_elmo.nn.kernels.linear import product

def kilobytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

torch.set_num_threads(1)
rows, weight, bias = torch.randn(1200, 64), torch.randn(64, 64), torch.randn(64)
product(rows[:1], weight, bias)
before = kilobytes()
for number in range(2, len(rows)):
    product(rows[:number], weight, bias)
print(kilobytes() - before)
"""


@needs_onednn
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is bytes")
def test_memory_does_not_grow_with_the_number_of_shapes():
    environment = {n: v for n, v in os.environ.items() if not n.endswith("CACHE_CAPACITY")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    # Some 95 MB here, and some 600 with all that oneDNN and PyTorch would keep.
    assert int(subprocess.check_output([sys.executable, "-c", GROWTH], env=environment)) < 250_000


# The exact softmax, compiled on a GPU. A backend that counts stands in for the one that takes long.


def test_the_compiled_softmax_is_the_same_function_for_all_sizes(monkeypatch):
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counting))
    monkeypatch.setattr(token_losses, "CPU_LOGITS_IN_MEMORY", 20)
    token_losses._compiled_logsumexp.cache_clear()
    torch._dynamo.reset()
    for number in (6, 4, 5, 3):
        inputs, targets = (
            [torch.randn(s) for s in ((number, 4), (14, 4), (14,))],
            torch.arange(number),
        )
        with computing("float32", True, torch.device("cuda")):
            assert_same_function(token_losses.exact_token_losses, exact_losses, inputs, targets)
    assert len(graphs) == 1
    # A CPU gains nothing by it.
    token_losses._compiled_logsumexp.cache_clear()
    with computing("float32", True, torch.device("cpu")):
        token_losses.exact_token_losses(*inputs, targets)
    assert len(graphs) == 1
