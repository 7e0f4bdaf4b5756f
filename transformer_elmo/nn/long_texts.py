"""Texts too long for one forward pass, cut into segments that overlap."""

from dataclasses import dataclass
from typing import List

from transformer_elmo.errors import ConfigurationError


@dataclass(frozen=True)
class Segment:
    """
    A segment of a text and the part of it whose vectors are kept. The rest is there to be read:
    what is near the edge of a segment has little on that side to be understood from.

    # Attributes

    begin, end : `int`
        The segment's tokens.
    keep_begin, keep_end : `int`
        Those that are kept, counted from the text's beginning, too.
    """

    begin: int
    end: int
    keep_begin: int
    keep_end: int


def segments(length: int, size: int) -> List[Segment]:
    """
    # Parameters

    length : `int`
        The text's number of tokens.
    size : `int`
        The most tokens that a segment may have, at least 4. An eighth of it on each side (at least
        one token) is only read, unless the text ends there.

    # Returns

    `List[Segment]`
        Their kept parts, one after the other, are the text. A single one if it is short enough.

    # Raises

    `ConfigurationError`
        If `size` is less than 4.
    """
    if size < 4:
        raise ConfigurationError(
            f"A text can be cut into segments of at least 4 tokens, not of {size}."
        )
    if length <= size:
        return [Segment(0, length, 0, length)]
    context = max(1, size // 8)
    result: List[Segment] = []
    kept = 0
    while kept < length:
        begin = max(0, kept - context)
        end = begin + size
        if end >= length:
            # A full segment reads more than a short one.
            result.append(Segment(length - size, length, kept, length))
            break
        result.append(Segment(begin, end, kept, end - context))
        kept = end - context
    return result
