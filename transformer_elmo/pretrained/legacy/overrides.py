"""Overrides given on the command line, old or new in spelling, over configs old or new."""

import copy
from collections.abc import Iterator
from typing import Any

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.pretrained.legacy.config import is_old, modernize
from transformer_elmo.pretrained.legacy.iterators import (
    LANGUAGE_MODELING_ONLY_KEYS,
    OUTER_KEYS,
    overridden_loader,
)
from transformer_elmo.pretrained.legacy.model import is_embedder_key, is_flat_embedder
from transformer_elmo.pretrained.legacy.readers import MULTIPROCESS_KEYS
from transformer_elmo.pretrained.legacy.report import Change, Report, refuse, shown
from transformer_elmo.pretrained.legacy.sections import (
    ITERATORS,
    LANGUAGE_MODELING_LOADER,
    READERS,
    TOP_LEVEL_KEYS,
    find_key,
    fits_section,
    reads_sentences,
)

# Top-level keys that AllenNLP 0.x didn't have: overrides of these are AllenNLP 2's.
MODERN_KEYS = {
    *ITERATORS.values(),
    *"distributed ddp_accelerator evaluation include_in_archive".split(),
}

# What `allennlp evaluate` never looks at, and what it goes by.
NOT_EVALUATED = {
    **dict.fromkeys(
        "train_data_path validation_data_path test_data_path".split(),
        "evaluate reads what is named behind the archive",
    ),
    "datasets_for_vocab_creation": "the vocabulary is the archive's",
    "evaluate_on_test": "evaluate trains nothing",
    "trainer": "evaluate trains nothing",
    "distributed": "evaluate runs on the one device that --cuda-device names",
}


def apply_overrides(
    config: dict[str, Any], overrides: dict[str, Any]
) -> tuple[dict[str, Any], list[Change]]:
    """
    A config under overrides, modern in the end.

    Over an old config everything merges deeply, as AllenNLP 0.9 had it, except for keys that it
    didn't have. Over a modern config, overrides of `iterator` and `validation_iterator` change the
    data loaders, and all others are applied as AllenNLP 2 does it. Returns the modern config, and
    what was changed in it and in the overrides. Raises `ConfigurationError` if an override has no
    meaning; it names the key.
    """
    for key, value in overrides.items():
        known = top(key) in {*TOP_LEVEL_KEYS, *ITERATORS, *config}
        if not known and "type" not in config:
            refuse(key, value, "an override of a key that nothing looks at.")
        if not fits_section(key, value):
            refuse(key, value, "expected an object.")
    if not is_old(config):
        return _over_modern(config, overrides)

    # Half old: what it says of batches may already be said the new way.
    not_old = MODERN_KEYS | (set() if "iterator" in config else ITERATORS.keys())
    modern = {k: v for k, v in overrides.items() if top(k) in not_old}
    old = unflattened({k: v for k, v in overrides.items() if k not in modern})
    new, changes = modernize(*_over_old(config, old))
    if not modern:
        return new, changes
    new, more = _over_modern(new, modern)
    return new, changes + more


