import pytest
import torch

from transformer_elmo.nn.kernels import dropout as kernel
from transformer_elmo.nn.kernels.dropout import Dropout

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@dtypes
@pytest.mark.parametrize("p", [0.001, 0.1, 0.9])
def test_rate(p, dtype):
    torch.manual_seed(0)
    # Not a multiple of what a processor handles at a time.
    output = Dropout(p)(torch.ones(1000, 1001, dtype=dtype))
    share = (output == 0).double().mean().item()
    # Five standard errors of a million draws, and half a level of the rounding.
    assert share == pytest.approx(p, abs=5 * (p * (1 - p) / 1e6) ** 0.5 + 2**-17)


@dtypes
@pytest.mark.parametrize("p", [0.0, 1e-5, 0.1, 0.498, 0.5, 0.7, 0.99])
def test_share_and_scale_of_all_patterns(p, dtype, monkeypatch):
    """There are few enough to count them, those that are no numbers among them."""
    patterns = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    monkeypatch.setattr(kernel, "random_patterns", lambda like: patterns)
    output, dropped = Dropout(p)(torch.ones(2**16, dtype=dtype)), round(p * 2**16)
    assert (output == 0).sum() == dropped
    scale = torch.tensor(2**16 / (2**16 - dropped)).to(dtype)
    assert torch.allclose(output[output != 0], scale, rtol=torch.finfo(dtype).eps)


@dtypes
@pytest.mark.parametrize("of_relu", [False, True])
def test_gradients_and_seeds(dtype, of_relu):
    dropout = Dropout(0.3)
    ours = dropout.of_relu if of_relu else dropout
    tensor, grad = torch.randn(2, 13, 7).to(dtype)
    tensor.requires_grad_()
    plain = tensor.relu() if of_relu else tensor * 1.0
    torch.manual_seed(0)
    # The same in any precision, and others the next time.
    factors, others = dropout(torch.ones(13, 7)), dropout(torch.ones(13, 7))
    assert factors.min() == 0 and not torch.equal(factors, others)
    torch.manual_seed(0)
    output = ours(tensor.clone())
    found, wanted = (torch.autograd.grad(made, tensor, grad)[0] for made in (output, plain))
    tolerance = 2 * torch.finfo(dtype).eps
    for one, other in ((output, plain), (found, wanted)):
        assert torch.allclose(one.float(), other * factors, rtol=tolerance, atol=tolerance)
    dropout.eval()
    assert torch.equal(ours(tensor.detach().clone()), plain)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_nothing_and_everything(p):
    tensor = torch.randn(5)
    assert torch.equal(Dropout(p)(tensor), tensor * (1 - p))
    assert Dropout(p).eval()(tensor) is tensor
    assert Dropout(0.1)(torch.zeros(3, 0)).shape == (3, 0)
