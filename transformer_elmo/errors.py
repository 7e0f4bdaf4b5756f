"""The exception for input that is not as it must be."""

import sys
from importlib import util
from pathlib import Path
from types import ModuleType

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


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


__all__ = ["ConfigurationError", "first_line"]
