"""
Weights in the precision of the matrix products, all of a stack at once. Cast one by one they are
hundreds of small kernels a step, which a GPU's host takes longer to launch than the GPU to run.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

Pair = tuple[torch.Tensor, torch.Tensor]
"""A weight and its bias, or a gamma and its beta."""


def products_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The precision of matrix products with `tensor`: autocast's where it is on, else its own."""
    device_type = tensor.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return tensor.dtype


# Where products want their matrices to begin, in elements: 32 bytes of bfloat16.
_ALIGNMENT = 16


class _Cast(torch.autograd.Function):
    """
    Groups of weights, each joined along the first dimension, in another type. All of them are one
    stretch of memory, and so are their gradients: one allocation each, which the host is done with
    sooner than with hundreds.
    """

    @staticmethod
    def forward(
        ctx: Any, dtype: torch.dtype, sizes: tuple[int, ...], *weights: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        # What isn't used has no gradient, and not one of zeros.
        ctx.set_materialize_grads(False)
        ctx.dtype, left = weights[0].dtype, iter(weights)
        ctx.groups = [[next(left).shape for _ in range(size)] for size in sizes]
        parts, joined = _stretch(weights[0], dtype, ctx.groups)
        torch._foreach_copy_(parts, list(weights))
        return tuple(joined)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        sources: list[torch.Tensor | None] = []
        for grad, shapes in zip(grads, ctx.groups):
            if grad is None:
                sources.extend([None] * len(shapes))
            else:
                sources.extend(grad.split([shape[0] for shape in shapes]))
        given = [source for source in sources if source is not None]
        if not given:
            return (None, None, *sources)
        targets, _ = _stretch(given[0], ctx.dtype, [[source.shape] for source in given])
        torch._foreach_copy_(targets, given)
        made = iter(targets)
        return (None, None, *(None if source is None else next(made) for source in sources))


def _stretch(
    like: torch.Tensor, dtype: torch.dtype, groups: Sequence[Sequence[torch.Size]]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Tensors of all the shapes, one after the other in memory, and each group of them as one."""
    sizes: list[int] = []
    for shapes in groups:
        numbers = [shape.numel() for shape in shapes]
        sizes += [*numbers, -sum(numbers) % _ALIGNMENT]
    memory = like.new_empty(sum(sizes), dtype=dtype)
    stretches = iter(memory.split(sizes))
    parts: list[torch.Tensor] = []
    joined: list[torch.Tensor] = []
    begin = 0
    for shapes in groups:
        parts += [next(stretches).view(shape) for shape in shapes]
        if len(shapes) == 1:
            joined.append(parts[-1])
        else:
            length = sum(shape.numel() for shape in shapes)
            joined.append(memory[begin : begin + length].view(-1, *shapes[0][1:]))
        begin += sum(shape.numel() for shape in shapes) + next(stretches).numel()
    return parts, joined


def cast_weights(
    dtype: torch.dtype, groups: Sequence[Sequence[torch.Tensor]]
) -> list[torch.Tensor]:
    """
    `groups`: weights; those of one group are of the same shape but for their first dimension.
    Returns each group as one tensor of that type, joined along the first dimension. Gradients have
    the weights' own type.
    """
    to_make = [group for group in groups if len(group) > 1 or group[0].dtype != dtype]
    flat = [weight for group in to_make for weight in group]
    if all(weight.device.type == "cpu" and weight.dtype == dtype for weight in flat):
        made = iter([torch.cat(list(group)) for group in to_make])
    else:
        made = iter(_Cast.apply(dtype, tuple(map(len, to_make)), *flat))
    return [
        next(made) if len(group) > 1 or group[0].dtype != dtype else group[0] for group in groups
    ]
