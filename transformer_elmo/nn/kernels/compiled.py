"""
Parts of the model that work row by row, through `torch.compile` where a user asks for it: a device
is then sent a fraction of the kernels, after the minute that compiling takes.

Which way the kernels go. A kernel has more than one way to compute the same; on a machine where its
fast one is silently out of reach, only the clock would tell. So each says which it takes, and tests
listen.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import update_wrapper
from typing import Any, Optional

import torch

BACKEND = "inductor"
"""Of `torch.compile`."""

_wanted: ContextVar[bool] = ContextVar("compile", default=False)


@contextmanager
def compiling(wanted: bool = True) -> Iterator[None]:
    """Whether functions that can be compiled are, within the block."""
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


def is_wanted() -> bool:
    """Whether functions that can be compiled are."""
    return _wanted.get()


class Compilable:
    """
    A function that can be compiled: as a decorator, `@compilable("rows", ...)`.

    `rows`: the arguments whose first dimension is another one in each batch. All other shapes are
    those of weights: for each, the function is compiled anew.
    """

    def __init__(self, function: Callable[..., Any], *rows: str) -> None:
        update_wrapper(self, function)
        self.function = function
        names = list(inspect.signature(function).parameters)
        self._rows = [names.index(name) for name in rows]
        self._compiled: Any = None
        self._backend = ""

    def __call__(self, *args: Any) -> Any:
        if not is_wanted() or torch.compiler.is_compiling():
            taken(self.function.__name__, "as written")
            return self.function(*args)
        if self._backend != BACKEND:
            self._compiled = torch.compile(self.function, backend=BACKEND)
            self._backend = BACKEND
        taken(self.function.__name__, "compiled")
        for number in self._rows:
            torch._dynamo.maybe_mark_dynamic(args[number], 0)
        return self._compiled(*args)


def compilable(*rows: str) -> Callable[[Callable[..., Any]], Compilable]:
    """See :class:`Compilable`."""
    return lambda function: Compilable(function, *rows)


_listening: Optional["Counter[str]"] = None


def taken(kernel: str, way: str) -> None:
    """Called by a kernel when it goes one of its ways."""
    if _listening is not None and not torch.compiler.is_compiling():
        _listening[f"{kernel}: {way}"] += 1


@contextmanager
def watched() -> Iterator["Counter[str]"]:
    """Returns how often each kernel went each way ("linear: oneDNN") within the block."""
    global _listening
    before, _listening = _listening, Counter()
    try:
        yield _listening
    finally:
        _listening = before
