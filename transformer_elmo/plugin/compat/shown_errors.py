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
from typing import Any, Callable, Iterator, Optional, Tuple, Type

import torch
from allennlp.common import Params, from_params
from allennlp.common.checks import ConfigurationError as AllenNLPError
from allennlp.training import GradientDescentTrainer
from requests.exceptions import RequestException
from torch.multiprocessing import ProcessRaisedException

from transformer_elmo.errors import ConfigurationError, first_line
from transformer_elmo.memory import is_out_of_memory, said_of
from transformer_elmo.plugin.compat.archived import no_gpu
from transformer_elmo.plugin.compat.wrong_values import is_own
from transformer_elmo.plugin.language_model import LanguageModel
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

# Of a GPU that isn't there.
_OF_DEVICE = re.compile(
    "accelerator device when none is available|no NVIDIA driver|not compiled with CUDA"
    "|available GPUs"
)

# Whose classes are known to say nothing more in a traceback.
_KNOWN = ("allennlp", "transformer_elmo", "torch")

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
        return f"{type(error).__module__}.{type(error).__qualname__}: {_with_its_place(error)}"
    if isinstance(error, SHOWN_ALONE):
        return "".join(traceback.format_exception_only(type(error), error)).rstrip()
    if isinstance(error, ProcessRaisedException):
        # Holds the text of what one of several processes raised, its own calls first.
        found = _IN_A_PROCESS.search(str(error))
        return None if found is None else found[0].rstrip()
    said = None
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK and error.filename:
        said = f"{error.filename} can't be read or written: {os.strerror(error.errno or 0)}."
    elif is_out_of_memory(error):
        said = said_of(error)
    elif _is_of_device(error):
        said = no_gpu()
    elif isinstance(error, Exception):
        said = _of_construction(error) or _of_first_step(error)
    return said and f"ConfigurationError: {said}"


def _is_of_device(error: BaseException) -> bool:
    """Whether an error is torch's, or AllenNLP's, of a GPU that isn't there."""
    return (
        isinstance(error, (RuntimeError, AssertionError))
        and not torch.cuda.is_available()
        and _OF_DEVICE.search(str(error)) is not None
    )


def _with_its_place(error: ConfigurationError) -> str:
    """The message of an error in a section of ours, with the section's key if it names none."""
    message, (cls, path) = str(error), _being_built(error)
    return f"{path}: {message}" if path and path not in message and is_own(cls) else message


def _of_construction(error: Exception) -> Optional[str]:
    """The key, the class and the error, where a class was being built; `None` for others'."""
    cls, path = _being_built(error)
    if not str(getattr(cls, "__module__", "")).startswith(_KNOWN):
        return None
    what = f"no {cls.__name__} can be built from it"
    return f"{path or 'The config'}: {what}: {type(error).__name__}: {first_line(error):.300}"


def _being_built(error: BaseException) -> Tuple[Any, str]:
    """The innermost class that was being built from a config, and the dotted key of its section."""
    for frame in reversed([frame for frame, _ in traceback.walk_tb(error.__traceback__)]):
        cls, params = frame.f_locals.get("cls"), frame.f_locals.get("params")
        if not isinstance(cls, type) or not isinstance(params, Params):
            continue
        if frame.f_globals["__name__"] == from_params.__name__:
            return cls, params.history.rstrip(".")
    return None, ""


def _of_first_step(error: Exception) -> Optional[str]:
    """What no batch has got through yet; a later error may be a fault of the program."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    found = [value for frame in frames for value in frame.f_locals.values()]
    trainer = next((value for value in found if isinstance(value, GradientDescentTrainer)), None)
    if trainer is None or trainer._total_batches_completed:
        return None
    if not isinstance(trainer.model, LanguageModel):
        return None
    names = {id(module): name for name, module in trainer.model.named_modules() if name}
    name = next((names[id(value)] for value in reversed(found) if id(value) in names), "")
    # A module is kept under about the key that its config has.
    keys = [key.lstrip("_") for key in name.split(".") if key not in ("", "_module")]
    path = ".".join(["model", *keys]).replace(".token_embedder_", ".token_embedders.")
    return (
        f"{path if name else 'trainer'}: no step can be made with it: {type(error).__name__}: "
        f"{first_line(error):.300} (ALLENNLP_DEBUG=1 shows where.)"
    )
