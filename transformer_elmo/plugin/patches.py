"""
What is done to AllenNLP: every function of its that is wrapped, every hook that is set, each with
its reason, in one list.

A wrapper steps in for configs and archives of language models, and of models that contain one; and
for input that AllenNLP rejects, or that would run what a file brings along. Everything else goes to
AllenNLP's own function, unchanged.
"""

import functools
from dataclasses import dataclass
from typing import Any, Callable, List

_WRAPPED = "_transformer_elmo_wraps"


@dataclass(frozen=True)
class Patch:
    """`target`: what of AllenNLP or Python is changed."""

    target: str
    reason: str


_patches: List[Patch] = [
    Patch(
        "allennlp.training.learning_rate_schedulers: the name reduce_on_plateau",
        "mends what a newer torch changed",
    ),
    Patch(
        "allennlp.training.optimizers: the name dense_sparse_adam",
        "the same function, by torch's fused kernels",
    ),
    Patch(
        "os.environ: ONEDNN_PRIMITIVE_CACHE_CAPACITY, LRU_CACHE_CAPACITY, where they aren't set",
        "a text's batches have ever new shapes, for each of which memory would grow",
    ),
]


def patches() -> List[Patch]:
    """All that has been changed in this process."""
    return list(_patches)


def note(target: str, reason: str) -> None:
    """Adds to the list what was changed by other means than `wrap`."""
    if not any(patch.target == target for patch in _patches):
        _patches.append(Patch(target, reason))


def wrap(owner: Any, name: str, wrapper: Callable[..., Any], reason: str, *others: Any) -> None:
    """
    Puts `wrapper`, called with the wrapped function first, where `owner` has that function, and
    where `others` have it by name. A second call changes nothing.

    `owner`: a module or a class. A class method stays one.
    """
    target = f"{owner.__module__ + '.' if isinstance(owner, type) else ''}{owner.__name__}.{name}"
    found = vars(owner)[name]
    stock = getattr(found, "__func__", found)
    if hasattr(stock, _WRAPPED):
        return
    wrapped = functools.wraps(stock)(lambda *args, **kwargs: wrapper(stock, *args, **kwargs))
    setattr(wrapped, _WRAPPED, stock)
    for place in (owner, *others):
        setattr(place, name, classmethod(wrapped) if isinstance(found, classmethod) else wrapped)
    note(target, reason)
