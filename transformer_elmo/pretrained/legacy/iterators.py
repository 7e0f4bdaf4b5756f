"""Iterators of AllenNLP 0.x and the data loaders that batch as they did."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformer_elmo.pretrained.legacy.report import (
    Report,
    as_list,
    as_number,
    as_object,
    is_true,
    refuse,
)
from transformer_elmo.pretrained.legacy.sections import (
    ITERATORS,
    LANGUAGE_MODELING_LOADER,
    reader_key,
    reads_sentences,
    type_of,
)

# An iterator's keys: the value of each, and the dotted key where it was found.
Said = dict[str, tuple[Any, str]]

# The limit of a batch counts a text's tokens; these are the padding keys that say so.
TOKEN_KEYS = ("num_tokens", "tokens_length")

# Keys of iterators that say nothing about a batch, and what a data loader does instead.
DROPPED_KEYS = {
    "biggest_batch_first": "batches come in random order",
    "cache_instances": "instances stay in memory unless max_instances_in_memory is set",
    "track_epoch": "the callback track_epoch_callback tells the model the epoch",
    "output_queue_size": "its length follows from max_instances_in_memory",
}
# Those that the data loader `language_modeling` has no use for.
NOT_IN_LANGUAGE_MODELING = {
    "padding_noise": "sentences are grouped by their exact lengths",
    "skip_smaller_batches": "no sentence is left out",
    "output_queue_size": "the data loader has no queue",
}
# What both kinds of data loader say of batches, and each of them alone.
COMMON_KEYS = ("max_tokens", "max_instances_in_memory", "batches_per_epoch", "num_workers")
LANGUAGE_MODELING_KEYS = (*COMMON_KEYS, "batch_size", "shuffle")
STOCK_KEYS = (*COMMON_KEYS, "sorting_keys", "padding_noise", "drop_last")
LANGUAGE_MODELING_ONLY_KEYS = ("max_tokens", "distinct_words", "keep_long_sentences", "seed")
SIMPLE_LOADER_KEYS = ("type", "batch_size", "shuffle", "batches_per_epoch", "quiet")
# Of an iterator that ran another one in several processes.
OUTER_KEYS = ("num_workers", "output_queue_size")
OLD_BATCH_SIZE = 32
# What a lazily read data set keeps in memory at once: enough to shuffle and to sort by length.
LAZY_INSTANCES_IN_MEMORY = 10_000


@dataclass
class Batching:
    """
    `bucketed`: whether sentences of like length come together. `max_tokens`: of a batch, padding
    included. `slow_words`: whether splitting sentences into words is work enough for several
    processes. `kept`: other keys of a data loader. `said`: what an iterator says.
    """

    bucketed: bool = True
    batch_size: int | None = None
    max_tokens: int | None = None
    instances_per_epoch: int | None = None
    batches_per_epoch: int | None = None
    max_instances_in_memory: int | None = None
    sorting_keys: list[str] | None = None
    padding_noise: float | None = None
    drop_last: bool = False
    shuffle: bool = True
    num_workers: int | None = None
    slow_words: bool = False
    kept: dict[str, Any] = field(default_factory=dict)
    said: Said = field(default_factory=dict)

    def update(self, said: Said, report: Report) -> None:
        """Takes over what an iterator says."""
        self.said = said
        for key, (value, path) in said.items():
            if key in _TAKEN:
                name, convert = _TAKEN[key]
                setattr(self, name, convert(value, path, report))
            elif value and key != "output_queue_size":
                report.dropped(path, value, DROPPED_KEYS[key])

    def language_modeling_loader(self, report: Report) -> dict[str, Any]:
        """The config of a `language_modeling` data loader that batches like this."""
        loader: dict[str, Any] = {"type": LANGUAGE_MODELING_LOADER, **self.kept}
        self._add(loader, "max_tokens", "batch_size", "max_instances_in_memory")
        self._add_epoch(loader, report)
        if not self.shuffle:
            loader["shuffle"] = False
        _, workers_path = self.said.get("num_workers", (None, None))
        if workers_path is None or self.slow_words or workers_path in report.overridden:
            self._add(loader, "num_workers")
        else:
            self._drop(report, num_workers="the data loader keeps up in one process")
        if "sorting_keys" in self.said:
            value, path = self.said["sorting_keys"]
            report.needless(path, value, "sentences of like length come together")
        self._drop(report, **NOT_IN_LANGUAGE_MODELING)
        return loader

    def stock_loader(self, report: Report) -> dict[str, Any]:
        """The config of AllenNLP 2's own data loader that batches like this."""
        loader: dict[str, Any] = {}
        if self.max_tokens is not None or self.bucketed:
            loader["batch_sampler"] = self._sampler(report)
        else:
            loader["batch_size"] = self.batch_size
            loader.update({key: True for key in ("shuffle", "drop_last") if getattr(self, key)})
            reason = "only the type bucket sorts"
            self._drop(report, sorting_keys=reason, padding_noise=reason)
        self._add(loader, "max_instances_in_memory", "num_workers")
        self._drop(report, output_queue_size=DROPPED_KEYS["output_queue_size"])
        self._add_epoch(loader, report)
        return {**self.kept, **loader}

    def _sampler(self, report: Report) -> dict[str, Any]:
        sampler: dict[str, Any]
        if self.max_tokens is not None:
            sampler = {"type": "max_tokens_sampler", "max_tokens": self.max_tokens}
            self._drop(report, batch_size="maximum_samples_per_batch limits the batch")
            if self.drop_last:
                reason = "batches of so many tokens have no common size"
                self._drop(report, skip_smaller_batches=reason)
        else:
            sampler = {"type": "bucket", "batch_size": self.batch_size}
            if self.drop_last:
                sampler["drop_last"] = True
            if not self.shuffle:
                sampler["shuffle"] = False
        if self.sorting_keys:
            sampler["sorting_keys"] = self.sorting_keys
        self._add(sampler, "padding_noise")
        return sampler

    def _add(self, loader: dict[str, Any], *keys: str) -> None:
        loader.update({key: getattr(self, key) for key in keys if getattr(self, key) is not None})

    def _add_epoch(self, loader: dict[str, Any], report: Report) -> None:
        if self.instances_per_epoch is None:
            self._add(loader, "batches_per_epoch")
        elif self.max_tokens is None and self.batch_size is not None:
            loader["batches_per_epoch"] = -(-self.instances_per_epoch // self.batch_size)
        else:
            reason = "batches of so many tokens hold a varying number of instances"
            self._drop(report, instances_per_epoch=reason)

    def _drop(self, report: Report, **reasons: str) -> None:
        for key, reason in reasons.items():
            if key in self.said:
                value, path = self.said[key]
                report.dropped(path, value, reason)


def of_language_modeling_loader(loader: dict[str, Any], path: str) -> Batching:
    """How a `language_modeling` data loader makes batches."""
    said = {key: value for key, value in loader.items() if key in LANGUAGE_MODELING_KEYS}
    kept = {key: value for key, value in loader.items() if key != "type" and key not in said}
    if said.get("batch_size") is not None:
        said["batch_size"] = whole_number(said["batch_size"], f"{path}.batch_size")
    return Batching(**said, kept=kept)


def of_stock_loader(loader: dict[str, Any], path: str) -> Batching:
    """How AllenNLP 2's data loader makes batches."""
    sampler = loader.get("batch_sampler") or {}
    sampler = {"type": sampler} if isinstance(sampler, str) else sampler
    sampler = dict(as_object(sampler, f"{path}.batch_sampler"))
    kind = sampler.pop("type", None)
    if kind not in (None, "bucket", "max_tokens_sampler"):
        advice = "an iterator's override can't be applied to it."
        refuse(f"{path}.batch_sampler.type", kind, advice)
    said = {**{k: v for k, v in loader.items() if k != "batch_sampler"}, **sampler}
    size = said.pop("batch_size", None) or OLD_BATCH_SIZE
    batching = Batching(
        bucketed=kind is not None,
        batch_size=whole_number(size, f"{path}.batch_size"),
        shuffle=said.pop("shuffle", kind is not None),
    )
    for key in STOCK_KEYS:
        value = said.pop(key, None)
        if value is not None:
            setattr(batching, key, value)
    batching.kept = said
    return batching


def whole_number(value: Any, path: str, report: Report | None = None) -> int:
    """`value`, which may be a string, as a number above zero."""
    try:
        if not isinstance(value, bool) and int(value) == float(value) and int(value) > 0:
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    refuse(path, value, "expected a whole number above zero.")


def _number_if_said(value: Any, path: str, report: Report) -> int | None:
    return None if value is None else whole_number(value, path)


def _token_limit(value: Any, path: str, report: Report) -> int | None:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        refuse(path, value, 'expected a pair such as ["num_tokens", 2000].')
    key, limit = value
    if key not in TOKEN_KEYS:
        report.dropped(path, value, f"a batch can be limited by num_tokens, not by {key}")
        return None
    return whole_number(limit, path)


def _field_names(sorting_keys: Any, path: str, report: Report) -> list[str]:
    names: list[str] = []
    for i, pair in enumerate(as_list(sorting_keys or [], path)):
        name = pair[0] if isinstance(pair, (list, tuple)) and len(pair) == 2 else pair
        if not isinstance(name, str):
            refuse(f"{path}.{i}", pair, 'expected a pair such as ["tokens", "num_tokens"].')
        names.append(name)
    return list(dict.fromkeys(names))


# What an iterator says of batches: the attribute that says it here, and how its value is read.
_TAKEN: dict[str, tuple[str, Callable[[Any, str, Report], Any]]] = {
    "type": ("bucketed", lambda value, path, report: value == "bucket"),
    "batch_size": ("batch_size", _number_if_said),
    "instances_per_epoch": ("instances_per_epoch", _number_if_said),
    "max_instances_in_memory": ("max_instances_in_memory", _number_if_said),
    "num_workers": ("num_workers", whole_number),
    "maximum_samples_per_batch": ("max_tokens", _token_limit),
    "sorting_keys": ("sorting_keys", _field_names),
    "padding_noise": ("padding_noise", lambda value, path, report: as_number(value, float, path)),
    "skip_smaller_batches": ("drop_last", lambda value, path, report: is_true(value)),
}


def flattened_iterator(iterator: Any, path: str) -> Said:
    """What an iterator says, and the one that ran it in several processes, taken together."""
    if isinstance(iterator, str):
        iterator = {"type": iterator}
    iterator = as_object(iterator, path)
    if iterator.get("type") == "epoch_tracking_bucket":
        # It always had that key.
        iterator = {"track_epoch": True, **iterator, "type": "bucket"}
    said: Said = {}
    # First of all its type: what keys it has depends on that.
    for key, value in sorted(iterator.items(), key=lambda item: item[0] != "type"):
        if key == "base_iterator":
            said.update(flattened_iterator(value, f"{path}.{key}"))
        elif key == "type" and value == "multiprocess":
            continue
        elif key == "type" and value not in ("basic", "bucket"):
            advice = (
                "AllenNLP 2 has nothing that batches like it. Known are basic, bucket and "
                "multiprocess. In place of the iterator, describe a data_loader."
            )
            refuse(f"{path}.type", value, advice)
        elif key not in _TAKEN and key not in DROPPED_KEYS:
            refuse(f"{path}.{key}", value, "an iterator has no such key.")
        else:
            said.setdefault(key, (value, f"{path}.{key}"))
    return said


def data_loader(
    config: dict[str, Any], key: str, lazy: bool, shuffle: bool, report: Report
) -> dict[str, Any]:
    """What batches as the iterator at `key` did; `lazy`: whether its reader was to stream."""
    reader = config.get(reader_key(config, ITERATORS[key]))
    tokenizer = type_of(reader.get("tokenizer")) if isinstance(reader, dict) else ""
    slow = tokenizer not in ("just_spaces", "whitespace")
    batching = Batching(batch_size=OLD_BATCH_SIZE, shuffle=shuffle, slow_words=slow)
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
    """Adds what reads every instance once, in the order of the file, if that for training won't."""
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
    """The loader at `key` under an old iterator's override, which the user calls `path`."""
    said = flattened_iterator(override, path)
    loader = config.get(key)
    loader = {"type": loader} if isinstance(loader, str) else loader
    loader = {} if loader is None else as_object(loader, key)
    kind = loader.get("type", "multiprocess")
    if kind not in (LANGUAGE_MODELING_LOADER, "multiprocess", "simple"):
        advice = f"it can't be applied to {key}.type = {kind}. Override {key} itself."
        refuse(path, override, advice)
    ours = kind == LANGUAGE_MODELING_LOADER
    batching = (of_language_modeling_loader if ours else of_stock_loader)(loader, key)
    had_limit = batching.max_tokens is not None
    batching.update(said, report)
    if not ours and reads_sentences(config, key) and batching.max_tokens is not None:
        if "batch_size" in said or not had_limit:
            # Only ours can do it: both limits at once, or one over batches that had none.
            reason = "the data loader language_modeling has no such key"
            kept, ours = batching.kept, True
            kept.pop("type", None)
            report.drop_keys(kept, key, {name: reason for name in kept if name != "quiet"})
    new = batching.language_modeling_loader(report) if ours else batching.stock_loader(report)
    for name in new if kind == "simple" else ():
        if name not in SIMPLE_LOADER_KEYS:
            refuse(path, override, f"{key}.type is simple, which has no {name}.")
    report.moved(path, override, key, new)
    return new
