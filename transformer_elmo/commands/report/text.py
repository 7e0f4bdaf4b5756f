"""
Text of anybody's making inside a page of ours: nothing in it is markup, nothing in it stays
invisible, and its order is its own affair.
"""

import unicodedata
from collections.abc import Iterable

# Control characters have pictures (NUL: U+2400). Lone surrogates, which UTF-8 can't write, and what
# ends a line or a paragraph have none.
_PICTURES = dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000), 0x2028, 0x2029], 0xFFFD)
_PICTURES |= {code: 0x2400 + code for code in range(0x20)} | {0x7F: 0x2421}


def visible(text: str) -> str:
    """A text with pictures of control characters, and U+FFFD for what isn't a character."""
    return text.translate(_PICTURES)


def is_invisible(text: str) -> bool:
    """Whether there is nothing to see in a text, but spaces and what guides its layout."""
    return all(unicodedata.category(character) in ("Zs", "Cf") for character in text)


def code_points(text: str) -> str:
    """A text's characters by number, for one that can't be seen."""
    return " ".join(f"U+{ord(character):04X}" for character in text)


def direction_of(texts: Iterable[str]) -> str | None:
    """
    Returns "ltr" or "rtl", whichever the first character asks for that asks for any; `None` if none
    does, as in a number.
    """
    kinds = (unicodedata.bidirectional(character) for text in texts for character in text)
    first = next((kind for kind in kinds if kind in ("L", "R", "AL")), None)
    return first and ("ltr" if first == "L" else "rtl")
