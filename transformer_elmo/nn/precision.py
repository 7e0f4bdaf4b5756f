"""The precisions that a model's matrix products may have."""

import contextlib
from typing import ContextManager, Dict, Optional

import torch

from transformer_elmo.errors import ConfigurationError

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


def autocast(precision: str, device: torch.device) -> ContextManager[None]:
    """Within it, matrix products are of that precision; parameters and losses stay in float32."""
    dtype = PRECISIONS[precision]
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)
