"""The exception for input that is not as it must be."""

import sys
from contextlib import contextmanager
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Iterator

from transformer_elmo.entry import is_command

_MODULE = "allennlp.common.checks"


def _alone() -> ModuleType:
    """
    AllenNLP's module without AllenNLP around it, which takes seconds to import; the one module
    whenever the rest is imported.
    """
    package = util.find_spec("allennlp")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("No module named 'allennlp'", name="allennlp")
    spec = util.spec_from_file_location(_MODULE, Path(package.origin).parent / "common/checks.py")
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return sys.modules.setdefault(_MODULE, module)


try:
    # Where AllenNLP is, its own: its commands and its users' code expect that one.
    if is_command():
        _alone()
    from allennlp.common.checks import ConfigurationError
except Exception:  # A broken installation fails in its own ways.

    class ConfigurationError(Exception):  # type: ignore[no-redef]
        """
        Bad input. The message says what was expected, what came, and what to do.

        # Parameters

        message : `str`
        """

        def __init__(self, message: str) -> None:
            super().__init__(message)
            self.message = message


@contextmanager
def becoming_a_model(shown: str) -> Iterator[None]:
    """
    Whatever fails in the block, in which the folder or the file that messages call `shown` becomes
    a model, in one message.

    # Raises

    `ConfigurationError`
        For any error; those that name the file already, and their subclasses, pass.
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


__all__ = ["ConfigurationError", "becoming_a_model", "first_line"]
