import pytest
import torch

from transformer_elmo.nn.kernels.dropout import Dropout, drop_threshold

TYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("p", [0.001, 0.1, 0.9])
def test_rate_and_expectation(p, dtype):
    torch.manual_seed(0)
    # Not a multiple of what a processor handles at a time.
    output = Dropout(p)(torch.ones(1000, 1001, dtype=dtype))
    share = (output == 0).double().mean().item()
    # Five standard errors of a million draws, and half a level of the rounding.
    assert share == pytest.approx(p, abs=5 * (p * (1 - p) / 1e6) ** 0.5 + 2**-17)
    assert output.unique().numel() == 2
    assert output.max().item() == pytest.approx(1 / (1 - p), rel=1e-3 + torch.finfo(dtype).eps)


@pytest.mark.parametrize("p", [0.0, 1e-5, 0.1, 0.498, 0.5, 0.7, 0.99])
def test_share_of_all_patterns(p):
    """There are few enough to count them: the share is exactly what is said."""
    patterns = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    threshold, share = drop_threshold(p)
    ones = torch.ones_like(patterns)
    kept = torch.ops.aten.threshold_backward(ones, patterns, threshold)
    assert (kept == 0).double().mean().item() == share == pytest.approx(p, abs=2**-17)
    wide = torch.ops.aten.threshold_backward(ones.float(), patterns.float(), threshold)
    assert torch.equal(wide, kept.float())
    # One by one, too, which a processor does in another way than many at once.
    for number in range(0, 2**16, 997):
        one = slice(number, number + 1)
        assert torch.ops.aten.threshold_backward(ones[one], patterns[one], threshold) == kept[one]


def test_follows_the_seed():
    made = []
    for dtype in TYPES:
        torch.manual_seed(0)
        made += [Dropout(0.5)(torch.ones(1000, dtype=dtype)) == 0 for _ in range(2)]
    first, second, *in_bfloat16 = made
    assert torch.equal(in_bfloat16[0], first) and not torch.equal(first, second)


@pytest.mark.parametrize("dtype", TYPES)
def test_gradients(dtype):
    torch.manual_seed(0)
    tensor, grad = torch.randn(2, 13, 7).to(dtype)
    output = Dropout(0.3)(tensor.requires_grad_())
    output.backward(grad)
    assert tensor.grad is not None
    factors = torch.where(tensor.grad == 0, 0.0, 1 / (1 - drop_threshold(0.3)[1]))
    assert 0 < (tensor.grad == 0).sum() < tensor.numel()
    tolerance = 2 * torch.finfo(dtype).eps
    for found, given in ((tensor.grad, grad), (output, tensor)):
        assert torch.allclose(found.float(), given * factors, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TYPES)
def test_of_relu(dtype):
    dropout = Dropout(0.3)
    tensor = torch.randn(13, 7).to(dtype).requires_grad_()
    grad = torch.randn(13, 7).to(dtype)
    outputs = []
    for function in (lambda t: dropout(t.relu()), dropout.of_relu, lambda t: t.relu()):
        torch.manual_seed(0)
        output = function(tensor.clone())
        outputs.append((output, *torch.autograd.grad(output, [tensor], grad)))
    for ours, expected, plain in zip(outputs[1], outputs[0], outputs[2]):
        assert torch.equal(ours, expected)
        assert not torch.equal(ours, plain)
    dropout.eval()
    assert torch.equal(dropout.of_relu(tensor.detach().clone()), tensor.relu())


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_nothing_and_everything(p):
    tensor = torch.randn(5)
    assert torch.equal(Dropout(p)(tensor), tensor * (1 - p))
    assert Dropout(p).eval()(tensor) is tensor
    assert Dropout(0.1)(torch.zeros(3, 0)).shape == (3, 0)
