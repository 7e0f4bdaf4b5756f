"""
Living beside allennlp-models, whose language models are registered under the same names.

Registered after it, our classes replace its own (`exist_ok=True`). Registered before it, they would
make its import fail: its decorators accept no name that is taken. So while it is imported, and only
then, the names that both want are free.
"""

import sys
from types import ModuleType
from typing import Callable

from allennlp.common import Registrable

from transformer_elmo.plugin.compat.wrong_values import is_own
from transformer_elmo.plugin.patches import note
from transformer_elmo.with_allennlp import AroundImport

# The package of theirs that registers the names; importing any of its modules imports all of it
# first.
PEER = "allennlp_models.lm"


def claim_names() -> None:
    """Called once our classes are registered: whoever comes first, the names end up ours."""
    if PEER not in sys.modules:
        sys.meta_path.insert(0, AroundImport((PEER,), _run_with_names_set_aside))
        note("sys.meta_path", "allennlp-models, imported later, finds the names that it wants free")


def _run_with_names_set_aside(run: Callable[[ModuleType], None], module: ModuleType) -> None:
    ours = [
        (registry, name, entry)
        for registry in Registrable._registry.values()
        for name, entry in registry.items()
        if is_own(entry[0])
    ]
    for registry, name, _ in ours:
        del registry[name]
    try:
        run(module)
    finally:
        for registry, name, entry in ours:
            registry[name] = entry
