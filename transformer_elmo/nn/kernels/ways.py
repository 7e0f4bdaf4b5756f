"""
Which way the kernels go. A kernel has more than one way to compute the same; on a machine where its
fast one is silently out of reach, only the clock would tell. So each says which it takes, and tests
listen.
"""

from collections import Counter
from contextlib import contextmanager
from typing import Iterator, Optional

import torch

_listening: Optional["Counter[str]"] = None


def taken(kernel: str, way: str) -> None:
    """Called by a kernel when it goes one of its ways."""
    if _listening is not None and not torch.compiler.is_compiling():
        _listening[f"{kernel}: {way}"] += 1


@contextmanager
def watched() -> Iterator["Counter[str]"]:
    """
    # Returns

    `Counter[str]`
        How often each kernel went each way ("linear: oneDNN") within the block.
    """
    global _listening
    before, _listening = _listening, Counter()
    try:
        yield _listening
    finally:
        _listening = before
