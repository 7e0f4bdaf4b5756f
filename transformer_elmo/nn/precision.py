"""How a model computes: the precision of its matrix products, and whether it is compiled."""

import contextlib
from collections.abc import Iterator

import torch

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.kernels.compiled import compiling
from transformer_elmo.nn.kernels.int8 import largest_weight, with_int8

PRECISIONS: dict[str, torch.dtype | None] = {
    "float32": None,
    "bfloat16": torch.bfloat16,
    # Of the contextualizer's products alone. All between them is in float32.
    "int8": None,
}


def checked_precision(precision: str) -> str:
    """Raises `ConfigurationError` if there is no such precision."""
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise ConfigurationError(
            f"precision must be one of {', '.join(PRECISIONS)}: got {precision!r}."
        )
    return precision


def check_int8(device: torch.device) -> None:
    """Raises `ConfigurationError` if products of 8-bit integers can't be had on a device."""
    if device.type != "cpu":
        raise ConfigurationError(
            f'precision "int8" is for the CPU, but the model is on {device}: use "bfloat16" there, '
            "or the CPU."
        )
    if largest_weight() is None:
        raise ConfigurationError(
            f'precision "int8" needs a PyTorch with oneDNN and its quantized linear layers, but '
            f'{torch.__version__} on this machine has none: use "float32" or "bfloat16".'
        )


@contextlib.contextmanager
def computing(precision: str, compiles: bool, device: torch.device) -> Iterator[None]:
    """
    Within it, matrix products are of that precision; parameters and losses stay in float32, and
    with "int8" all but the contextualizer. With `compiles`, what works row by row is compiled, but
    not on a CPU, which gains nothing by it.

    Raises `ConfigurationError` with "int8", if it can't be had.
    """
    dtype = PRECISIONS[precision]
    with contextlib.ExitStack() as stack:
        if precision == "int8":
            check_int8(device)
            stack.enter_context(with_int8())
        if dtype is not None:
            stack.enter_context(torch.autocast(device.type, dtype=dtype))
        if compiles and device.type != "cpu":
            stack.enter_context(compiling())
        yield
