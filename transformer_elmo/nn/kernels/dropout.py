"""Dropout that costs little more on a CPU than reading its input."""

from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# The types that it works on: those that hold every bfloat16.
_TYPES = (torch.float32, torch.bfloat16)

# How bfloat16's infinity looks as an integer. The patterns beyond it, of either sign, are no
# numbers.
_INFINITY = 0x7F80


def random_patterns(like: torch.Tensor) -> torch.Tensor:
    """
    Numbers in bfloat16, of `like`'s shape, on the CPU, all of whose bit patterns are equally
    likely, infinities and NaNs among them. PyTorch's generator only gives the seed: NumPy's SFC64
    makes the same number of bits in half the time.
    """
    seed = int(torch.randint(2**63 - 1, ()))
    bits = np.random.SFC64(seed).random_raw((like.numel() + 3) // 4)
    numbers = torch.from_numpy(bits).view(torch.bfloat16)
    return numbers[: like.numel()].view(like.shape)


def drop_threshold(p: float) -> tuple[float | None, float]:
    """
    `p`: a probability. Returns the number that a share `p` of bfloat16's bit patterns do not
    exceed, and that share as it really is, a multiple of 2^-16. `None` where there is no such
    number, for probabilities of more than 0.99.
    """
    count = round(p * 2**16)
    # In rising order: the negative patterns from infinity to zero, the positive ones from zero on.
    # What is no number never falls below a threshold.
    if count <= _INFINITY:
        pattern = _INFINITY + 1 - count - 2**15
    elif count <= 2 * _INFINITY:
        pattern = max(0, count - _INFINITY - 2)
    else:
        return None, p
    number = torch.tensor([pattern], dtype=torch.int16).view(torch.bfloat16).item()
    return number, count / 2**16


def _zero_where_dropped(
    tensor: torch.Tensor, patterns: torch.Tensor, threshold: float
) -> torch.Tensor:
    # ReLU's derivative has the very kernel: what is not above the threshold becomes zero.
    return torch.ops.aten.threshold_backward(tensor, patterns.to(tensor.dtype), threshold)


class _CpuDropout(torch.autograd.Function):
    """
    Inverted dropout in few passes over memory. PyTorch's own draws a number for each element, at
    10 ns each on a CPU, and reads its mask as slowly.
    """

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, threshold: float, scale: float) -> torch.Tensor:
        patterns = random_patterns(tensor)
        ctx.save_for_backward(patterns)
        ctx.threshold, ctx.scale = threshold, scale
        return _zero_where_dropped(tensor, patterns, threshold).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (patterns,) = ctx.saved_tensors
        return _zero_where_dropped(grad, patterns, ctx.threshold).mul_(ctx.scale), None, None


class _CpuDropoutOfRelu(torch.autograd.Function):
    """Inverted dropout of a ReLU: the result alone says where the gradient passes."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, threshold: float, scale: float) -> torch.Tensor:
        kept = _zero_where_dropped(tensor, random_patterns(tensor), threshold)
        kept.clamp_min_(0.0).mul_(scale)
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (kept,) = ctx.saved_tensors
        return _zero_where_dropped(grad, kept, 0.0).mul_(ctx.scale), None, None


class Dropout(torch.nn.Dropout):
    """
    `torch.nn.Dropout`, faster on a CPU. There the probability is rounded to a multiple of 2^-16,
    and what remains is scaled accordingly; which elements become zero depends on the seed and not
    on the precision.
    """

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        threshold, scale = self._cpu_threshold(tensor)
        if threshold is None:
            return F.dropout(tensor, self.p, self.training)
        return _CpuDropout.apply(tensor, threshold, scale)

    def of_relu(self, tensor: torch.Tensor) -> torch.Tensor:
        """The dropout of the tensor's ReLU. The tensor itself may be overwritten."""
        threshold, scale = self._cpu_threshold(tensor)
        if threshold is None:
            return F.dropout(F.relu_(tensor), self.p, self.training)
        return _CpuDropoutOfRelu.apply(tensor, threshold, scale)

    def _cpu_threshold(self, tensor: torch.Tensor) -> tuple[float | None, float]:
        """The threshold and the scale of what remains; `None` where PyTorch's own way is taken."""
        if not (self.training and self.p > 0.0):
            return None, 1.0
        if not tensor.numel() or tensor.device.type != "cpu" or tensor.dtype not in _TYPES:
            return None, 1.0
        threshold, share = drop_threshold(self.p)
        return threshold, 1.0 if threshold is None else 1.0 / (1.0 - share)
