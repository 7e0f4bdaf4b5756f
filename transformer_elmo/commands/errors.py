"""
What the `allennlp` command shows of bad input: the message, and not the calls that led to it.

With `ALLENNLP_DEBUG` set, AllenNLP's own variable for more output, the calls are shown as well.
"""

import os
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Optional, Type

from allennlp.common.checks import ConfigurationError

# What is raised for input that is not as it must be, each with a message for whoever gave it.
SHOWN_ALONE = (ConfigurationError, FileNotFoundError)


def install() -> None:
    """Changes nothing but what the `allennlp` command prints when it ends with such an error."""
    if _is_allennlp_command() and sys.excepthook is sys.__excepthook__:
        sys.excepthook = _show


def _is_allennlp_command() -> bool:
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return spec.name == "allennlp.__main__"
    return Path(getattr(main, "__file__", None) or "").name == "allennlp"


def _show(kind: Type[BaseException], error: BaseException, trace: Optional[TracebackType]) -> None:
    if issubclass(kind, SHOWN_ALONE) and not os.environ.get("ALLENNLP_DEBUG"):
        print("".join(traceback.format_exception_only(kind, error)), end="", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
