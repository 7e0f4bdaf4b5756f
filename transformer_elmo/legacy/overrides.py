"""Overrides given on the command line, old or new in spelling, over configs old or new."""

import copy
from typing import Any, Dict, Iterator, List, Tuple

from allennlp.common.params import with_overrides

from transformer_elmo.legacy.changes import Change, Changes, not_understood
from transformer_elmo.legacy.config import (
    ITERATORS,
    READERS,
    TOP_LEVEL_KEYS,
    modernize,
    old_signs,
    reads_sentences,
)
from transformer_elmo.legacy.data import MULTIPROCESS_READER_KEYS
from transformer_elmo.legacy.loaders import (
    LANGUAGE_MODELING_LOADER,
    LANGUAGE_MODELING_ONLY_KEYS,
    OUTER_KEYS,
    overridden_loader,
)
from transformer_elmo.legacy.model import is_embedder_key, is_flat_embedder

# Top-level keys that AllenNLP 0.x didn't have: overrides of these are AllenNLP 2's.
MODERN_KEYS = {
    *ITERATORS.values(),
    "distributed",
    "ddp_accelerator",
    "evaluation",
    "include_in_archive",
}

# Sections that have no type unless they say one, so that nothing without a type can replace them.
TYPED_KEYS = ("model", *READERS)

# What `allennlp evaluate` never looks at, and what it goes by.
NOT_EVALUATED = {
    "train_data_path": "evaluate reads what is named behind the archive",
    "validation_data_path": "evaluate reads what is named behind the archive",
    "test_data_path": "evaluate reads what is named behind the archive",
    "datasets_for_vocab_creation": "the vocabulary is the archive's",
    "evaluate_on_test": "evaluate trains nothing",
    "trainer": "evaluate trains nothing",
    "distributed": "evaluate runs on the one device that --cuda-device names",
}


def unflattened(overrides: Dict[str, Any]) -> Dict[str, Any]:
    """
    # Returns

    `Dict[str, Any]`
        `overrides` with dotted keys nested: `{"a.b": 1}` is `{"a": {"b": 1}}`.
    """
    nested: Dict[str, Any] = {}
    for key, value in overrides.items():
        place = nested
        *above, last = key.split(".")
        for name in above:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                not_understood(key, value, f"the same overrides say that {name} is {place}.")
        old = place.get(last)
        place[last] = merged(old, value) if isinstance(old, dict) else copy.deepcopy(value)
    return nested


def merged(original: Any, override: Any) -> Any:
    """
    # Returns

    `Any`
        `original` under `override`, merged at every depth, as AllenNLP 0.9 did it.
    """
    if isinstance(original, dict) and isinstance(override, dict):
        new = {
            key: merged(value, override[key]) if key in override else value
            for key, value in original.items()
        }
        new.update({key: copy.deepcopy(v) for key, v in override.items() if key not in original})
        return new
    if isinstance(original, list) and isinstance(override, dict) and override:
        indices = {int(k): v for k, v in override.items() if k.isdigit() and int(k) < len(original)}
        if len(indices) == len(override):
            return [merged(v, indices[i]) if i in indices else v for i, v in enumerate(original)]
    return copy.deepcopy(override)


def apply_overrides(
    config: Dict[str, Any], overrides: Dict[str, Any]
) -> Tuple[Dict[str, Any], List[Change]]:
    """
    A config under overrides, modern in the end.

    Over an old config everything merges deeply, as AllenNLP 0.9 had it, except for keys that it
    didn't have. Over a modern config, overrides of `iterator` and `validation_iterator` change the
    data loaders, and all others are applied as AllenNLP 2 does it.

    # Returns

    `Tuple[Dict[str, Any], List[Change]]`
        The modern config, and what was changed in it and in the overrides.

    # Raises

    `ConfigurationError`
        If an override has no meaning; it names the key.
    """
    for key, value in overrides.items():
        top = _top(key)
        known = top in TOP_LEVEL_KEYS or top in ITERATORS or top in config
        if not known and "type" not in config:
            not_understood(key, value, "an override of a key that nothing looks at.")
    if not old_signs(config):
        return _over_modern(config, overrides)

    modern = {k: v for k, v in overrides.items() if _top(k) in MODERN_KEYS}
    if "iterator" not in config:
        # Half old: what it says of batches is already said the new way.
        modern.update({k: v for k, v in overrides.items() if _top(k) in ITERATORS})
    old = unflattened({k: v for k, v in overrides.items() if k not in modern})
    if "iterator" in old and "validation_iterator" in config:
        # Evaluation uses the other one, and what the user says of batches is meant for it.
        old["validation_iterator"] = merged(old["iterator"], old.get("validation_iterator", {}))
    new = dict(config)
    overridden: List[str] = []
    for key in sorted(old, key=lambda key: key == "validation_iterator"):
        value, original = old[key], config.get(key)
        if key in ITERATORS:
            original = new["iterator"] if original is None else original
            value = _folded(value, original, "base_iterator", (*OUTER_KEYS, "type"))
        elif key in READERS:
            value = _folded(value, original, "base_reader", MULTIPROCESS_READER_KEYS)
        elif key == "model":
            value = _with_embedders_as_in(original, value)
        new[key] = merged(original, value)
        overridden.extend(_leaves(value, key))
    new, changes = modernize(new, overridden)
    if not modern:
        return new, changes
    new, more = _over_modern(new, modern)
    return new, changes + more


