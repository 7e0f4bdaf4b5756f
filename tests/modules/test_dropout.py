import pytest
import torch

from transformer_elmo.modules.dropout import Dropout, dropout_factors


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_rate_and_expectation(p):
    torch.manual_seed(0)
    factors = dropout_factors(torch.empty(1000, 1001), p)
    dropped = (factors == 0).double().mean().item()
    # Five standard errors of a million draws.
    assert dropped == pytest.approx(p, abs=5 * (p * (1 - p) / 1e6) ** 0.5 + 1e-5)
    assert factors.unique().numel() == 2
    assert factors.max().item() == pytest.approx(1 / (1 - p), rel=1e-3)
    # The factors' mean is one by construction, whatever the rounding of p.
    assert factors.double().mean().item() == pytest.approx(1.0, abs=0.02)


def test_neighbours_are_independent():
    torch.manual_seed(0)
    dropped = (dropout_factors(torch.empty(400_000), 0.5) == 0).double() - 0.5
    for distance in range(1, 9):
        correlation = 4 * (dropped[:-distance] * dropped[distance:]).mean().item()
        assert abs(correlation) < 0.01


def test_gradient_has_the_same_zeros():
    torch.manual_seed(0)
    tensor = torch.randn(13, 7, requires_grad=True)
    output = Dropout(0.3)(tensor)
    output.sum().backward()
    assert torch.allclose(output, tensor * tensor.grad)
    assert (tensor.grad == 0).any()


def test_residual():
    torch.manual_seed(0)
    tensor, residual = torch.randn(13, 7), torch.randn(13, 7)
    dropout = Dropout(0.3)
    torch.manual_seed(1)
    expected = residual + dropout(tensor)
    torch.manual_seed(1)
    assert torch.allclose(dropout(tensor, residual), expected)
    assert torch.equal(dropout.eval()(tensor, residual), residual + tensor)


def test_bfloat16_and_mixed():
    dropout = Dropout(0.3)
    tensor = torch.ones(100, dtype=torch.bfloat16)
    assert dropout(tensor).dtype == torch.bfloat16
    assert dropout(tensor, torch.ones(100)).dtype == torch.float32


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_nothing_and_everything(p):
    tensor = torch.randn(5)
    assert torch.equal(Dropout(p)(tensor), tensor * (1 - p))


def test_evaluation_changes_nothing():
    tensor = torch.randn(5)
    assert Dropout(0.5).eval()(tensor) is tensor
