"""
Products with weights, in float32 on a CPU by oneDNN.

PyTorch multiplies float32 matrices on a CPU by MKL, which on processors of other makes than Intel's
takes some 10 % longer than the oneDNN that comes with PyTorch as well, and twice as long where they
have AVX-512; oneDNN's linear layer is what `torch.compile` uses. In bfloat16 PyTorch asks oneDNN
anyway.

With the few rows of a single sentence, oneDNN spends a quarter of a product's time on laying the
weight out in its own order. A weight that stands still can be laid out once: see `packed`.
"""

import math
import os
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# oneDNN compiles a product for each shape, and both it and PyTorch's layer above it keep the last
# 1,024, a quarter of a megabyte each. Batches of a text have ever new shapes: memory would grow for
# tens of thousands of lines. One batch needs some tens. Both read this at their first product.
for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_name, "128")

# For so many rows oneDNN chooses the order of a packed weight, which serves all others, too.
_ROWS = 2000


def onednn_takes(matrix: torch.Tensor) -> bool:
    """Float32 on a CPU, with a PyTorch that has oneDNN and a user who hasn't switched it off."""
    return bool(
        matrix.device.type == "cpu"
        and matrix.dtype == torch.float32
        and matrix.numel() > 0
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def _by_onednn(rows: torch.Tensor) -> bool:
    return onednn_takes(rows) and not torch.is_autocast_enabled("cpu")


def packed(weight: torch.Tensor) -> torch.Tensor:
    """
    A copy of a weight in oneDNN's own order, for `linear` without a gradient; the weight itself
    where that isn't possible.

    `weight`: shape `(output_dim, input_dim)`.
    """
    if not onednn_takes(weight):
        return weight
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS)


# The layouts of a weight that PyTorch's private operation has been measured with, and the fewest
# rows that it is the faster one for (`scripts/benchmark/products.py`: half of MKL's time on an AMD
# EPYC). With any other, such as a slice of a transposed weight, oneDNN takes its reference code,
# which is 1,000 times slower.
FEWEST_ROWS = {"rows": 2, "columns": 8}
# For so many rows a copy of a weight in another layout costs nothing beside the product.
_ROWS_WORTH_A_COPY = 1024


def layout(weight: torch.Tensor) -> str | None:
    """
    "rows" if a matrix lies in memory row after row, "columns" if column after column, both without
    gaps; `None` for any other layout.
    """
    height, width = weight.shape
    # PyTorch doesn't look at the stride of a dimension of size 1, but oneDNN does.
    if weight.stride() == (width, 1):
        return "rows"
    return "columns" if weight.stride() == (1, height) else None


def product(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """
    `torch.nn.functional.linear` for matrices of any layout, without a gradient: from shapes
    `(num_rows, input_dim)`, `(output_dim, input_dim)` and `(output_dim,)` to
    `(num_rows, output_dim)`.
    """
    if _by_onednn(rows):
        if layout(weight) is None and rows.size(0) >= _ROWS_WORTH_A_COPY:
            # In the same order of dimensions, without gaps.
            weight = weight.clone()
        if rows.size(0) >= FEWEST_ROWS.get(layout(weight) or "", math.inf):
            return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return F.linear(rows, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(rows, weight)
        return product(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        needs_rows, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            product(grad, weight.t()) if needs_rows else None,
            product(grad.t(), rows.t()) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


def linear(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """
    `torch.nn.functional.linear` for a matrix.

    `rows`: shape `(num_rows, input_dim)`. `weight`: shape `(output_dim, input_dim)`; or, without a
    gradient, what `packed` made of it. `bias`: shape `(output_dim,)`, or none. Returns shape
    `(num_rows, output_dim)`.
    """
    if weight.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    if _by_onednn(rows) and {t.dtype for t in (weight, bias) if t is not None} == {torch.float32}:
        return _Linear.apply(rows, weight, bias)
    return F.linear(rows, weight, bias)
