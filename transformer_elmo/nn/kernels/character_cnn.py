"""
The convolutions of a character CNN and their maxima over a word.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Convolution = tuple[torch.Tensor, torch.Tensor]
"""A weight of shape `(num_filters, dim, width)` and a bias of shape `(num_filters,)`."""


def max_over_windows(characters: torch.Tensor, convolutions: Sequence[Convolution]) -> torch.Tensor:
    """
    `characters`: shape `(num_words, num_characters, dim)`: vectors of characters. `convolutions`:
    weights in the precision of the products. Returns shape `(num_words, total number of filters)`:
    the largest value of each filter over all windows of a word.
    """
    if characters.device.type == "cpu":
        # A width at a time does no more than it must.
        return _width_by_width(characters, convolutions)
    return _all_widths(characters, convolutions)


def _width_by_width(characters: torch.Tensor, convolutions: Sequence[Convolution]) -> torch.Tensor:
    num_words, num_characters, dim = characters.shape
    rows = characters.reshape(num_words, num_characters * dim)
    maxima = []
    for weight, bias in convolutions:
        # A window is a stretch of its row. One product over all windows, filter by filter in
        # memory, is faster than PyTorch's convolution, and so is the maximum over its result. They
        # are copied for it: over windows that overlap, PyTorch would make a product a word.
        num_filters, _, width = weight.shape
        windows = rows.unfold(1, width * dim, dim).reshape(-1, width * dim)
        flat = weight.transpose(1, 2).reshape(num_filters, -1)
        products = F.linear(windows, flat)
        products = products.view(num_words, num_characters - width + 1, num_filters)
        maxima.append(products.amax(1) + bias)
    return torch.cat(maxima, dim=-1)


def _all_widths(characters: torch.Tensor, convolutions: Sequence[Convolution]) -> torch.Tensor:
    """
    All filters as one matrix, narrow ones with zeros behind them: an eighth more arithmetic, and a
    tenth of the launches.
    """
    dim = characters.size(2)
    widest = max(weight.size(2) for weight, _ in convolutions)
    # Zeros after the word, so that every character begins a window.
    padded = F.pad(characters, (0, 0, 0, widest - 1)).flatten(1)
    shapes = tuple((weight.size(0), weight.size(2)) for weight, _ in convolutions)
    beyond = _beyond_the_word(shapes, characters.dtype, characters.device)
    matrix = _OneMatrix.apply(*(weight for weight, _ in convolutions))
    maxima = _MaxOfProduct.apply(padded, matrix, beyond, dim)
    return maxima + torch.cat([bias for _, bias in convolutions])


class _OneMatrix(torch.autograd.Function):
    """
    From weights of shapes `(num_filters, dim, width)` to one of shape `(total number of filters,
    widest * dim)`, zero behind the narrow ones.
    """

    @staticmethod
    def forward(ctx: Any, *weights: torch.Tensor) -> torch.Tensor:
        ctx.shapes = [weight.shape for weight in weights]
        widest = max(weight.size(2) for weight in weights)
        num_filters = sum(weight.size(0) for weight in weights)
        matrix = weights[0].new_zeros(num_filters, widest, weights[0].size(1))
        places = _places_of_weights(matrix, ctx.shapes)
        torch._foreach_copy_(places, [weight.transpose(1, 2) for weight in weights])
        return matrix.flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        dim = ctx.shapes[0][1]
        places = _places_of_weights(grad.view(grad.size(0), -1, dim), ctx.shapes)
        return tuple(place.transpose(1, 2) for place in places)


def _places_of_weights(matrix: torch.Tensor, shapes: Sequence[torch.Size]) -> list[torch.Tensor]:
    rows = matrix.split([shape[0] for shape in shapes])
    return [part[:, : shape[2]] for part, shape in zip(rows, shapes)]


@functools.lru_cache(maxsize=16)
def _beyond_the_word(
    shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """
    Shape `(widest - 1, num_filters)`: for the last positions of a word, minus infinity where a
    filter's window would reach beyond it.
    """
    widest = max(width for _, width in shapes)
    columns = []
    for num_filters, width in shapes:
        column = torch.zeros(widest - 1, num_filters)
        column[widest - width :] = -math.inf
        columns.append(column)
    return torch.cat(columns, dim=1).to(device=device, dtype=dtype)


class _MaxOfProduct(torch.autograd.Function):
    """
    The maximum over the windows of `windows @ weight.t()`. What is kept for the gradient is where
    each maximum was, and not the product.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, weight: torch.Tensor, beyond: torch.Tensor, dim: int
    ) -> torch.Tensor:
        product = F.linear(rows.unfold(1, weight.size(1), dim), weight)
        if beyond.size(0):
            product[:, -beyond.size(0) :] += beyond
        values, places = product.max(1)
        ctx.save_for_backward(rows, weight, places)
        ctx.dim, ctx.num_windows = dim, product.size(1)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight, places = ctx.saved_tensors
        num_words, num_filters = grad.shape
        spread = grad.new_zeros(num_words, ctx.num_windows, num_filters)
        spread.scatter_(1, places.unsqueeze(1), grad.unsqueeze(1))
        flat = spread.flatten(0, 1)
        grad_rows = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_windows = torch.mm(flat, weight).view(num_words, ctx.num_windows, weight.size(1))
            grad_rows = torch.ops.aten.unfold_backward(
                grad_windows, rows.shape, 1, weight.size(1), ctx.dim
            )
        if ctx.needs_input_grad[1]:
            windows = rows.unfold(1, weight.size(1), ctx.dim).reshape(-1, weight.size(1))
            grad_weight = torch.mm(flat.t(), windows)
        return grad_rows, grad_weight, None, None
