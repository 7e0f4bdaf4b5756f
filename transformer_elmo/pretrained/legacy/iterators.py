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
}

# The kinds of data loaders: ours, and AllenNLP's with the samplers that it may have. For each, what
# it says of batches, and of that what goes without saying.
OURS, BY_TOKENS, BY_LENGTH, PLAIN = LANGUAGE_MODELING_LOADER, "max_tokens_sampler", "bucket", ""
AROUND = dict.fromkeys(("max_instances_in_memory", "num_workers", "batches_per_epoch"))
SORTING: dict[str, Any] = {"sorting_keys": [], "padding_noise": None}
SAID: dict[str, dict[str, Any]] = {
    OURS: {
        **dict.fromkeys(("max_tokens", "batch_size", "max_instances_in_memory")),
        **{"batches_per_epoch": None, "shuffle": True, "num_workers": None},
    },
    BY_TOKENS: {"max_tokens": None, **SORTING},
    BY_LENGTH: {"batch_size": None, "drop_last": False, "shuffle": True, **SORTING},
    PLAIN: {"batch_size": None, "shuffle": False, "drop_last": False},
}
# And the keys of iterators that it has no place for, and why.
_EPOCH = {"instances_per_epoch": "batches of so many tokens hold a varying number of instances"}
_QUEUE = {"output_queue_size": "its length follows from max_instances_in_memory"}
NO_PLACE = {
    OURS: {
        **_EPOCH,
        "num_workers": "the data loader keeps up in one process",
        "sorting_keys": "sentences of like length come together",
        "padding_noise": "sentences are grouped by their exact lengths",
        "skip_smaller_batches": "no sentence is left out",
        "output_queue_size": "the data loader has no queue",
    },
    BY_TOKENS: {
        "batch_size": "maximum_samples_per_batch limits the batch",
        "skip_smaller_batches": "batches of so many tokens have no common size",
        **_QUEUE,
        **_EPOCH,
    },
    BY_LENGTH: {**_QUEUE, **_EPOCH},
    PLAIN: {**dict.fromkeys(SORTING, "only the type bucket sorts"), **_QUEUE, **_EPOCH},
}
LANGUAGE_MODELING_ONLY_KEYS = ("max_tokens", "distinct_words", "keep_long_sentences", "seed")
# Of an iterator that ran another one in several processes.
OUTER_KEYS = ("num_workers", "output_queue_size")
OLD_BATCH_SIZE = 32
# What a lazily read data set keeps in memory at once: enough to shuffle and to sort by length.
LAZY_INSTANCES_IN_MEMORY = 10_000


