"""
Rows taken to other places. Everything but attention works on a matrix of tokens, and the places of
its rows are moved by one gather each way.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable


class _MovedRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, source: torch.Tensor, index: torch.Tensor, back: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(index, back)
        ctx.num_rows = source.size(0)
        if not ctx.num_rows:
            # A batch of nothing but padding.
            return source.new_zeros(index.numel(), *source.shape[1:])
        return source.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        index, back = ctx.saved_tensors
        if back is not None:
            return grad.index_select(0, back), None, None
        moved = grad.new_zeros(ctx.num_rows, *grad.shape[1:])
        return moved.index_copy_(0, index, grad), None, None


def gather_rows(
    source: torch.Tensor, index: torch.Tensor, back: torch.Tensor | None = None
) -> torch.Tensor:
    """
    `source[index]`, where each row of `source` that matters goes to one place that matters. The
    gradient of PyTorch's own indexing must expect repeats, and adds rows up one by one.

    `source`: shape `(num_rows, ...)`. `index`: shape `(num_moved,)`. Without `back` it has no
    repeats, and rows that are not in it have no gradient. `back`: shape `(num_rows,)`: which row of
    the result the gradient of each row of `source` is taken from. Returns shape `(num_moved, ...)`.
    """
    return _MovedRows.apply(source, index, back)
