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


def visible(text: str) -> str:
    """
    A text with control characters, which HTML has no place for, as pictures (of NUL: U+2400), and
    what isn't a character as U+FFFD.
    """
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cc":
        code = ord(character)
        if code < 0x20:
            return chr(0x2400 + code)
        return "\u2421" if code == 0x7F else "\ufffd"
    # Lone surrogates, which UTF-8 can't write, and what ends a line or a paragraph.
    return "\ufffd" if category in ("Cs", "Zl", "Zp") else character


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
        marks = marks + 1 if _is_mark(character) else 0
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


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "M" or character in _JOINERS


def direction_of(texts: Iterable[str]) -> str | None:
    """
    Returns "ltr" or "rtl", whichever the first character asks for that asks for any; `None` if none
    does, as in a number.
    """
    for text in texts:
        for character in text:
            kind = unicodedata.bidirectional(character)
            if kind == "L":
                return "ltr"
            if kind in ("R", "AL"):
                return "rtl"
    return None
