"""The precision of a model's matrix products, and whether its exact softmax is compiled."""

import contextlib
from collections.abc import Iterator

import torch

from transformer_elmo.nn.config import check_choice
from transformer_elmo.nn.kernels.softmax import compiled_softmax

PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16}


def checked_precision(precision: str) -> str:
    """Raises `ConfigurationError` if there is no such precision."""
    hint = ""
    if precision == "int8":
        hint = (
            ' There is no "int8" any more, which was 1.2 to 1.4 times as fast as float32 on a CPU: '
            'take "bfloat16" where the processor has it.'
        )
    check_choice("precision", precision, PRECISIONS, hint)
    return precision


@contextlib.contextmanager
def computing(precision: str, compiles: bool, device: torch.device) -> Iterator[None]:
    """
    Within it, matrix products are of that precision; parameters and losses stay in float32. With
    `compiles`, the exact softmax is compiled, but not on a CPU, which gains nothing by it.
    """
    dtype = PRECISIONS[precision]
    with contextlib.ExitStack() as stack:
        if dtype is not None:
            stack.enter_context(torch.autocast(device.type, dtype=dtype))
        if compiles and device.type != "cpu":
            stack.enter_context(compiled_softmax())
        yield
