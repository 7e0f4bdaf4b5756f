"""Keys of a config that a class doesn't take."""

import difflib
import inspect
from typing import Any, Callable, Iterable, List

from transformer_elmo.errors import ConfigurationError

# What AllenNLP gives to constructors.
NOT_IN_CONFIGS = {"self", "cls", "vocab", "serialization_dir", "local_rank", "model_parameters"}


def parameters_of(function: Callable[..., Any]) -> List[str]:
    """What can be said by name."""
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and name not in NOT_IN_CONFIGS
    ]


def unknown_keys(
    keys: Iterable[Any], known: List[str], path: str = "", what: str = "key"
) -> ConfigurationError:
    """
    What to say of keys that aren't there.

    `known`: those that are. `path`: the dotted key of their section, with a dot behind.
    """
    key = next(iter(keys))
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    return ConfigurationError(
        f"{path}{key}: there is no such {what}."
        + (f" Is it {near[0]}?" if near else "")
        + f" Expected some of {', '.join(known)}."
    )
