"""Whole configs of AllenNLP 0.x, and what they are in AllenNLP 2."""

import copy
from collections.abc import Collection, Iterator
from typing import Any

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.pretrained.legacy.iterators import (
    OLD_BATCH_SIZE,
    add_evaluation_loader,
    data_loader,
    flattened_iterator,
)
from transformer_elmo.pretrained.legacy.model import (
    has_similarity_function,
    is_old_part,
    modern_model,
)
from transformer_elmo.pretrained.legacy.readers import is_old_reader, modern_reader
from transformer_elmo.pretrained.legacy.report import Change, Report, refuse
from transformer_elmo.pretrained.legacy.sections import (
    ITERATORS,
    READERS,
    TOP_LEVEL_KEYS,
    fits_section,
    reader_key,
)
from transformer_elmo.pretrained.legacy.trainer import is_old_trainer, modern_trainer
from transformer_elmo.pretrained.legacy.vocabulary import is_old_vocabulary, modern_vocabulary


def modernize(
    config: dict[str, Any], overridden: Collection[str] = ()
) -> tuple[dict[str, Any], list[Change]]:
    """
    Returns the AllenNLP 2 config that means the same as an AllenNLP 0.x config, which isn't
    changed, and the changes. One with nothing old in it comes back as it is, the same object.
    `overridden`: dotted keys that come from an override: these must have an effect. Raises
    `ConfigurationError` if a key can't be understood, or an override has no meaning; it names it.
    """
    report = Report(overridden)
    try:
        old = copy.deepcopy(config)
        return (_converted(old, report) if is_old(old) else config), report.changes
    except RecursionError:
        # Somebody else may have written it.
        raise ConfigurationError("The config has too many objects within one another.") from None


def is_old(config: Any) -> bool:
    """Whether a config has something in it that only AllenNLP 0.x could have understood."""
    return isinstance(config, dict) and (
        any(key in config for key in ITERATORS)
        or is_old_trainer(config.get("trainer"))
        or is_old_vocabulary(config.get("vocabulary"))
        or has_similarity_function(config.get("model"))
        or any(is_old_part(key, part) for key, part in _parts({"model": config.get("model")}))
        or any(is_old_reader(*part) for part in _parts({k: config.get(k) for k in READERS}))
    )


def _parts(section: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The keys and values of a section and of all that lies in it, at any depth."""
    left: list[Any] = [section]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            yield from part.items()
            left.extend(part.values())
        elif isinstance(part, list):
            left.extend(part)


def _converted(old: dict[str, Any], report: Report) -> dict[str, Any]:
    for key, value in old.items():
        if key not in TOP_LEVEL_KEYS and key not in ITERATORS and "type" not in old:
            refuse(key, value, "a config has no such key.")
        if key not in ITERATORS and not fits_section(key, value):
            refuse(key, value, "expected an object.")
    converted = {key: modern_reader(old[key], key, report) for key in READERS if key in old}
    parts = {key: reader for key, (reader, _) in converted.items()}
    lazy = {key: is_lazy for key, (_, is_lazy) in converted.items()}
    readers = [reader for reader in parts.values() if isinstance(reader, dict)]
    if isinstance(old.get("vocabulary"), dict):
        parts["vocabulary"] = modern_vocabulary(old["vocabulary"], report)
    if "model" in old:
        parts["model"] = modern_model(old["model"], readers, report)
    from_trainer = modern_trainer(old.get("trainer"), _batch_size(old), report)
    if "trainer" in old:
        parts["trainer"] = from_trainer["trainer"]
    shuffle = from_trainer["data_loader"].get("shuffle", True)
    if not shuffle and isinstance(old.get("data_loader"), dict):
        parts["data_loader"] = {**old["data_loader"], "shuffle": False}
    loaders = _loaders({**old, **parts}, lazy, shuffle, report)

    new: dict[str, Any] = {}
    for key, value in old.items():
        if key in ITERATORS:
            new.update(loaders.get(key, {}))
        elif key not in parts:
            new[key] = value
        elif parts[key] is not None:
            new[key] = parts[key]
    if from_trainer["distributed"]:
        new.setdefault("distributed", from_trainer["distributed"])
    return new


def _loaders(
    config: dict[str, Any], lazy: dict[str, bool], shuffle: bool, report: Report
) -> dict[str, dict[str, Any]]:
    """For each iterator, the data loaders that take its place in the config, by their keys."""
    loaders: dict[str, dict[str, Any]] = {}
    for key, new_key in ITERATORS.items():
        if key not in config:
            continue
        if new_key in config or config[key] is None:
            reason = f"there is a {new_key}" if new_key in config else "it says nothing"
            report.needless(key, config[key], reason)
            continue
        is_lazy = lazy.get(reader_key(config, new_key), False)
        loader = data_loader(config, key, is_lazy, shuffle and key == "iterator", report)
        loaders[key] = {new_key: loader}
    is_validation_said = "validation_data_loader" in config or "validation_iterator" in loaders
    if "iterator" in loaders and not is_validation_said:
        add_evaluation_loader(loaders["iterator"], report)
    return loaders


def _batch_size(old: dict[str, Any]) -> int | None:
    """How many instances a batch has, where all have the same number."""
    loader, size = old.get("data_loader"), None
    if isinstance(loader, dict):
        sampler = loader.get("batch_sampler")
        size = (sampler if isinstance(sampler, dict) else loader).get("batch_size")
    elif old.get("iterator") is not None:
        said = flattened_iterator(old["iterator"], "iterator")
        if "maximum_samples_per_batch" not in said:
            size, _ = said.get("batch_size", (OLD_BATCH_SIZE, "iterator"))
    return size if isinstance(size, int) else None
