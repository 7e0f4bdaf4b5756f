"""How tests tell that a kernel and its plain reference are the same function."""

from contextlib import nullcontext
from typing import Any, Callable, List, Sequence

import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.device.pretend import moved, pretend_device

# The same cases every time, and no database of them beside the tests. They are small as they are:
# looking for smaller ones takes minutes.
MANY = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
)

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


def gradients(output: torch.Tensor, inputs: Sequence[torch.Tensor]) -> List[torch.Tensor]:
    """Of a random weighted sum of the output, the same each time; dense, and on the CPU."""
    generator = torch.Generator().manual_seed(5)
    # Exact in bfloat16, so that they are the same in any type.
    weights = torch.randn(output.shape, generator=generator).bfloat16()
    weights = weights.to(output.dtype).to(output.device)
    found = torch.autograd.grad(output, inputs, weights, allow_unused=True)
    return [
        torch.zeros_like(here(like)) if gradient is None else here(gradient).to_dense()
        for gradient, like in zip(found, inputs)
    ]


def here(tensor: torch.Tensor) -> torch.Tensor:
    """Of a pretended device, what is on the CPU."""
    return getattr(tensor, "held", tensor)


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
    on_a_device: bool = False,
    learned: Sequence[int] = (),
) -> torch.Tensor:
    """
    Outputs, and gradients of floating-point `inputs`, of all or of those `learned`. Types of fewer
    digits are compared with what the plain function makes of the same numbers in float32. Returns
    the output.
    """
    learned = learned or range(len(inputs))
    exact = [tensor.detach().float() for tensor in inputs]
    wanted = plain(*_learning(exact, learned), *others)
    with pretend_device() if on_a_device else nullcontext():
        ours: Any = [tensor.detach() for tensor in inputs]
        if on_a_device:
            ours, others = moved((ours, others))
        got = fast(*_learning(ours, learned), *others)
        found = gradients(got, [ours[number] for number in learned])
    assert close(here(got), wanted, tolerance)
    expected = gradients(wanted, [exact[number] for number in learned])
    for number, one, other in zip(learned, found, expected):
        assert one.dtype == inputs[number].dtype and close(one, other, tolerance)
    return here(got)


def _learning(tensors: Sequence[torch.Tensor], learned: Sequence[int]) -> List[torch.Tensor]:
    return [tensor.requires_grad_(n in learned) for n, tensor in enumerate(tensors)]


def under_autocast(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """To bfloat16."""

    def call(first: torch.Tensor, *rest: Any) -> torch.Tensor:
        with torch.autocast(first.device.type, dtype=torch.bfloat16):
            return function(first, *rest)

    return call


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
    sparse: bool = False,
) -> torch.Tensor:
    """The formula of Jean et al. 2015, with all logits at once; a sample that is hit is no word."""
    of_targets, of_samples = log_counts.split([targets.numel(), sampled_ids.numel()])
    target_logits = (embeddings * weight[targets]).sum(-1) + bias.view(-1)[targets] - of_targets
    logits = F.linear(embeddings, weight[sampled_ids], bias.view(-1)[sampled_ids]) - of_samples
    logits = logits.masked_fill(targets.unsqueeze(-1) == sampled_ids, -torch.inf)
    return -torch.cat([target_logits.unsqueeze(-1), logits], -1).log_softmax(-1)[:, 0]
