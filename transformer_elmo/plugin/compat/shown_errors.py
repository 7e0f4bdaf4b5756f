"""
What the `allennlp` command shows of bad input: the message, and not the calls that led to it.

With `ALLENNLP_DEBUG` set, AllenNLP's own variable for more output, the calls are shown as well.
"""

import errno
import logging
import os
import re
import sys
import traceback
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Iterator, Optional, Type

from allennlp.common.checks import ConfigurationError as AllenNLPError
from requests.exceptions import RequestException
from torch.multiprocessing import ProcessRaisedException

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.memory import is_out_of_memory, said_of
from transformer_elmo.plugin.compat.archived import no_gpu
from transformer_elmo.plugin.compat.wrong_values import (
    of_construction,
    of_device,
    with_its_place,
)
from transformer_elmo.plugin.patches import note
from transformer_elmo.plugin.training.stopping import ProcessLostError

# What is raised for input that is not as it must be, each with a message for whoever gave it.
SHOWN_ALONE = (
    *(ConfigurationError, AllenNLPError, FileNotFoundError, ProcessLostError),
    RequestException,
)

# What a folder or a disk may not allow.
_OF_THE_DISK = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
}

_OURS = "_transformer_elmo"
_PACKAGE = __name__.partition(".")[0] + "."
# What AllenNLP calls for any model.
_WRAPPERS = (f"{_PACKAGE}plugin.compat.", f"{_PACKAGE}plugin.patches", f"{_PACKAGE}with_allennlp")

_IN_A_PROCESS = re.compile(r"^(\S+\.ConfigurationError|FileNotFoundError): .*\Z", re.M | re.S)


def install() -> None:
    """
    Changes nothing but what the `allennlp` command prints when it ends with an error of a language
    model. Called again after AllenNLP has put a hook of its own in place, which logs all errors, it
    has the message logged.
    """
    stock = sys.excepthook
    if _is_allennlp_command() and getattr(stock, "func", None) is not _show:
        sys.excepthook = partial(_show, stock)
        note("sys.excepthook", "bad input to a language model ends `allennlp` with one message")


@contextmanager
def errors_are_ours() -> Iterator[None]:
    """Whatever the block raises is shown as an error of a language model."""
    try:
        yield
    except BaseException as error:
        error.__dict__[_OURS] = True
        install()
        raise


def _is_ours(error: BaseException) -> bool:
    """Whether an error is this package's, of its models, or went through its code."""
    frames = traceback.walk_tb(error.__traceback__)
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in frames]
    return (
        isinstance(error, (ConfigurationError, ProcessLostError))
        or _OURS in vars(error)
        or any(name.startswith(_PACKAGE) and not name.startswith(_WRAPPERS) for name in modules)
    )


def _is_allennlp_command() -> bool:
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return spec.name == "allennlp.__main__"
    return Path(getattr(main, "__file__", None) or "").name == "allennlp"


def _show(
    stock: Callable[..., Any],
    kind: Type[BaseException],
    error: BaseException,
    trace: Optional[TracebackType],
) -> None:
    shortened = not os.environ.get("ALLENNLP_DEBUG") and _is_ours(error)
    message = message_of(error) if shortened else None
    if message is None:
        stock(kind, error, trace)
    elif stock is sys.__excepthook__:
        print(message, file=sys.stderr)
    else:
        logging.getLogger().critical("%s", message)


def message_of(error: BaseException) -> Optional[str]:
    """What to show alone, or `None`."""
    if isinstance(error, ConfigurationError):
        return f"{type(error).__module__}.{type(error).__qualname__}: {with_its_place(error)}"
    if isinstance(error, SHOWN_ALONE):
        return "".join(traceback.format_exception_only(type(error), error)).rstrip()
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK and error.filename:
        reason = os.strerror(error.errno or 0)
        return f"ConfigurationError: {error.filename} can't be read or written: {reason}."
    if is_out_of_memory(error):
        return f"ConfigurationError: {said_of(error)}"
    if of_device(error):
        return f"ConfigurationError: {no_gpu()}"
    if isinstance(error, Exception):
        found_in_config = of_construction(error)
        if found_in_config is not None:
            return found_in_config
    if isinstance(error, ProcessRaisedException):
        # Holds the text of what one of several processes raised, its own calls first.
        found = _IN_A_PROCESS.search(str(error))
        return None if found is None else found[0].rstrip()
    return None
