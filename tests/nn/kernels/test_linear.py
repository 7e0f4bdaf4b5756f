"""oneDNN's products against PyTorch's own."""

import pytest
import torch
from torch.nn import functional as F

from transformer_elmo.nn.kernels import linear as module
from transformer_elmo.nn.kernels.linear import linear, product


@pytest.mark.parametrize("num_rows", [0, 1, 7, 130])
@pytest.mark.parametrize("dims", [(1, 1), (24, 8), (33, 65)])
def test_equals_pytorchs(num_rows, dims):
    torch.manual_seed(0)
    rows = torch.randn(num_rows, dims[0], requires_grad=True)
    weight = torch.randn(dims[1], dims[0], requires_grad=True)
    bias = torch.randn(dims[1], requires_grad=True)
    grad = torch.randn(num_rows, dims[1])
    got, wanted = linear(rows, weight, bias), F.linear(rows, weight, bias)
    assert torch.allclose(got, wanted, atol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad(got, [rows, weight, bias], grad),
        torch.autograd.grad(wanted, [rows, weight, bias], grad),
    ):
        assert torch.allclose(ours, theirs, atol=1e-5 * max(1, num_rows))


def test_weights_the_other_way_round():
    rows, weight = torch.randn(9, 5), torch.randn(5, 12)
    assert torch.allclose(product(rows, weight.t()), rows @ weight, atol=1e-5)


def test_gradients_that_repeat_themselves_in_memory():
    rows, weight = torch.randn(6, 4, requires_grad=True), torch.randn(3, 4)
    # The gradient of a sum is a single number, expanded.
    linear(rows, weight, torch.zeros(3)).sum().backward()
    assert rows.grad is not None
    assert torch.allclose(rows.grad, weight.sum(0).expand(6, -1), atol=1e-6)
    # A view of another matrix, whose rows lie apart.
    wide = torch.randn(6, 9)
    assert torch.allclose(product(wide[:, 2:6], weight), wide[:, 2:6] @ weight.t(), atol=1e-5)


def test_only_what_is_asked_for_gets_a_gradient():
    rows = torch.randn(4, 3)
    weight = torch.randn(2, 3, requires_grad=True)
    linear(rows, weight, torch.zeros(2)).sum().backward()
    assert weight.grad is not None
    assert torch.allclose(weight.grad, rows.sum(0).expand(2, -1))


def test_autocast_is_respected():
    rows, weight, bias = torch.randn(4, 3), torch.randn(2, 3), torch.randn(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(rows, weight, bias).dtype == torch.bfloat16


def test_without_onednn(monkeypatch):
    rows, weight, bias = torch.randn(4, 3), torch.randn(2, 3), torch.randn(2)
    expected = F.linear(rows, weight, bias)
    monkeypatch.setattr(module.torch.backends.mkldnn, "is_available", lambda: False)
    assert torch.equal(linear(rows, weight, bias), expected)
