"""How a model computes: the precision of its matrix products, and whether it is compiled."""

import contextlib
from typing import Dict, Iterator, Optional

import torch

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.kernels.compiled import compiling

PRECISIONS: Dict[str, Optional[torch.dtype]] = {"float32": None, "bfloat16": torch.bfloat16}


def checked_precision(precision: str) -> str:
    """
    # Raises

    `ConfigurationError`
        If there is no such precision.
    """
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise ConfigurationError(
            f"precision must be one of {', '.join(PRECISIONS)}: got {precision!r}."
        )
    return precision


@contextlib.contextmanager
def computing(precision: str, compiles: bool, device: torch.device) -> Iterator[None]:
    """
    Within it, matrix products are of that precision; parameters and losses stay in float32. With
    `compiles`, what works row by row is compiled, but not on a CPU, which gains nothing by it.
    """
    dtype = PRECISIONS[precision]
    with contextlib.ExitStack() as stack:
        if dtype is not None:
            stack.enter_context(torch.autocast(device.type, dtype=dtype))
        if compiles and device.type != "cpu":
            stack.enter_context(compiling())
        yield
