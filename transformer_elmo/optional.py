"""Packages that not everyone needs: they are imported where they are used."""

import importlib
from typing import Any

from transformer_elmo.errors import ConfigurationError


class MissingPackageError(ConfigurationError, ImportError):
    """A package isn't installed, or can't be imported."""


def needed(name: str, purpose: str, *, install: str = "", otherwise: str = "") -> Any:
    """
    An optional package's module. `purpose`: what needs it, as a message's first words. `install`:
    for pip, if not the module's name. `otherwise`: what else to do, a sentence, too.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            f"{purpose} needs the package {name} ({error}): pip install {install or name}"
            + (f". {otherwise}" if otherwise else "")
        ) from None