@dataclass
class Batching:
    """
    `facts`: what is known of batches, by data loaders' names for it. `max_tokens` counts padding;
    `bucketed`: whether sentences of like length come together; `slow_words`: whether splitting
    sentences into words is work enough for several processes. `kept`: other keys of a data loader.
    `said`: what an iterator says.
    """

    facts: dict[str, Any]
    kept: dict[str, Any] = field(default_factory=dict)
    said: Said = field(default_factory=dict)

    def update(self, said: Said, report: Report) -> None:
        """Takes over what an iterator says."""
        self.said = said
        for key, (value, path) in said.items():
            if key in _TAKEN:
                name, convert = _TAKEN[key]
                self.facts[name] = convert(value, path, report)
            elif value and key in DROPPED_KEYS:
                report.dropped(path, value, DROPPED_KEYS[key])

    def loader(self, report: Report, ours: bool = False) -> dict[str, Any]:
        """The config of a data loader that batches like this, of AllenNLP's unless it is `ours`."""
        facts, kind = dict(self.facts), PLAIN
        instances, size = facts.get("instances_per_epoch"), facts.get("batch_size")
        if instances is not None:
            countable = facts.get("max_tokens") is None and size is not None
            facts["batches_per_epoch"] = -(-instances // size) if countable else None
        if ours:
            kind = OURS
        elif facts.get("max_tokens") is not None:
            kind = BY_TOKENS
        elif facts.get("bucketed"):
            kind = BY_LENGTH
        said = {key: self.said[key] for key in NO_PLACE[kind] if key in self.said}
        if instances is None or facts["batches_per_epoch"] is not None:
            said.pop("instances_per_epoch", None)
        if not ours and not facts.get("drop_last"):
            said.pop("skip_smaller_batches", None)
        if facts.get("slow_words") or said.get("num_workers", ("", ""))[1] in report.overridden:
            said.pop("num_workers", None)
        for key, (value, path) in said.items():
            record = report.needless if key == "sorting_keys" and ours else report.dropped
            record(path, value, NO_PLACE[kind][key])
        if "num_workers" in said:
            del facts["num_workers"]

        def part(names: dict[str, Any]) -> dict[str, Any]:
            given = ((name, facts.get(name), default) for name, default in names.items())
            return {name: v for name, v, default in given if v is not None and v != default}

        if ours:
            return {"type": OURS, **self.kept, **part(SAID[OURS])}
        batches = part(SAID[kind])
        if kind != PLAIN:
            batches = {"batch_sampler": {"type": kind, **batches}}
        return {**self.kept, **batches, **part(AROUND)}


def of_language_modeling_loader(loader: dict[str, Any], path: str) -> Batching:
    """How a `language_modeling` data loader makes batches."""
    facts = {key: value for key, value in loader.items() if key in SAID[OURS]}
    kept = {key: value for key, value in loader.items() if key != "type" and key not in facts}
    if facts.get("batch_size") is not None:
        facts["batch_size"] = whole_number(facts["batch_size"], f"{path}.batch_size")
    return Batching({"bucketed": True, **facts}, kept)


def of_stock_loader(loader: dict[str, Any], path: str) -> Batching:
    """How AllenNLP 2's data loader makes batches."""
    sampler = loader.get("batch_sampler") or {}
    sampler = {"type": sampler} if isinstance(sampler, str) else sampler
    sampler = dict(as_object(sampler, f"{path}.batch_sampler"))
    kind = sampler.pop("type", None)
    if kind not in (None, BY_LENGTH, BY_TOKENS):
        advice = "an iterator's override can't be applied to it."
        refuse(f"{path}.batch_sampler.type", kind, advice)
    kept = {**{k: v for k, v in loader.items() if k != "batch_sampler"}, **sampler}
    size = kept.pop("batch_size", None) or OLD_BATCH_SIZE
    facts = {"bucketed": kind is not None, "shuffle": kept.pop("shuffle", kind is not None)}
    facts["batch_size"] = whole_number(size, f"{path}.batch_size")
    names = {*SAID[BY_TOKENS], *SAID[BY_LENGTH], *AROUND}
    facts.update({name: kept.pop(name) for name in [*kept] if name in names})
    return Batching(facts, kept)


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


# What an iterator says of batches: the fact that it is, and how its value is read.
_TAKEN: dict[str, tuple[str, Callable[[Any, str, Report], Any]]] = {
    "type": ("bucketed", lambda value, path, report: value == BY_LENGTH),
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
        iterator = {"track_epoch": True, **iterator, "type": BY_LENGTH}
    said: Said = {}
    # First of all its type: what keys it has depends on that.
    for key, value in sorted(iterator.items(), key=lambda item: item[0] != "type"):
        if key == "base_iterator":
            said.update(flattened_iterator(value, f"{path}.{key}"))
        elif key == "type" and value == "multiprocess":
            continue
        elif key == "type" and value not in ("basic", BY_LENGTH):
            advice = (
                "AllenNLP 2 has nothing that batches like it. Known are basic, bucket and "
                "multiprocess. In place of the iterator, describe a data_loader."
            )
            refuse(f"{path}.type", value, advice)
        elif key in _TAKEN or key in DROPPED_KEYS or key in OUTER_KEYS:
            said.setdefault(key, (value, f"{path}.{key}"))
        else:
            refuse(f"{path}.{key}", value, "an iterator has no such key.")
    return said


def data_loader(
    config: dict[str, Any], key: str, lazy: bool, shuffle: bool, report: Report
) -> dict[str, Any]:
    """What batches as the iterator at `key` did; `lazy`: whether its reader was to stream."""
    reader = config.get(reader_key(config, ITERATORS[key]))
    tokenizer = type_of(reader.get("tokenizer")) if isinstance(reader, dict) else ""
    slow = tokenizer not in ("just_spaces", "whitespace")
    facts = {"bucketed": True, "batch_size": OLD_BATCH_SIZE, "shuffle": shuffle, "slow_words": slow}
    batching = Batching(facts)
    batching.update(flattened_iterator(config[key], key), report)
    ours = reads_sentences(config, ITERATORS[key])
    if lazy and not ours and facts.get("max_instances_in_memory") is None:
        facts["max_instances_in_memory"] = max(LAZY_INSTANCES_IN_MEMORY, facts["batch_size"] or 1)
    loader = batching.loader(report, ours)
    report.moved(key, config[key], ITERATORS[key], loader)
    return loader


def add_evaluation_loader(config: dict[str, Any], report: Report) -> None:
    """Adds what reads every instance once, in the order of the file, if that for training won't."""
    key, loader = "validation_data_loader", config["data_loader"]
    new = copy.deepcopy(loader)
    for name in ("batches_per_epoch", "shuffle"):
        new.pop(name, None)
    if loader.get("type") == OURS:
        if "batches_per_epoch" not in loader:
            return
    else:
        new.pop("drop_last", None)
        sampler = new.get("batch_sampler")
        if isinstance(sampler, dict) and sampler.get("type") == BY_LENGTH:
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
    if kind not in (OURS, "multiprocess"):
        advice = f"it can't be applied to {key}.type = {kind}. Override {key} itself."
        refuse(path, override, advice)
    ours = kind == OURS
    batching = (of_language_modeling_loader if ours else of_stock_loader)(loader, key)
    limit = batching.facts.get("max_tokens")
    batching.update(said, report)
    is_new = "batch_size" in said or limit is None
    if not ours and is_new and batching.facts.get("max_tokens") and reads_sentences(config, key):
        # Only ours can do it: both limits at once, or one over batches that had none.
        reason = "the data loader language_modeling has no such key"
        kept, ours = batching.kept, True
        kept.pop("type", None)
        report.drop_keys(kept, key, {name: reason for name in kept if name != "quiet"})
    new = batching.loader(report, ours)
    report.moved(path, override, key, new)
    return new