def _over_old(
    config: dict[str, Any], overrides: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The old config under nested overrides, and the dotted keys that these gave."""
    overrides = dict(overrides)
    if "iterator" in overrides and "validation_iterator" in config:
        # Evaluation uses the other one, and what the user says of batches is meant for it.
        of_validation = overrides.get("validation_iterator", {})
        overrides["validation_iterator"] = merged(overrides["iterator"], of_validation)
    new = dict(config)
    overridden: list[str] = []
    for key in sorted(overrides, key=lambda key: key == "validation_iterator"):
        value, original = overrides[key], config.get(key)
        if key in ITERATORS:
            original = new["iterator"] if original is None else original
            value = _folded(value, original, "base_iterator", OUTER_KEYS)
        elif key in READERS:
            value = _folded(value, original, "base_reader", MULTIPROCESS_KEYS)
        elif key == "model":
            value = _with_embedders_as_in(original, value)
        new[key] = merged(original, value)
        overridden.extend(leaves(value, key))
    return new, overridden


def _over_modern(
    config: dict[str, Any], overrides: dict[str, Any]
) -> tuple[dict[str, Any], list[Change]]:
    of_iterators = {k: v for k, v in overrides.items() if top(k) in ITERATORS}
    rest = {k: v for k, v in overrides.items() if k not in of_iterators}
    for key, value in rest.items():
        if merges_into(key, config.get(key), value):
            rest[key] = merged(config[key], value)
    new, changes = modernize(with_overrides(config, rest), list(rest))
    nested = unflattened(of_iterators)
    report = Report([leaf for key, value in nested.items() for leaf in leaves(value, key)])
    for key, override in nested.items():
        targets = [ITERATORS[key]]
        if key == "iterator" and new.get("validation_data_loader") is not None:
            # The one that evaluation prefers.
            targets.append("validation_data_loader")
        if key == "validation_iterator" and new.get(targets[0]) is None:
            new[targets[0]] = copy.deepcopy(new.get("data_loader"))
        for target in targets:
            new[target] = overridden_loader(new, target, override, key, report)
    return new, changes + report.changes


def _folded(override: Any, original: Any, base: str, outer: tuple[str, ...]) -> Any:
    """An override, with or without a wrapper for processes around it, as what it goes over."""
    are_objects = isinstance(override, dict) and isinstance(original, dict)
    if not are_objects or (base not in original and base not in override):
        return override
    rest = dict(override)
    inner = rest.pop(base, None) or {}
    inner = {"type": inner} if isinstance(inner, str) else inner
    if not isinstance(inner, dict):
        # For the conversion to refuse.
        return override
    if rest.get("type") == "multiprocess":
        del rest["type"]
    if base not in original:
        return {**inner, **rest}
    kept = {key: rest.pop(key) for key in override if key in outer}
    inner = {**rest, **inner}
    return {**kept, base: inner} if inner else kept


def _with_embedders_as_in(original: Any, override: Any) -> Any:
    """An override with or without `token_embedders` around embedders, as what it goes over."""
    if not isinstance(original, dict) or not isinstance(override, dict):
        return override
    fitted, around = {}, "token_embedders"
    for key, value in override.items():
        old = original.get(key)
        if is_embedder_key(key) and isinstance(old, dict) and isinstance(value, dict):
            value, known = dict(value), old.get(around)
            if is_flat_embedder(old):
                if isinstance(value.get(around), (dict, type(None))):
                    value.update(value.pop(around, None) or {})
            elif isinstance(known, dict) and around not in value:
                if embedders := {name: value.pop(name) for name in known if name in value}:
                    value[around] = embedders
        fitted[key] = _with_embedders_as_in(old, value)
    return fitted


def shared_with_validation(config: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """
    The overrides of a model being opened. Of the two data loaders that its config may have,
    evaluation uses the one for validation, so what is said of `data_loader`, and of it alone, is
    meant for both.
    """
    key, loader = "validation_data_loader", config.get("validation_data_loader")
    is_ours = isinstance(loader, dict) and reads_sentences(config, key)
    if not is_ours or key in {top(given) for given in overrides}:
        return overrides
    meant = {f"validation_{given}": value for given, value in overrides.items()}
    return {**overrides, **{k: v for k, v in meant.items() if top(k) == key and _fits(k, config)}}


def _fits(key: str, config: dict[str, Any]) -> bool:
    """Whether the loader has a place for what goes to `key` in a loader of another kind."""
    loader, *path = key.split(".")
    if path[:1] == ["batch_sampler"] and "batch_size" in config[loader]:
        return False
    place = find_key(config, ".".join([loader, *path][: max(1, len(path))]))
    return bool(place) and isinstance(place[0][place[1]], dict)


def check_evaluation_overrides(overrides: dict[str, Any]) -> None:
    """Raises `ConfigurationError` for an override that `allennlp evaluate` would not look at."""
    for key, value in overrides.items():
        if top(key) in NOT_EVALUATED and set(leaves(value, key)) != {"trainer.cuda_device"}:
            refuse(key, value, f"this override has no meaning here ({NOT_EVALUATED[top(key)]}).")
    nested = unflattened(overrides)
    for key in READERS:
        section = nested.get(key)
        while isinstance(section, dict):
            longest = section.get("max_sequence_length")
            if longest is not None:
                advice = "this override has no meaning here (evaluate leaves no sentence out)."
                refuse(f"{key}.max_sequence_length", longest, advice)
            section = section.get("base_reader")


# Sections that have no type unless they say one, so that nothing without a type can replace them.
TYPED_KEYS = ("model", *READERS)


def unflattened(overrides: dict[str, Any]) -> dict[str, Any]:
    """Overrides with dotted keys nested: `{"a.b": 1}` is `{"a": {"b": 1}}`."""
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


def with_overrides(config: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """
    A copy under overrides as AllenNLP 2 applies them: a dotted key goes further in, by the numbers
    of items where there is a list. Only an object gets new keys. Raises `ConfigurationError` if
    there is no place for one of them; it names the key.
    """
    whole, unused = {"": copy.deepcopy(config)}, []
    for key, value in overrides.items():
        above, _, last = f".{key}".rpartition(".")
        place = find_key(whole, above)
        within = place[0][place[1]] if place else None
        if isinstance(within, dict):
            within[last] = copy.deepcopy(value)
        elif isinstance(within, list) and last in map(str, range(len(within))):
            within[int(last)] = copy.deepcopy(value)
        else:
            unused.append(key)
        unused += [other for other in overrides if other.startswith(f"{key}.")]
    if unused:
        raise ConfigurationError(
            "These overrides are unused keys, because the config has nothing there to change: "
            f"{', '.join(dict.fromkeys(unused))}."
        )
    return whole[""]


def merges_into(key: str, original: Any, override: Any) -> bool:
    """Whether `override` in place of the section `original` could only fail, so is to be merged."""
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
