"""Iterators of AllenNLP 0.x and the data loaders that batch as they did."""

import copy
import math
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

from transformer_elmo.legacy.changes import Changes, is_true, not_understood, number

# The limit of a batch counts a text's tokens; these are the padding keys that say so.
TOKEN_KEYS = ("num_tokens", "tokens_length")

OUTER_KEYS = ("num_workers", "output_queue_size")
PLAIN_TYPES = ("basic", "bucket")
# A bucket iterator that always had the key `track_epoch`.
TRACKING_TYPE = "epoch_tracking_bucket"
DROPPED_KEYS = {
    "biggest_batch_first": "batches come in random order",
    "cache_instances": "instances stay in memory unless max_instances_in_memory is set",
    "track_epoch": "the callback track_epoch_callback tells the model the epoch",
    "output_queue_size": "its length follows from max_instances_in_memory",
}
ITERATOR_KEYS = {
    "type",
    "batch_size",
    "instances_per_epoch",
    "max_instances_in_memory",
    "maximum_samples_per_batch",
    "sorting_keys",
    "padding_noise",
    "skip_smaller_batches",
    "num_workers",
    *DROPPED_KEYS,
}
OLD_BATCH_SIZE = 32
LANGUAGE_MODELING_LOADER = "language_modeling"
LANGUAGE_MODELING_KEYS = (
    "max_tokens",
    "batch_size",
    "max_instances_in_memory",
    "batches_per_epoch",
    "shuffle",
    "num_workers",
)
LANGUAGE_MODELING_ONLY_KEYS = ("max_tokens", "distinct_words", "keep_long_sentences", "seed")

# What a lazily read data set keeps in memory at once: enough to shuffle and to sort by length.
LAZY_INSTANCES_IN_MEMORY = 10_000


def flattened_iterator(iterator: Any, path: str) -> Dict[str, Tuple[Any, str]]:
    """
    An iterator without the one that ran it in several processes.

    # Returns

    `Dict[str, Tuple[Any, str]]`
        For each of its keys: the value, and the dotted key where it was found. The type
        `multiprocess` isn't among them.

    # Raises

    `ConfigurationError`
        If a key isn't an iterator's.
    """
    if isinstance(iterator, str):
        iterator = {"type": iterator}
    if not isinstance(iterator, dict):
        not_understood(path, iterator, "expected an object.")
    flat: Dict[str, Tuple[Any, str]] = {}
    if iterator.get("type") == TRACKING_TYPE:
        iterator = {"track_epoch": True, **iterator, "type": "bucket"}
    # First of all its type: what keys it has depends on that.
    for key, value in sorted(iterator.items(), key=lambda item: item[0] != "type"):
        if key == "base_iterator":
            flat.update(flattened_iterator(value, f"{path}.{key}"))
        elif key == "type" and value == "multiprocess":
            continue
        elif key == "type" and value not in PLAIN_TYPES:
            not_understood(
                f"{path}.type",
                value,
                "AllenNLP 2 has nothing that batches like it. Known are basic, bucket and "
                "multiprocess. In place of the iterator, describe a data_loader.",
            )
        elif key not in ITERATOR_KEYS:
            not_understood(f"{path}.{key}", value, "an iterator has no such key.")
        else:
            flat.setdefault(key, (value, f"{path}.{key}"))
    return flat


def _integer(value: Any, path: str) -> int:
    try:
        if isinstance(value, bool) or int(value) != float(value) or int(value) < 1:
            raise ValueError
    except (TypeError, ValueError):
        not_understood(path, value, "expected a whole number above zero.")
    return int(value)


