"""
Which names are registered.

A name that AllenNLP 0.x had and AllenNLP 2 doesn't may have been given to a class of the user's,
and then means that one. Nothing here knows of any registry: whoever has one sets `is_registered` to
a function that looks a name up in it.
"""

from typing import Callable


def _nothing_is(name: str) -> bool:
    return False


is_registered: Callable[[str], bool] = _nothing_is
