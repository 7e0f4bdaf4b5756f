"""Whole configs of AllenNLP 0.x, and what they are in AllenNLP 2."""

import copy
from typing import Any, Collection, Dict, Iterator, List, Optional, Tuple

from transformer_elmo.legacy.changes import Change, Changes, not_understood
from transformer_elmo.legacy.data import (
    KNOWN_READERS,
    LANGUAGE_MODELING_READER,
    check_boundaries,
    is_old_indexer,
    is_old_tokenizer,
    modern_reader,
    modern_vocabulary,
)
from transformer_elmo.legacy.loaders import data_loader, evaluation_loader, flattened_iterator
from transformer_elmo.legacy.model import (
    LANGUAGE_MODELS,
    has_similarity_function,
    is_old_applicator,
    is_old_embedder,
    is_old_name,
    modern_model,
)
from transformer_elmo.legacy.trainer import is_old_trainer, modern_trainer

READERS = ("dataset_reader", "validation_dataset_reader")
ITERATORS = {"iterator": "data_loader", "validation_iterator": "validation_data_loader"}

# Everything that AllenNLP 2's commands look for at the top of a config.
TOP_LEVEL_KEYS = {
    *READERS,
    *ITERATORS.values(),
    "type",
    "train_data_path",
    "validation_data_path",
    "test_data_path",
    "evaluate_on_test",
    "datasets_for_vocab_creation",
    "batch_weight_key",
    "vocabulary",
    "model",
    "trainer",
    "distributed",
    "ddp_accelerator",
    "evaluation",
    "include_in_archive",
    "random_seed",
    "numpy_seed",
    "pytorch_seed",
}


def is_experiment(config: Any) -> bool:
    """Whether `config` describes a model and its data, rather than being some other JSON file."""
    return isinstance(config, dict) and "model" in config and "dataset_reader" in config


def old_signs(config: Dict[str, Any]) -> List[str]:
    """
    # Returns

    `List[str]`
        The dotted keys that only AllenNLP 0.x could have understood. None: the config isn't old.
    """
    return list(_signs(config))


def _signs(config: Dict[str, Any]) -> Iterator[str]:
    yield from (key for key in ITERATORS if key in config)
    vocabulary = config.get("vocabulary")
    if isinstance(vocabulary, dict) and vocabulary.get("type", "default") in (
        "default",
        "from_files",
    ):
        yield from (f"vocabulary.{k}" for k in ("directory_path", "extend") if k in vocabulary)
    for key in READERS:
        yield from _reader_signs(config.get(key), key)
    if has_similarity_function(config.get("model")):
        yield "model.similarity_function"
    yield from _model_signs(config.get("model"), "model")
    if is_old_trainer(config.get("trainer")):
        yield "trainer"


def _reader_signs(reader: Any, path: str) -> Iterator[str]:
    if not isinstance(reader, dict):
        return
    if reader.get("type") == "multiprocess":
        yield f"{path}.type"
    if "lazy" in reader and reader.get("type") in KNOWN_READERS:
        yield f"{path}.lazy"
    yield from _reader_signs(reader.get("base_reader"), f"{path}.base_reader")
    for key, value in reader.items():
        yield from _part_signs(key, value, f"{path}.{key}")


def _part_signs(key: str, value: Any, path: str) -> Iterator[str]:
    if is_old_tokenizer(key, value) or is_old_indexer(key, value):
        yield path
    elif isinstance(value, dict) and key != "base_reader":
        for k, v in value.items():
            yield from _part_signs(k, v, f"{path}.{k}")


def _model_signs(part: Any, path: str) -> Iterator[str]:
    if isinstance(part, list):
        for i, value in enumerate(part):
            yield from _model_signs(value, f"{path}.{i}")
    if not isinstance(part, dict):
        return
    for key, value in part.items():
        key_path = f"{path}.{key}"
        if is_old_name(key, value) or is_old_applicator(key, value) or is_old_embedder(key, value):
            yield key_path
        yield from _model_signs(value, key_path)


def reads_sentences(config: Dict[str, Any], key: str) -> bool:
    """
    Whether a language model reads plain sentences, so that the `language_modeling` data loader can
    serve it.

    # Parameters

    config : `Dict[str, Any]`
        A modern config.
    key : `str`
        `data_loader`, or `validation_data_loader`, which serves the validation reader if there is
        one.
    """
    model = config.get("model")
    model_type = model.get("type") if isinstance(model, dict) else model
    reader = config.get("dataset_reader")
    if key == ITERATORS["validation_iterator"]:
        reader = config.get("validation_dataset_reader", reader)
    reader_type = reader.get("type") if isinstance(reader, dict) else reader
    return model_type in LANGUAGE_MODELS and reader_type == LANGUAGE_MODELING_READER


