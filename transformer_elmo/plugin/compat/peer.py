"""
Living beside allennlp-models, whose language models are registered under the same names.

Registered after it, our classes replace its own (`exist_ok=True`). Registered before it, they would
make its import fail: its decorators accept no name that is taken. So while it is imported, and only
then, the names that both want are free.
"""

import sys
from contextlib import contextmanager
from types import ModuleType
from typing import Callable, Dict, Iterator, Tuple, Type

from allennlp.common import Registrable

from transformer_elmo.plugin.patches import note
from transformer_elmo.with_allennlp import AroundImport

# The package of theirs that registers the names; importing any of its modules imports all of it
# first.
PEER = "allennlp_models.lm"

_Names = Dict[Type[Registrable], Dict[str, Tuple]]
_ours: _Names = {}


def _registered_here() -> _Names:
    """Everything registered by classes of this package."""
    package = __name__.partition(".")[0]
    return {
        base: names
        for base, registry in Registrable._registry.items()
        if (
            names := {
                name: entry
                for name, entry in registry.items()
                if entry[0].__module__.partition(".")[0] == package
            }
        )
    }


def claim_names() -> None:
    """Called once our classes are registered: whoever comes first, the names end up ours."""
    _ours.update(_registered_here())
    if PEER not in sys.modules and not any(
        PEER in finder.names for finder in sys.meta_path if isinstance(finder, AroundImport)
    ):
        sys.meta_path.insert(0, AroundImport((PEER,), _run_with_names_set_aside))
        note("sys.meta_path", "allennlp-models, imported later, finds the names that it wants free")


@contextmanager
def _names_set_aside() -> Iterator[None]:
    for base, names in _ours.items():
        for name in names:
            Registrable._registry[base].pop(name, None)
    try:
        yield
    finally:
        for base, names in _ours.items():
            Registrable._registry[base].update(names)


def _run_with_names_set_aside(run: Callable[[ModuleType], None], module: ModuleType) -> None:
    with _names_set_aside():
        run(module)
