"""How tests tell that a kernel and its plain reference are the same function."""

from typing import Any, Callable, Iterator, List, Optional, Sequence
from unittest import mock

import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from transformer_elmo.nn.kernels import softmax as token_losses

# The same cases every time, and no database of them beside the tests. They are small as they are:
# looking for smaller ones takes minutes.
FEW = settings(
    max_examples=25, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
)
MANY = settings(FEW, max_examples=60)

seeds = st.integers(0, 2**31)
widths = st.integers(1, 37)
dtypes = st.sampled_from([torch.float32, torch.bfloat16])
layouts = st.sampled_from(["contiguous", "transposed", "spread"])


def laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """The same numbers, elsewhere in memory: column by column, or in the middle of wider rows."""
    if layout == "transposed":
        tensor = tensor.transpose(0, -1).contiguous().transpose(0, -1)
    elif layout == "spread":
        wide = tensor.new_full((*tensor.shape[:-1], tensor.size(-1) + 5), torch.nan)
        wide[..., 2:-3] = tensor
        tensor = wide[..., 2:-3]
    return tensor


def dense(gradient: Optional[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(like) if gradient is None else gradient.to_dense()


def gradients(output: torch.Tensor, inputs: Sequence[torch.Tensor]) -> List[torch.Tensor]:
    """Of a random weighted sum of the output, the same each time."""
    generator = torch.Generator().manual_seed(5)
    # Exact in bfloat16, so that they are the same in any type.
    weights = torch.randn(output.shape, generator=generator).bfloat16()
    weights = weights.to(output.dtype).to(output.device)
    found = torch.autograd.grad(output, inputs, weights, allow_unused=True)
    return [dense(gradient, like) for gradient, like in zip(found, inputs)]


def close(got: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> bool:
    """Relative to the largest number that is wanted, as errors of sums are."""
    if got.shape != wanted.shape or not got.isfinite().all():
        return False
    if not got.numel():
        return True
    scale = max(1.0, float(wanted.detach().abs().max()))
    return float((got.detach().float() - wanted.detach().float()).abs().max()) <= tolerance * scale


def assert_same_function(
    fast: Callable[..., torch.Tensor],
    plain: Callable[..., torch.Tensor],
    inputs: Sequence[torch.Tensor],
    *others: Any,
    tolerance: float = 1e-5,
) -> None:
    """
    Outputs and gradients of floating-point `inputs`; those of types of fewer digits are compared
    with what the plain function makes of the same numbers in float32.
    """
    ours = [tensor.detach().requires_grad_() for tensor in inputs]
    exact = [tensor.detach().float().requires_grad_() for tensor in inputs]
    got, wanted = fast(*ours, *others), plain(*exact, *others)
    assert close(got, wanted, tolerance)
    for ours_of, wanted_of, tensor in zip(gradients(got, ours), gradients(wanted, exact), inputs):
        assert ours_of.dtype == tensor.dtype
        assert close(ours_of, wanted_of, tolerance)


def exact_losses(
    embeddings: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """With all logits at once."""
    return F.cross_entropy(F.linear(embeddings, weight, bias), targets, reduction="none")


def sampled_losses(
    embeddings: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    targets: torch.Tensor,
    sampled_ids: torch.Tensor,
    log_counts: torch.Tensor,
) -> torch.Tensor:
    """The formula of Jean et al. 2015, with all logits at once; a sample that is hit is no word."""
    of_targets, of_samples = log_counts.split([targets.numel(), sampled_ids.numel()])
    target_logits = (embeddings * weight[targets]).sum(-1) + bias.view(-1)[targets] - of_targets
    logits = F.linear(embeddings, weight[sampled_ids], bias.view(-1)[sampled_ids]) - of_samples
    logits = logits.masked_fill(targets.unsqueeze(-1) == sampled_ids, -torch.inf)
    return -torch.cat([target_logits.unsqueeze(-1), logits], -1).log_softmax(-1)[:, 0]


class Blocks:
    """How many logits were in each block that the softmaxes made."""

    def __init__(self, **constants: int) -> None:
        self.sizes: List[int] = []
        self._constants = constants

    def __enter__(self) -> "Blocks":
        plain = token_losses.product

        def noting(*args: Any) -> torch.Tensor:
            result = plain(*args)
            self.sizes.append(result.numel())
            return result

        self._patches = [mock.patch.object(token_losses, "product", noting)]
        self._patches += [
            mock.patch.object(token_losses, name, value) for name, value in self._constants.items()
        ]
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *error: object) -> None:
        for patch in reversed(self._patches):
            patch.stop()


def pieces(total: int, size: int) -> Iterator[int]:
    """How large the parts of `total` are, cut into parts of `size`."""
    for start in range(0, total, size):
        yield min(size, total - start)