def modernize(
    config: Dict[str, Any], overridden: Collection[str] = ()
) -> Tuple[Dict[str, Any], List[Change]]:
    """
    Turns an AllenNLP 0.x config into the AllenNLP 2 config that means the same.

    # Parameters

    config : `Dict[str, Any]`
        It isn't changed. One with nothing old in it comes back as it is, the same object.
    overridden : `Collection[str]`, optional (default = `()`)
        Dotted keys that come from an override: these must have an effect.

    # Returns

    `Tuple[Dict[str, Any], List[Change]]`
        The modern config, and what was changed.

    # Raises

    `ConfigurationError`
        If a key can't be understood, or an override has no meaning; it names the dotted key.
    """
    if not old_signs(config):
        return config, []
    changes = Changes(overridden)
    old = copy.deepcopy(config)
    for key in old:
        if key not in TOP_LEVEL_KEYS and key not in ITERATORS and "type" not in old:
            not_understood(key, old[key], "a config has no such key.")

    readers: Dict[str, Tuple[Any, bool]] = {}
    for key in READERS:
        if key in old:
            readers[key] = modern_reader(old[key], key, changes)
            check_boundaries(readers[key][0], key)
    parts: Dict[str, Any] = {key: reader for key, (reader, _) in readers.items()}
    if isinstance(old.get("vocabulary"), dict):
        parts["vocabulary"] = modern_vocabulary(old["vocabulary"], changes)
    if "model" in old:
        named = [reader for reader, _ in readers.values() if isinstance(reader, dict)]
        parts["model"] = modern_model(old["model"], named, changes)

    trainer = modern_trainer(old.get("trainer"), _batch_size(old), changes)
    if "trainer" in old:
        parts["trainer"] = trainer.config
    loaders: Dict[str, Any] = {}
    for key, new_key in ITERATORS.items():
        if key not in old:
            continue
        if new_key in old or old[key] is None:
            reason = f"there is a {new_key}" if new_key in old else "it says nothing"
            changes.needless(key, old[key], reason)
            continue
        reader_key = (
            READERS[1] if key == "validation_iterator" and READERS[1] in readers else READERS[0]
        )
        loaders[new_key] = data_loader(
            old[key],
            key,
            new_key,
            language_modeling=reads_sentences({**old, **parts}, new_key),
            lazy=readers[reader_key][1] if reader_key in readers else False,
            shuffle=trainer.shuffle and key == "iterator",
            slow_words=not _splits_at_spaces(readers.get(reader_key, ({}, False))[0]),
            changes=changes,
        )
    if "data_loader" in loaders and "validation_data_loader" not in {*old, *loaders}:
        evaluation = evaluation_loader(loaders["data_loader"])
        if evaluation is not None:
            loaders["validation_data_loader"] = evaluation
            changes.added(
                "validation_data_loader", evaluation, "what isn't trained on is read once, in order"
            )
    if trainer.shuffle is False and isinstance(old.get("data_loader"), dict):
        parts["data_loader"] = {**old["data_loader"], "shuffle": False}

    new: Dict[str, Any] = {}
    for key, value in old.items():
        if key in ITERATORS:
            if ITERATORS[key] in loaders:
                new[ITERATORS[key]] = loaders.pop(ITERATORS[key])
            if "validation_data_loader" in loaders and old.get("validation_iterator") is None:
                new["validation_data_loader"] = loaders.pop("validation_data_loader")
        elif key in parts:
            if parts[key] is not None:
                new[key] = parts[key]
        else:
            new[key] = value
    if trainer.cuda_devices is not None:
        new.setdefault("distributed", {"cuda_devices": trainer.cuda_devices})
    return new, changes.made


def _batch_size(old: Dict[str, Any]) -> Optional[int]:
    """How many instances a batch has, where all have the same number."""
    loader = old.get("data_loader")
    if isinstance(loader, dict):
        sampler = loader.get("batch_sampler")
        size = (sampler if isinstance(sampler, dict) else loader).get("batch_size")
    elif old.get("iterator") is not None:
        flat = flattened_iterator(old["iterator"], "iterator")
        size = None if "maximum_samples_per_batch" in flat else flat.get("batch_size", (32, ""))[0]
    else:
        size = None
    return size if isinstance(size, int) else None


def _splits_at_spaces(reader: Any) -> bool:
    tokenizer = reader.get("tokenizer") if isinstance(reader, dict) else None
    kind = tokenizer.get("type") if isinstance(tokenizer, dict) else tokenizer
    return kind in ("just_spaces", "whitespace")