@dataclass
class Batching:
    """
    How sentences become batches, in words that fit iterators and data loaders.

    # Parameters

    bucketed : `bool`
        Whether sentences of like length come together.
    batch_size : `int`
        Sentences in a batch, at most.
    max_tokens : `int`
        Tokens in a batch, at most, padding included.
    instances_per_epoch : `int`
    batches_per_epoch : `int`
    max_instances_in_memory : `int`
    sorting_keys : `List[str]`
        Names of fields.
    padding_noise : `float`
    drop_last : `bool`
    shuffle : `bool`
    num_workers : `int`
    slow_words : `bool`
        Whether splitting sentences into words is work enough for several processes.
    kept : `Dict[str, Any]`
        Other keys of a data loader.
    """

    bucketed: bool = True
    batch_size: Optional[int] = None
    max_tokens: Optional[int] = None
    instances_per_epoch: Optional[int] = None
    batches_per_epoch: Optional[int] = None
    max_instances_in_memory: Optional[int] = None
    sorting_keys: Optional[List[str]] = None
    padding_noise: Optional[float] = None
    drop_last: bool = False
    shuffle: bool = True
    num_workers: Optional[int] = None
    slow_words: bool = False
    kept: Dict[str, Any] = field(default_factory=dict)

    def update(self, flat: Dict[str, Tuple[Any, str]], changes: Changes) -> None:
        """Takes over what an iterator, flattened, says."""
        for key, (value, path) in flat.items():
            if key == "type":
                self.bucketed = value == "bucket"
            elif key in ("batch_size", "instances_per_epoch", "max_instances_in_memory"):
                setattr(self, key, None if value is None else _integer(value, path))
            elif key == "num_workers":
                self.num_workers = _integer(value, path)
            elif key == "maximum_samples_per_batch":
                self.max_tokens = self._limit(value, path, changes)
            elif key == "sorting_keys":
                self.sorting_keys = _field_names(value, path)
            elif key == "padding_noise":
                self.padding_noise = number(value, float, path)
            elif key == "skip_smaller_batches":
                self.drop_last = is_true(value)
            elif value and key != "output_queue_size":
                changes.dropped(path, value, DROPPED_KEYS[key])

    @staticmethod
    def _limit(value: Any, path: str, changes: Changes) -> Optional[int]:
        if value is None:
            return None
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            not_understood(path, value, 'expected a pair such as ["num_tokens", 2000].')
        key, limit = value
        if key not in TOKEN_KEYS:
            changes.dropped(path, value, f"a batch can be limited by num_tokens, not by {key}")
            return None
        return _integer(limit, path)

    def language_modeling_loader(
        self, flat: Dict[str, Tuple[Any, str]], changes: Changes
    ) -> Dict[str, Any]:
        """
        # Returns

        `Dict[str, Any]`
            The config of a `language_modeling` data loader.
        """
        loader: Dict[str, Any] = {"type": LANGUAGE_MODELING_LOADER, **self.kept}
        if self.max_tokens is not None:
            loader["max_tokens"] = self.max_tokens
        if self.batch_size is not None:
            loader["batch_size"] = self.batch_size
        if self.max_instances_in_memory is not None:
            loader["max_instances_in_memory"] = self.max_instances_in_memory
        self._add_epoch(loader, flat, changes)
        if not self.shuffle:
            loader["shuffle"] = False
        if "num_workers" in flat:
            value, path = flat["num_workers"]
            if self.slow_words or path in changes.overridden:
                loader["num_workers"] = self.num_workers
            else:
                changes.dropped(path, value, "the data loader keeps up in one process")
        elif self.num_workers is not None:
            loader["num_workers"] = self.num_workers
        if "sorting_keys" in flat:
            value, path = flat["sorting_keys"]
            changes.needless(path, value, "sentences of like length come together")
        for key, reason in (
            ("padding_noise", "sentences are grouped by their exact lengths"),
            ("skip_smaller_batches", "no sentence is left out"),
            ("output_queue_size", "the data loader has no queue"),
        ):
            if key in flat:
                value, path = flat[key]
                changes.dropped(path, value, reason)
        return loader

    def stock_loader(self, flat: Dict[str, Tuple[Any, str]], changes: Changes) -> Dict[str, Any]:
        """
        # Returns

        `Dict[str, Any]`
            The config of AllenNLP 2's data loader.
        """
        loader: Dict[str, Any] = {}
        sampler: Dict[str, Any]
        if self.max_tokens is not None or self.bucketed:
            if self.max_tokens is not None:
                sampler = {"type": "max_tokens_sampler", "max_tokens": self.max_tokens}
                if "batch_size" in flat:
                    value, path = flat["batch_size"]
                    changes.dropped(path, value, "maximum_samples_per_batch limits the batch")
                if self.drop_last and "skip_smaller_batches" in flat:
                    value, path = flat["skip_smaller_batches"]
                    changes.dropped(path, value, "batches of so many tokens have no common size")
            else:
                sampler = {"type": "bucket", "batch_size": self.batch_size}
                if self.drop_last:
                    sampler["drop_last"] = True
                if not self.shuffle:
                    sampler["shuffle"] = False
            if self.sorting_keys:
                sampler["sorting_keys"] = self.sorting_keys
            if self.padding_noise is not None:
                sampler["padding_noise"] = self.padding_noise
            loader["batch_sampler"] = sampler
        else:
            loader["batch_size"] = self.batch_size
            if self.shuffle:
                loader["shuffle"] = True
            if self.drop_last:
                loader["drop_last"] = True
            for key in ("sorting_keys", "padding_noise"):
                if key in flat:
                    value, path = flat[key]
                    changes.dropped(path, value, "only the type bucket sorts")
        if self.max_instances_in_memory is not None:
            loader["max_instances_in_memory"] = self.max_instances_in_memory
        if self.num_workers is not None:
            loader["num_workers"] = self.num_workers
        if "output_queue_size" in flat:
            value, path = flat["output_queue_size"]
            changes.dropped(path, value, DROPPED_KEYS["output_queue_size"])
        self._add_epoch(loader, flat, changes)
        return {**self.kept, **loader}

    def _add_epoch(
        self, loader: Dict[str, Any], flat: Dict[str, Tuple[Any, str]], changes: Changes
    ) -> None:
        if self.instances_per_epoch is not None:
            value, path = flat["instances_per_epoch"]
            if self.max_tokens is None and self.batch_size is not None:
                loader["batches_per_epoch"] = math.ceil(self.instances_per_epoch / self.batch_size)
            else:
                changes.dropped(
                    path, value, "batches of so many tokens hold a varying number of instances"
                )
        elif self.batches_per_epoch is not None:
            loader["batches_per_epoch"] = self.batches_per_epoch


