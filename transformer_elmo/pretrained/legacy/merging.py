"""What overrides do to a config: how AllenNLP 0.9 merged them, and how AllenNLP 2 does."""

import copy
from collections.abc import Iterator
from typing import Any

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.pretrained.legacy.iterators import LANGUAGE_MODELING_ONLY_KEYS
from transformer_elmo.pretrained.legacy.report import refuse, shown
from transformer_elmo.pretrained.legacy.sections import ITERATORS, LANGUAGE_MODELING_LOADER, READERS

# Sections that have no type unless they say one, so that nothing without a type can replace them.
TYPED_KEYS = ("model", *READERS)


def unflattened(overrides: dict[str, Any]) -> dict[str, Any]:
    """
    Returns `overrides` with dotted keys nested: `{"a.b": 1}` is `{"a": {"b": 1}}`. Raises
    `ConfigurationError` if one of them is of a key within what another one says is no object.
    """
    nested: dict[str, Any] = {}
    for key, value in overrides.items():
        place = nested
        *above, last = key.split(".")
        for name in above:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                refuse(key, value, f"the same overrides say that {name} is {shown(place)}.")
        old = place.get(last)
        if isinstance(old, dict) and not isinstance(value, dict):
            refuse(key, value, "the same overrides say what is in it.")
        place[last] = merged(old, value)
    return nested


def merged(original: Any, override: Any) -> Any:
    """Returns `original` under `override`, merged at every depth, as AllenNLP 0.9 did it."""
    if isinstance(original, dict) and isinstance(override, dict):
        new = {
            key: merged(value, override[key]) if key in override else value
            for key, value in original.items()
        }
        new.update({key: copy.deepcopy(v) for key, v in override.items() if key not in original})
        return new
    if isinstance(original, list) and isinstance(override, dict) and override:
        if override.keys() <= {str(i) for i in range(len(original))}:
            return [merged(v, override.get(str(i), v)) for i, v in enumerate(original)]
    return copy.deepcopy(override)


def with_overrides(config: Any, overrides: dict[str, Any], path: str = "") -> Any:
    """
    A copy of the object or list `config`, which stands at `path`, under overrides as AllenNLP 2
    applies them: a dotted key goes further in, by the numbers of items where there is a list. Only
    an object gets new keys, and these can't be dotted. Raises `ConfigurationError` if there is no
    place for one of them; it names the key.
    """
    items = config.items() if isinstance(config, dict) else ()
    new: dict[Any, Any] = {}
    unused = set(overrides)
    for key, value in enumerate(config) if isinstance(config, list) else items:
        name = f"{key}."
        within = {k[len(name) :]: v for k, v in overrides.items() if k.startswith(name)}
        if str(key) in overrides:
            new[key] = copy.deepcopy(overrides[str(key)])
            unused.discard(str(key))
        elif within:
            new[key] = with_overrides(value, within, f"{path}{name}")
            unused -= {name + k for k in within}
        else:
            new[key] = copy.deepcopy(value)
    if isinstance(config, dict):
        added = {k: copy.deepcopy(v) for k, v in overrides.items() if k in unused and "." not in k}
        new.update(added)
        unused -= added.keys()
    if unused:
        names = ", ".join(path + key for key in overrides if key in unused)
        raise ConfigurationError(
            f"These overrides are unused keys, because the config has nothing there to change: "
            f"{names}."
        )
    return list(new.values()) if isinstance(config, list) else new


def merges_into(key: str, original: Any, override: Any) -> bool:
    """
    Whether `override`, put in the place of the section `original` at the top-level `key`, as
    AllenNLP 2 does it, could only fail. Then it is meant to be merged into it.
    """
    if not (isinstance(original, dict) and isinstance(override, dict) and "type" not in override):
        return False
    if key in TYPED_KEYS:
        # `_pretrained` stands for a whole model.
        return "type" in original and "_pretrained" not in override
    # With keys that only our loader has, and without a word on which loader it is.
    return (
        key in ITERATORS.values()
        and original.get("type") == LANGUAGE_MODELING_LOADER
        and not override.keys().isdisjoint(LANGUAGE_MODELING_ONLY_KEYS)
    )


def top(key: str) -> str:
    """The top-level key of a dotted one."""
    return key.partition(".")[0]


def leaves(value: Any, path: str) -> Iterator[str]:
    """The dotted keys of all that isn't an object in `value`, which stands at `path`."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from leaves(below, f"{path}.{key}")
    else:
        yield path
