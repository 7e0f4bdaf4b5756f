"""
Text of anybody's making inside a page of ours: nothing in it is markup, nothing in it stays
invisible, and its order is its own affair.
"""

import unicodedata
from collections.abc import Iterable

# What joins letters, or keeps them from joining, in Persian, Hindi and their neighbours.
_JOINERS = "\u200c\u200d"

# Hebrew with points and accents has four, Tibetan a few more.
_MOST_MARKS = 8

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


def cut(text: str, most: int) -> str:
    """
    The beginning of a text: at most `most` characters, or a few less where a letter and its marks
    would be torn apart. It ends where a letter has more marks than any script gives it, which
    would be piled up over the lines above.
    """
    marks = 0
    for end, character in enumerate(text[: most + 1]):
        is_mark = unicodedata.category(character)[0] == "M" or character in _JOINERS
        marks = marks + 1 if is_mark else 0
        if marks > _MOST_MARKS:
            return text[:end]
        if end == most:
            return text[: end - marks if marks else end]
    return text


def is_of_letters(word: str) -> bool:
    """
    Whether a word consists of letters, with the marks that they have in their script. (`isalpha`
    takes marks, as those of vowels in Hindi, Thai or pointed Hebrew, for something else.)
    """
    kinds = {unicodedata.category(character)[0] for character in word if character not in _JOINERS}
    return "L" in kinds and kinds <= {"L", "M"}


def direction_of(texts: Iterable[str]) -> str | None:
    """
    Returns "ltr" or "rtl", whichever the first character asks for that asks for any; `None` if none
    does, as in a number.
    """
    kinds = (unicodedata.bidirectional(character) for text in texts for character in text)
    first = next((kind for kind in kinds if kind in ("L", "R", "AL")), None)
    return first and ("ltr" if first == "L" else "rtl")
