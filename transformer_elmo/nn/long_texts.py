"""Texts too long for one forward pass, cut into segments that overlap."""

from dataclasses import dataclass
from typing import Iterable, Iterator, List, Optional, Sequence

from transformer_elmo.errors import ConfigurationError

# The longest sentence that the embeddings' positions were made for. Vectors of longer ones are made
# in segments of this many tokens: attention costs the square of the length.
SEGMENT_LENGTH = 5000


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


@dataclass(frozen=True)
class Job:
    """
    Tokens to be embedded together.

    # Attributes

    tokens : `List[str]`
        None for a sentence without words.
    keep : `slice`
        Those whose vectors are wanted.
    ends_sentence : `bool`
        Whether the next job is of another sentence.
    sentence : `int`
        The number of its sentence, from 0.
    """

    tokens: List[str]
    keep: slice
    ends_sentence: bool
    sentence: int


def jobs_of(
    sentences: Iterable[Sequence[str]],
    start_tokens: Sequence[str],
    end_tokens: Sequence[str],
    segment_length: Optional[int],
) -> Iterator[Job]:
    """
    # Parameters

    sentences : `Iterable[Sequence[str]]`
        Their words.
    start_tokens, end_tokens : `Sequence[str]`
        Boundary tokens, which are read and not kept.
    segment_length : `int`, optional
        Sentences of more tokens are cut into segments of so many; `None` never cuts.

    # Returns

    `Iterator[Job]`
        What they keep, one after the other, are the words.
    """
    for number, words in enumerate(sentences):
        if not words:
            yield Job([], slice(0, 0), True, number)
            continue
        tokens = [*start_tokens, *words, *end_tokens]
        first, last = len(start_tokens), len(tokens) - len(end_tokens)
        if segment_length is None or len(tokens) <= segment_length:
            yield Job(tokens, slice(first, last), True, number)
            continue
        for part in segments(len(tokens), segment_length):
            begin, end = max(part.keep_begin, first), min(part.keep_end, last)
            yield Job(
                tokens[part.begin : part.end],
                slice(begin - part.begin, max(begin, end) - part.begin),
                part.end == len(tokens),
                number,
            )
