"""
Batches that are too large for the memory of a device: recognized, run in parts, and said so.
"""

import gc
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from transformer_elmo.errors import ConfigurationError, first_line

logger = logging.getLogger(__name__)

ItemsT = TypeVar("ItemsT", bound=Sequence[Any])
ResultT = TypeVar("ResultT")

# Where memory runs out in a library or on the host, torch raises a plain `RuntimeError`.
_MESSAGES = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
    "std::bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device or the host has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MESSAGES)


def free_memory(thoroughly: bool = True) -> None:
    """
    Gives back what nobody uses; `thoroughly`, also objects that hold each other, which takes some
    tenths of a second. Not in an `except` block: its exception holds what the calls below it made.
    """
    if thoroughly:
        gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def out_of_memory(shape: str, advice: str) -> ConfigurationError:
    """What to raise where there is nothing left to split; `shape`: what was too large."""
    return ConfigurationError(f"Memory ran out for {shape}. {advice}")


def said_of(error: BaseException) -> str:
    """What to say where nobody knows what was too large."""
    said = first_line(error)
    return f"Memory ran out ({said}). Use smaller batches, or a device with more memory."


class BatchSplitter:
    """
    Runs batches that don't fit in memory in parts, and warns of the first such batch, the second,
    the fourth, the eighth, and so on.
    """

    def __init__(self) -> None:
        self.num_split = 0
        """How many batches have been split."""

    def run(
        self,
        function: Callable[[ItemsT], ResultT],
        items: ItemsT,
        length: Callable[[Any], int],
        key: str,
        alone: str,
        forget: Callable[[], None] = lambda: None,
    ) -> list[ResultT]:
        """
        The results of `function` for slices of `items`, in order; a single one if all went well.

        `function`: called again with some of the items after memory ran out in it, so it leaves
        nothing behind until it returns. `length`: an item's number of tokens. `key`: what to lower,
        for the warning. `alone`: what to do about a single sentence that is too long, for the
        `ConfigurationError`. `forget`: drops what is kept and could be made again.
        """

        def halves(part: Any, is_first: bool) -> list[ResultT]:
            try:
                return [function(part)]
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            forget()
            free_memory(is_first)
            longest = max(map(length, part), default=0)
            if len(part) < 2:
                raise out_of_memory(f"one sentence of {longest:,} tokens by itself", alone)
            if is_first:
                self.warn(len(part), longest, key)
            middle = len(part) // 2
            return [*halves(part[:middle], False), *halves(part[middle:], False)]

        return halves(items, True)

    def warn(self, num_sentences: int, num_tokens: int, key: str) -> None:
        """Counts a batch of this shape that is about to be split; `key`: what to lower."""
        self.num_split += 1
        if self.num_split & (self.num_split - 1):
            return
        logger.warning(
            "Memory ran out for a batch of %d sentences x %d tokens. It is run again in parts, "
            "which takes longer and has the same results. To avoid it, lower %s. (%d so far.)",
            num_sentences,
            num_tokens,
            key,
            self.num_split,
        )
