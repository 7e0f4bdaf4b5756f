"""Iterators of AllenNLP 0.x and the data loaders that batch as they did."""

import copy
from typing import Any

from transformer_elmo.pretrained.legacy.batching import (
    DROPPED_KEYS,
    OLD_BATCH_SIZE,
    Batching,
    Said,
    of_language_modeling_loader,
    of_stock_loader,
)
from transformer_elmo.pretrained.legacy.report import Report, as_object, refuse
from transformer_elmo.pretrained.legacy.sections import (
    ITERATORS,
    LANGUAGE_MODELING_LOADER,
    reader_key,
    reads_sentences,
    type_of,
)

OUTER_KEYS = ("num_workers", "output_queue_size")
PLAIN_TYPES = ("basic", "bucket")
# A bucket iterator that always had the key `track_epoch`.
TRACKING_TYPE = "epoch_tracking_bucket"
ITERATOR_KEYS = {
    *"type batch_size instances_per_epoch max_instances_in_memory num_workers".split(),
    *"maximum_samples_per_batch sorting_keys padding_noise skip_smaller_batches".split(),
    *DROPPED_KEYS,
}
LANGUAGE_MODELING_ONLY_KEYS = ("max_tokens", "distinct_words", "keep_long_sentences", "seed")
SIMPLE_LOADER_KEYS = ("type", "batch_size", "shuffle", "batches_per_epoch", "quiet")

# What a lazily read data set keeps in memory at once: enough to shuffle and to sort by length.
LAZY_INSTANCES_IN_MEMORY = 10_000


def flattened_iterator(iterator: Any, path: str) -> Said:
    """What an iterator says, and the one that ran it in several processes, taken together."""
    if isinstance(iterator, str):
        iterator = {"type": iterator}
    iterator = as_object(iterator, path)
    if iterator.get("type") == TRACKING_TYPE:
        iterator = {"track_epoch": True, **iterator, "type": "bucket"}
    said: Said = {}
    # First of all its type: what keys it has depends on that.
    for key, value in sorted(iterator.items(), key=lambda item: item[0] != "type"):
        if key == "base_iterator":
            said.update(flattened_iterator(value, f"{path}.{key}"))
        elif key == "type" and value == "multiprocess":
            continue
        elif key == "type" and value not in PLAIN_TYPES:
            advice = (
                "AllenNLP 2 has nothing that batches like it. Known are basic, bucket and "
                "multiprocess. In place of the iterator, describe a data_loader."
            )
            refuse(f"{path}.type", value, advice)
        elif key not in ITERATOR_KEYS:
            refuse(f"{path}.{key}", value, "an iterator has no such key.")
        else:
            said.setdefault(key, (value, f"{path}.{key}"))
    return said


def data_loader(
    config: dict[str, Any], key: str, lazy: bool, shuffle: bool, report: Report
) -> dict[str, Any]:
    """
    `config`: a config that is modern but for its iterators. `key`: one of the `ITERATORS`. `lazy`:
    whether its reader was to stream. Returns the config of the data loader that batches alike.
    """
    reader = config.get(reader_key(config, ITERATORS[key]))
    tokenizer = type_of(reader.get("tokenizer")) if isinstance(reader, dict) else ""
    slow_words = tokenizer not in ("just_spaces", "whitespace")
    batching = Batching(batch_size=OLD_BATCH_SIZE, shuffle=shuffle, slow_words=slow_words)
    batching.update(flattened_iterator(config[key], key), report)
    if reads_sentences(config, ITERATORS[key]):
        loader = batching.language_modeling_loader(report)
    else:
        if lazy and batching.max_instances_in_memory is None:
            most = max(LAZY_INSTANCES_IN_MEMORY, batching.batch_size or 1)
            batching.max_instances_in_memory = most
        loader = batching.stock_loader(report)
    report.moved(key, config[key], ITERATORS[key], loader)
    return loader


def add_evaluation_loader(config: dict[str, Any], report: Report) -> None:
    """
    Adds the loader that validation and evaluation need in place of the one made for training, if
    that won't do: every instance once, in the order of the file where the batches keep it.
    """
    key, loader = "validation_data_loader", config["data_loader"]
    new = copy.deepcopy(loader)
    for name in ("batches_per_epoch", "shuffle"):
        new.pop(name, None)
    if loader.get("type") == LANGUAGE_MODELING_LOADER:
        if "batches_per_epoch" not in loader:
            return
    else:
        new.pop("drop_last", None)
        sampler = new.get("batch_sampler")
        if isinstance(sampler, dict) and sampler.get("type") == "bucket":
            sampler.pop("drop_last", None)
            new["batch_sampler"] = {**sampler, "shuffle": False}
    if new != loader:
        config[key] = new
        report.added(key, new, "what isn't trained on is read once, in order")


def overridden_loader(
    config: dict[str, Any], key: str, override: Any, path: str, report: Report
) -> dict[str, Any]:
    """
    A modern data loader under an old iterator's override.

    `config`: a modern config. `key`: the data loader's, which needn't be there. `override`: what
    the user says of the iterator. `path`: the dotted key that the user calls it by.
    """
    said = flattened_iterator(override, path)
    loader = config.get(key)
    loader = {"type": loader} if isinstance(loader, str) else loader
    loader = {} if loader is None else as_object(loader, key)
    kind = loader.get("type", "multiprocess")
    if kind == LANGUAGE_MODELING_LOADER:
        batching = of_language_modeling_loader(loader, key)
        batching.update(said, report)
        new = batching.language_modeling_loader(report)
    elif kind in ("multiprocess", "simple"):
        new = _over_stock_loader(loader, key, said, reads_sentences(config, key), report)
        for name in new if kind == "simple" else ():
            if name not in SIMPLE_LOADER_KEYS:
                refuse(path, override, f"{key}.type is simple, which has no {name}.")
    else:
        advice = f"it can't be applied to {key}.type = {kind}. Override {key} itself."
        refuse(path, override, advice)
    report.moved(path, override, key, new)
    return new


def _over_stock_loader(
    loader: dict[str, Any], path: str, said: Said, language_modeling: bool, report: Report
) -> dict[str, Any]:
    batching = of_stock_loader(loader, path)
    had_limit = batching.max_tokens is not None
    batching.update(said, report)
    has_limit = batching.max_tokens is not None
    if not (language_modeling and has_limit and ("batch_size" in said or not had_limit)):
        return batching.stock_loader(report)
    # Only ours can do it: both limits at once, or one over batches that had none.
    kept, batching.kept = batching.kept, {}
    for key, value in kept.items():
        if key == "quiet":
            batching.kept[key] = value
        elif key != "type":
            reason = "the data loader language_modeling has no such key"
            report.dropped(f"{path}.{key}", value, reason)
    return batching.language_modeling_loader(report)
