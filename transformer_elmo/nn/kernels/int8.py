"""
Products of 8-bit integers, for models that nothing is learned with: weights with a scale for each
output, made once, and rows with a scale each, made anew. A row's result depends on that row alone.

oneDNN multiplies them where PyTorch brings it along. Without instructions made for it (VNNI), a
processor adds up two products in 16 bits, which eight bits and eight bits overflow. Weights have
seven there.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch

from transformer_elmo.nn.kernels.compiled import taken

# Rows are multiples of their scales from -127 to 127, stored with an offset.
_LARGEST = 127
_OFFSET = 128

_wanted: ContextVar[bool] = ContextVar("int8", default=False)


@contextmanager
def with_int8() -> Iterator[None]:
    """Products that can be of 8-bit integers are, within the block."""
    token = _wanted.set(True)
    try:
        yield
    finally:
        _wanted.reset(token)


def int8_is_wanted() -> bool:
    """Whether products are of 8-bit integers where they can be."""
    return _wanted.get()


class Int8Weight(NamedTuple):
    """
    `packed`: in oneDNN's own order. `scales`: shape `(output_dim,)`, float32. `zeros`: shape
    `(output_dim,)`: the integers that stand for zero.
    """

    packed: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows that it is multiplied with."""
        return torch.float32


@functools.cache
def largest_weight() -> int | None:
    """
    The largest integer that this machine's products can have in a weight; `None` where PyTorch has
    no such products. Tried once with the largest numbers, whose sums have to be exact.
    """
    ours = getattr(torch.ops, "onednn", None)
    if not torch.backends.mkldnn.is_available() or not (
        hasattr(ours, "qlinear_prepack") and hasattr(ours, "qlinear_pointwise")
    ):
        return None
    generator = torch.Generator().manual_seed(0)
    # Whatever the program's defaults are.
    signs = torch.randint(2, (2, 64, 256), generator=generator, device="cpu") * 2 - 1
    signs[:, :32] = 1
    rows = (signs[0] * _LARGEST).float()
    scales = torch.ones(64, dtype=torch.float32, device="cpu")
    for largest in (127, 63):
        integers = signs[1] * largest
        try:
            found = int8_product(rows, _packed(integers.to(torch.int8), scales))
        except (RuntimeError, TypeError):
            return None
        exact = (signs[0] * _LARGEST) @ integers.t()
        if torch.allclose(found, exact.float(), rtol=1e-5):
            return largest
    return None


def int8_weight(weight: torch.Tensor) -> Int8Weight:
    """`weight`: shape `(output_dim, input_dim)`, float32."""
    integers, scales = rounded_weight(weight)
    return _packed(integers, scales)


def rounded_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Returns integers of `weight`'s shape, and the scale of each row of them. Their product is within
    half a scale of `weight`.
    """
    largest = largest_weight()
    assert largest is not None
    scales = weight.detach().abs().amax(1).clamp_min_(_smallest(weight)) / largest
    return (weight.detach() / scales.unsqueeze(1)).round_().to(torch.int8), scales


def _packed(integers: torch.Tensor, scales: torch.Tensor) -> Int8Weight:
    # From any other layout PyTorch makes other numbers.
    packed = torch.ops.onednn.qlinear_prepack(integers.contiguous(), None)
    return Int8Weight(packed, scales, torch.zeros_like(scales, dtype=torch.int32))


def int8_linear(rows: torch.Tensor, weight: Int8Weight, bias: torch.Tensor) -> torch.Tensor:
    """
    `rows`: shape `(num_rows, input_dim)`, float32, at least one row. `bias`: shape `(output_dim,)`.
    Returns shape `(num_rows, output_dim)`, float32.
    """
    taken("linear", "int8")
    return int8_product(rows, weight).add_(bias)


def int8_product(rows: torch.Tensor, weight: Int8Weight) -> torch.Tensor:
    """As `int8_linear`, without a bias."""
    scales = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True)
    scales = scales.clamp_min_(_smallest(rows)) / _LARGEST
    # What is cut off behind the point, a half more than the number, is the number rounded.
    integers = torch.addcmul(rows.new_tensor(_OFFSET + 0.5), rows, scales.reciprocal())
    products = torch.ops.onednn.qlinear_pointwise(
        integers.to(torch.uint8),
        1.0,
        _OFFSET,
        weight.packed,
        weight.scales,
        weight.zeros,
        None,
        1.0,
        0,
        torch.float32,
        "none",
        [],
        "",
    )
    return products.mul_(scales)


def _smallest(tensor: torch.Tensor) -> float:
    """What stands for zero as a divisor."""
    return torch.finfo(tensor.dtype).tiny * 1000
