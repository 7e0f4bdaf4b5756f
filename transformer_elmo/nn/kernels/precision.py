"""
Weights in the precision of the matrix products, all of a stack at once. Cast one by one they are
hundreds of small kernels a step, which a GPU's host takes longer to launch than the GPU to run.
"""

from typing import Any, List, Optional, Sequence, Tuple, cast

import torch
from torch.autograd.function import once_differentiable

from transformer_elmo.nn.kernels.ways import taken


def products_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The precision of matrix products with `tensor`: autocast's where it is on, else its own."""
    device_type = tensor.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return tensor.dtype


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, dtype: torch.dtype, sizes: Tuple[int, ...], *weights: torch.Tensor
    ) -> Tuple[torch.Tensor, ...]:
        ctx.sizes, ctx.weights = sizes, [(w.shape, w.dtype) for w in weights]
        results, parts, begin = [], [], 0
        for size in sizes:
            group = weights[begin : begin + size]
            rows = [weight.size(0) for weight in group]
            results.append(group[0].new_empty(sum(rows), *group[0].shape[1:], dtype=dtype))
            parts.extend(results[-1].split(rows))
            begin += size
        torch._foreach_copy_(parts, list(weights))
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Optional[torch.Tensor]) -> Tuple[Optional[torch.Tensor], ...]:
        results: List[Optional[torch.Tensor]] = []
        targets, sources, begin = [], [], 0
        for grad, size in zip(grads, ctx.sizes):
            group = ctx.weights[begin : begin + size]
            begin += size
            if grad is None:
                results.extend([None] * size)
                continue
            made = [grad.new_empty(shape, dtype=dtype) for shape, dtype in group]
            results.extend(made)
            targets.extend(made)
            sources.extend(grad.split([shape[0] for shape, _ in group]))
        if targets:
            torch._foreach_copy_(targets, sources)
        return (None, None, *results)


def in_precision(
    dtype: torch.dtype, groups: Sequence[Sequence[torch.Tensor]]
) -> List[torch.Tensor]:
    """
    # Parameters

    dtype : `torch.dtype`
    groups : `Sequence[Sequence[torch.Tensor]]`
        Weights; those of one group are of the same shape but for their first dimension.

    # Returns

    `List[torch.Tensor]`
        Each group as one tensor of that type, joined along the first dimension. Gradients have the
        weights' own type.
    """
    results: List[Optional[torch.Tensor]] = [
        group[0] if len(group) == 1 and group[0].dtype == dtype else None for group in groups
    ]
    missing = [number for number, result in enumerate(results) if result is None]
    if missing:
        to_make = [groups[number] for number in missing]
        for number, made in zip(missing, _made(dtype, to_make)):
            results[number] = made
    return cast(List[torch.Tensor], results)


def _made(dtype: torch.dtype, groups: List[Sequence[torch.Tensor]]) -> Sequence[torch.Tensor]:
    flat = [weight for group in groups for weight in group]
    if flat[0].device.type == "cpu" and all(weight.dtype == dtype for weight in flat):
        taken("precision", "one by one")
        return plain_in_precision(dtype, groups)
    taken("precision", "together")
    return _Cast.apply(dtype, tuple(map(len, groups)), *flat)


def plain_in_precision(
    dtype: torch.dtype, groups: Sequence[Sequence[torch.Tensor]]
) -> List[torch.Tensor]:
    """What `in_precision` computes, one by one."""
    return [(group[0] if len(group) == 1 else torch.cat(list(group))).to(dtype) for group in groups]
