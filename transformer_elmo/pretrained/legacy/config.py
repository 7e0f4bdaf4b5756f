"""Whole configs of AllenNLP 0.x, and what they are in AllenNLP 2."""

import copy
from collections.abc import Collection
from typing import Any

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.pretrained.legacy.batching import OLD_BATCH_SIZE
from transformer_elmo.pretrained.legacy.iterators import (
    data_loader,
    evaluation_loader,
    flattened_iterator,
)
from transformer_elmo.pretrained.legacy.model import modern_model
from transformer_elmo.pretrained.legacy.readers import modern_reader
from transformer_elmo.pretrained.legacy.report import Change, Report
from transformer_elmo.pretrained.legacy.sections import (
    ITERATORS,
    READERS,
    TOP_LEVEL_KEYS,
    fits_section,
    reader_key,
)
from transformer_elmo.pretrained.legacy.trainer import modern_trainer
from transformer_elmo.pretrained.legacy.vocabulary import modern_vocabulary


def modernize(
    config: dict[str, Any], overridden: Collection[str] = ()
) -> tuple[dict[str, Any], list[Change]]:
    """
    Turns an AllenNLP 0.x config into the AllenNLP 2 config that means the same.

    `config`: it isn't changed. One with nothing old in it comes back as it is, the same object.
    `overridden`: dotted keys that come from an override: these must have an effect. Returns the
    modern config, and what was changed. Raises `ConfigurationError` if a key can't be understood,
    or an override has no meaning; it names the dotted key.
    """
    report = Report(overridden)
    modern = _modernized(config, report)
    if not report.legacy_keys:
        return config, []
    report.check()
    return modern, report.changes


def legacy_keys(config: Any) -> list[str]:
    """
    Returns the dotted keys that only AllenNLP 0.x could have understood. None: the config isn't
    old.
    """
    report = Report()
    if isinstance(config, dict):
        _modernized(config, report)
    return report.legacy_keys


def _modernized(config: dict[str, Any], report: Report) -> dict[str, Any]:
    try:
        return _converted(copy.deepcopy(config), report)
    except RecursionError:
        # Somebody else may have written it.
        raise ConfigurationError("The config has too many objects within one another.") from None


def _converted(old: dict[str, Any], report: Report) -> dict[str, Any]:
    _check_keys(old, report.if_old)
    parts: dict[str, Any] = {}
    lazy: dict[str, bool] = {}
    for key in READERS:
        if key in old:
            parts[key], lazy[key] = modern_reader(old[key], key, report)
    readers = [reader for reader in parts.values() if isinstance(reader, dict)]
    if isinstance(old.get("vocabulary"), dict):
        parts["vocabulary"] = modern_vocabulary(old["vocabulary"], report)
    if "model" in old:
        parts["model"] = modern_model(old["model"], readers, report)
    trainer = modern_trainer(old.get("trainer"), _batch_size(old, report), report)
    if "trainer" in old:
        parts["trainer"] = trainer.config
    if not trainer.shuffle and isinstance(old.get("data_loader"), dict):
        parts["data_loader"] = {**old["data_loader"], "shuffle": False}
    loaders = _loaders({**old, **parts}, lazy, trainer.shuffle, report)

    new: dict[str, Any] = {}
    for key, value in old.items():
        if key in ITERATORS:
            new.update(loaders.get(key, {}))
        elif key not in parts:
            new[key] = value
        elif parts[key] is not None:
            new[key] = parts[key]
    if trainer.cuda_devices is not None:
        new.setdefault("distributed", {"cuda_devices": trainer.cuda_devices})
    return new


def _check_keys(old: dict[str, Any], report: Report) -> None:
    for key, value in old.items():
        if key not in TOP_LEVEL_KEYS and key not in ITERATORS and "type" not in old:
            report.refused(key, value, "a config has no such key.")
        elif key not in ITERATORS and not fits_section(key, value):
            report.refused(key, value, "expected an object.")


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
        evaluation = evaluation_loader(loaders["iterator"]["data_loader"])
        if evaluation is not None:
            loaders["iterator"]["validation_data_loader"] = evaluation
            reason = "what isn't trained on is read once, in order"
            report.added("validation_data_loader", evaluation, reason)
    return loaders


def _batch_size(old: dict[str, Any], report: Report) -> int | None:
    """How many instances a batch has, where all have the same number."""
    loader, size = old.get("data_loader"), None
    if isinstance(loader, dict):
        sampler = loader.get("batch_sampler")
        size = (sampler if isinstance(sampler, dict) else loader).get("batch_size")
    elif old.get("iterator") is not None:
        said = flattened_iterator(old["iterator"], "iterator", report)
        if "maximum_samples_per_batch" not in said:
            size, _ = said.get("batch_size", (OLD_BATCH_SIZE, "iterator"))
    return size if isinstance(size, int) else None