def shared_with_validation(config: Dict[str, Any], overrides: Dict[str, Any]) -> Dict[str, Any]:
    """
    The overrides of a model being opened. Of the two data loaders that its config may have,
    evaluation uses the one for validation, so what is said of `data_loader`, and of it alone, is
    meant for both.
    """
    tops = {_top(key) for key in overrides}
    if (
        "validation_data_loader" in tops
        or not isinstance(config.get("validation_data_loader"), dict)
        or not reads_sentences(config, "validation_data_loader")
    ):
        return overrides
    loader = config["validation_data_loader"]
    meant = {
        f"validation_{key}": value
        for key, value in overrides.items()
        if _top(key) == "data_loader" and _fits(loader, key.split(".")[1:])
    }
    return {**overrides, **meant}


def _fits(loader: Dict[str, Any], path: List[str]) -> bool:
    """Whether there is a place in `loader` for what goes to `path` in a loader of another kind."""
    if path[:1] == ["batch_sampler"] and "batch_size" in loader:
        return False
    place: Any = loader
    for key in path[:-1]:
        place = place.get(key) if isinstance(place, dict) else None
    return isinstance(place, dict)


def _top(key: str) -> str:
    return key.split(".")[0]


def _leaves(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _leaves(below, f"{path}.{key}")
    else:
        yield path


def _folded(override: Any, original: Any, base: str, outer: Tuple[str, ...]) -> Any:
    """
    An override in the shape of what it goes over: with or without the wrapper that ran several
    processes.
    """
    if not isinstance(override, dict) or not isinstance(original, dict):
        return override
    if base in original:
        inner = {k: v for k, v in override.items() if k != base and k not in outer}
        if inner.get("type") == "multiprocess":
            del inner["type"]
        if "type" in outer and override.get("type") not in (None, "multiprocess"):
            inner["type"] = override["type"]
        kept = {k: v for k, v in override.items() if k in outer and k not in inner}
        inner.update(override.get(base) or {})
        return {**kept, base: inner} if inner else kept
    if base in override:
        inner = dict(override[base]) if isinstance(override[base], dict) else {}
        rest = {k: v for k, v in override.items() if k != base}
        if rest.get("type") == "multiprocess":
            del rest["type"]
        return {**inner, **rest}
    return override


def _with_embedders_as_in(original: Any, override: Any) -> Any:
    """
    An override in the shape of what it goes over: with or without the key `token_embedders` around
    the token embedders.
    """
    if not isinstance(original, dict) or not isinstance(override, dict):
        return override
    fitted: Dict[str, Any] = {}
    for key, value in override.items():
        old = original.get(key)
        if is_embedder_key(key) and isinstance(old, dict) and isinstance(value, dict):
            if is_flat_embedder(old):
                rest = {k: v for k, v in value.items() if k != "token_embedders"}
                value = {**rest, **(value.get("token_embedders") or {})}
            elif isinstance(old.get("token_embedders"), dict):
                embedders = {k: v for k, v in value.items() if k in old["token_embedders"]}
                if embedders and "token_embedders" not in value:
                    rest = {k: v for k, v in value.items() if k not in embedders}
                    value = {**rest, "token_embedders": embedders}
        fitted[key] = _with_embedders_as_in(old, value)
    return fitted


def _over_modern(
    config: Dict[str, Any], overrides: Dict[str, Any]
) -> Tuple[Dict[str, Any], List[Change]]:
    of_iterators = {k: v for k, v in overrides.items() if _top(k) in ITERATORS}
    rest = {k: v for k, v in overrides.items() if k not in of_iterators}
    for key in rest:
        if goes_over(key, config.get(key), rest[key]):
            rest[key] = merged(config[key], rest[key])
    new: Dict[str, Any] = with_overrides(config, rest) if rest else copy.deepcopy(config)
    new, made = modernize(new, list(rest))
    nested = unflattened(of_iterators)
    changes = Changes([leaf for key, value in nested.items() for leaf in _leaves(value, key)])
    for key, override in nested.items():
        targets = [ITERATORS[key]]
        if key == "iterator" and new.get("validation_data_loader") is not None:
            # The one that evaluation prefers.
            targets.append("validation_data_loader")
        if key == "validation_iterator" and new.get(targets[0]) is None:
            new[targets[0]] = copy.deepcopy(new.get("data_loader"))
        for target in targets:
            new[target] = overridden_loader(
                new.get(target),
                target,
                override,
                key,
                language_modeling=reads_sentences(new, target),
                changes=changes,
            )
    return new, made + changes.made


def goes_over(key: str, original: Any, override: Any) -> bool:
    """
    Whether `override`, put in the place of the section `original` at the top-level `key`, as
    AllenNLP 2 does it, could only fail. Then it is meant to go over it.
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


def check_evaluation_overrides(overrides: Dict[str, Any]) -> None:
    """
    # Raises

    `ConfigurationError`
        If `allennlp evaluate` would not look at one of the overrides; it names the key.
    """
    for key, value in overrides.items():
        if _top(key) in NOT_EVALUATED and set(_leaves(value, key)) != {"trainer.cuda_device"}:
            not_understood(
                key, value, f"this override has no meaning here ({NOT_EVALUATED[_top(key)]})."
            )
    nested = unflattened(overrides)
    for key in READERS:
        section = nested.get(key)
        while isinstance(section, dict):
            longest = section.get("max_sequence_length")
            if longest is not None:
                advice = "this override has no meaning here (evaluate leaves no sentence out)."
                not_understood(f"{key}.max_sequence_length", longest, advice)
            section = section.get("base_reader")
