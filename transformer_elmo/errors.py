"""The exception for input that is not as it must be, and for packages that not everyone needs."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class ConfigurationError(ValueError):
    """
    Bad input. The message, which is also the attribute `message`, says what was expected, what
    came, and what to do.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@contextmanager
def becoming_a_model(shown: str) -> Iterator[None]:
    """
    Whatever fails in the block, in which the folder or the file that messages call `shown` becomes
    a model, in one message.

    Raises `ConfigurationError` for any error; those that name the file already, and their
    subclasses, pass.
    """
    try:
        yield
    except ConfigurationError as error:
        if shown in str(error) or type(error) is not ConfigurationError:
            raise
        raise ConfigurationError(f"{shown}: {error}") from None
    except Exception as error:
        raise ConfigurationError(f"{shown} can't be opened: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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