def _field_names(sorting_keys: Any, path: str) -> List[str]:
    names: Dict[str, None] = {}
    for i, pair in enumerate(sorting_keys or []):
        if isinstance(pair, (list, tuple)) and len(pair) == 2:
            names[pair[0]] = None
        elif isinstance(pair, str):
            names[pair] = None
        else:
            not_understood(f"{path}.{i}", pair, 'expected a pair such as ["tokens", "num_tokens"].')
    return list(names)


def data_loader(
    iterator: Any,
    path: str,
    new_path: str,
    *,
    language_modeling: bool,
    lazy: bool,
    shuffle: bool,
    slow_words: bool,
    changes: Changes,
) -> Dict[str, Any]:
    """
    # Parameters

    iterator : `Any`
        The config of an old iterator.
    path : `str`
        Its dotted key.
    new_path : `str`
        That of the data loader.
    language_modeling : `bool`
        Whether a language model reads sentences with it.
    lazy : `bool`
        Whether the reader was to stream.
    shuffle : `bool`
    slow_words : `bool`
        Whether splitting sentences into words is work enough for several processes.
    changes : `Changes`

    # Returns

    `Dict[str, Any]`
        The data loader's config.
    """
    flat = flattened_iterator(iterator, path)
    batching = Batching(batch_size=OLD_BATCH_SIZE, shuffle=shuffle, slow_words=slow_words)
    batching.update(flat, changes)
    if language_modeling:
        loader = batching.language_modeling_loader(flat, changes)
    else:
        if lazy and batching.max_instances_in_memory is None:
            batching.max_instances_in_memory = max(
                LAZY_INSTANCES_IN_MEMORY, batching.batch_size or 1
            )
        loader = batching.stock_loader(flat, changes)
    changes.moved(path, iterator, new_path, loader)
    return loader


