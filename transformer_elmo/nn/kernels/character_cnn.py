"""
The convolutions of a character CNN and their maxima over a word.
"""

import functools
import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from transformer_elmo.nn.kernels.gather_rows import gather_rows
from transformer_elmo.nn.kernels.linear import linear
from transformer_elmo.nn.kernels.weight_casts import Pair


def max_over_windows(characters: torch.Tensor, convolutions: Sequence[Pair]) -> torch.Tensor:
    """
    `characters`: shape `(num_words, num_characters, dim)`: vectors of characters. `convolutions`:
    weights of shapes `(num_filters, dim, width)` and biases of shapes `(num_filters,)`, in the
    precision of the products. Returns shape `(num_words, total number of filters)`: the largest
    value of each filter over all windows of a word.
    """
    if characters.device.type == "cpu":
        # A width at a time does no more than it must.
        return _width_by_width(characters, convolutions)
    return _all_widths(characters, convolutions)


def _width_by_width(characters: torch.Tensor, convolutions: Sequence[Pair]) -> torch.Tensor:
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
        products = linear(windows, flat)
        products = products.view(num_words, num_characters - width + 1, num_filters)
        maxima.append(products.amax(1) + bias)
    return torch.cat(maxima, dim=-1)


def _all_widths(characters: torch.Tensor, convolutions: Sequence[Pair]) -> torch.Tensor:
    """
    All filters as one matrix, narrow ones with zeros behind them: an eighth more arithmetic, and a
    tenth of the launches.
    """
    dim = characters.size(2)
    weights, biases = zip(*convolutions)
    shapes = tuple((weight.size(0), weight.size(2)) for weight in weights)
    widest = max(width for _, width in shapes)
    index, back, beyond = _layout(shapes, dim, characters.dtype, characters.device)
    numbers = torch.cat([*(weight.flatten() for weight in weights), characters.new_zeros(1)])
    matrix = gather_rows(numbers, index, back).view(-1, widest * dim)
    # Zeros after the word, so that every character begins a window.
    padded = F.pad(characters, (0, 0, 0, widest - 1)).flatten(1)
    products = F.linear(padded.unfold(1, widest * dim, dim), matrix)
    # In place, its gradient would pass over all products again.
    products = products + F.pad(beyond, (0, 0, products.size(1) - beyond.size(0), 0))
    # Unlike `amax`, for its gradient it keeps where each maximum was, and not the products.
    return products.max(1).values + torch.cat(biases)


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)
def _layout(
    shapes: tuple[tuple[int, int], ...], dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    `shapes`: numbers of filters and widths. Returns which number of the weights, one after the
    other and a zero behind them, each place of a matrix of shape `(total number of filters, widest
    * dim)` has; for each number its place; and for the last positions of a word minus infinity
    where a filter's window would reach beyond it, shape `(widest - 1, total number of filters)`.
    """
    widest = max(width for _, width in shapes)
    total = sum(number * dim * width for number, width in shapes)
    begin, places, columns = 0, [], []
    for number, width in shapes:
        count = number * dim * width
        numbers = torch.arange(begin, begin + count).view(number, dim, width).transpose(1, 2)
        places.append(F.pad(numbers, (0, 0, 0, widest - width), value=total))
        columns.append(torch.zeros(widest - 1, number))
        columns[-1][widest - width :] = -math.inf
        begin += count
    index = torch.cat(places).flatten()
    back = index.new_zeros(total + 1).index_copy_(0, index, torch.arange(index.numel()))
    return index.to(device), back.to(device), torch.cat(columns, 1).to(device, dtype)
