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
    Gives back what nobody uses. To be called outside the `except` block: an exception that is being
    handled holds all that the calls below it have made.

    `thoroughly`: whether to look for objects that hold each other, too, which takes some tenths of
    a second.
    """
    if thoroughly:
        gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def out_of_memory(shape: str, advice: str) -> ConfigurationError:
    """
    What to raise where there is nothing left to split.

    `shape`: what was too large, as in "a batch of 64 sentences x 30 tokens". `advice`: a sentence
    that says what to change.
    """
    return ConfigurationError(f"Memory ran out for {shape}. {advice}")


def one_sentence(num_tokens: int) -> str:
    """The shape of what can't be split."""
    return f"one sentence of {num_tokens:,} tokens by itself"


def said_of(error: BaseException) -> str:
    """What to say where nobody knows what was too large."""
    return (
        f"Memory ran out ({first_line(error)}). Use smaller batches, or a device with more memory."
    )


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
        `function`: from items to a result. It is called again with some of the items after it has
        run out of memory, so it must leave nothing behind until it returns. `items`: a batch.
        Slices of it are the parts. `length`: an item's number of tokens, for messages. `key`: what
        to lower, for the warning. `alone`: what to do about a single sentence that is too long, for
        the error. `forget`: drops what is kept and could be made again. Returns the function's
        results for the parts, in the items' order. A single one if all went well. Raises
        `ConfigurationError` if memory runs out for a single item.
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
                raise out_of_memory(one_sentence(longest), alone)
            if is_first:
                self.warn(len(part), longest, key)
            middle = len(part) // 2
            return [*halves(part[:middle], False), *halves(part[middle:], False)]

        return halves(items, True)

    def warn(self, num_sentences: int, num_tokens: int, key: str) -> None:
        """
        Counts a batch that is about to be split.

        `num_sentences`, `num_tokens`: its shape, padding included. `key`: what to lower.
        """
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