def evaluation_loader(loader: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    """
    What validation and evaluation need of the loader made for training: every instance once, in the
    order of the file where the batches keep it.

    # Returns

    `Dict[str, Any]`, optional
        `None` if the loader itself will do.
    """
    new = copy.deepcopy(loader)
    for key in ("batches_per_epoch", "shuffle"):
        new.pop(key, None)
    if loader.get("type") == LANGUAGE_MODELING_LOADER:
        return new if "batches_per_epoch" in loader else None
    new.pop("drop_last", None)
    sampler = new.get("batch_sampler")
    if isinstance(sampler, dict) and sampler.get("type") == "bucket":
        sampler = {k: v for k, v in sampler.items() if k != "drop_last"}
        new["batch_sampler"] = {**sampler, "shuffle": False}
    return new if new != loader else None


def overridden_loader(
    loader: Any,
    new_path: str,
    override: Any,
    path: str,
    *,
    language_modeling: bool,
    changes: Changes,
) -> Dict[str, Any]:
    """
    A modern data loader under an old iterator's override.

    # Parameters

    loader : `Any`
        The data loader's config, or `None`.
    new_path : `str`
        Its dotted key.
    override : `Any`
        What the user says of the iterator.
    path : `str`
        The dotted key that the user calls it by.
    language_modeling : `bool`
        Whether a language model reads sentences with it.
    changes : `Changes`

    # Raises

    `ConfigurationError`
        If the data loader is of a kind that the override can't be applied to, or a key has no
        meaning.
    """
    flat = flattened_iterator(override, path)
    kind = loader.get("type", "multiprocess") if isinstance(loader, dict) else None
    if kind == LANGUAGE_MODELING_LOADER:
        said = {key: value for key, value in loader.items() if key in LANGUAGE_MODELING_KEYS}
        kept = {k: v for k, v in loader.items() if k != "type" and k not in said}
        batching = Batching(**said, kept=kept)
        batching.update(flat, changes)
        new = batching.language_modeling_loader(flat, changes)
    elif kind in (None, "multiprocess", "simple"):
        batching = _stock_batching(loader or {}, new_path)
        had_limit = batching.max_tokens is not None
        batching.update(flat, changes)
        both = "batch_size" in flat and batching.max_tokens is not None
        if language_modeling and batching.max_tokens is not None and (both or not had_limit):
            for key in batching.kept.keys() - {"type", "quiet"}:
                reason = "the data loader language_modeling has no such key"
                changes.dropped(f"{new_path}.{key}", batching.kept.pop(key), reason)
            batching.kept.pop("type", None)
            new = batching.language_modeling_loader(flat, changes)
        else:
            new = batching.stock_loader(flat, changes)
            if kind == "simple":
                for key in set(new) - {
                    "type",
                    "batch_size",
                    "shuffle",
                    "batches_per_epoch",
                    "quiet",
                }:
                    not_understood(
                        path, override, f"{new_path}.type is simple, which has no {key}."
                    )
    else:
        not_understood(
            path,
            override,
            f"it can't be applied to {new_path}.type = {kind}. Override {new_path} itself.",
        )
    changes.moved(path, override, new_path, new)
    return new


def _stock_batching(loader: Dict[str, Any], path: str) -> Batching:
    loader = dict(loader)
    sampler = loader.pop("batch_sampler", None)
    sampler = {"type": sampler} if isinstance(sampler, str) else dict(sampler or {})
    kind = sampler.pop("type", None)
    if kind not in (None, "bucket", "max_tokens_sampler"):
        not_understood(
            f"{path}.batch_sampler.type", kind, "an iterator's override can't be applied to it."
        )
    said = {**loader, **sampler}
    batching = Batching(
        bucketed=kind is not None,
        batch_size=said.pop("batch_size", None) or OLD_BATCH_SIZE,
        shuffle=said.pop("shuffle", kind is not None),
    )
    for key in (
        "max_tokens",
        "sorting_keys",
        "padding_noise",
        "drop_last",
        "max_instances_in_memory",
        "batches_per_epoch",
        "num_workers",
    ):
        if said.get(key) is not None:
            setattr(batching, key, said[key])
        said.pop(key, None)
    batching.kept = said
    return batching
