"""Configs that AllenNLP and allennlp-models evaluate by themselves, without this package."""

from typing import Any

from transformer_elmo.pretrained.legacy.iterators import (
    add_evaluation_loader,
    of_language_modeling_loader,
)
from transformer_elmo.pretrained.legacy.own_names import with_stock_names
from transformer_elmo.pretrained.legacy.report import Change, Report, as_object, refuse
from transformer_elmo.pretrained.legacy.sections import (
    ITERATORS,
    LANGUAGE_MODELING_LOADER,
    LANGUAGE_MODELS,
    READERS,
    reader_key,
    type_of,
)

# What AllenNLP and allennlp-models have nothing for, and why it isn't missed or what becomes of it.
_NEEDLESS = {"distinct_words": "every word of a batch is encoded, with the same result"}
_DROPPED = {"seed": "random_seed is the seed of AllenNLP's loaders"}
_DROPPED_OF_MODEL = {
    "precision": "allennlp-models computes in float32",
    "compile": "allennlp-models doesn't compile",
}
_KEEPS_LONG = "keep_long_sentences"


def without_this_package(config: dict[str, Any]) -> tuple[dict[str, Any], list[Change]]:
    """
    A modern config, which isn't changed, with AllenNLP's data loaders in place of those of type
    "language_modeling", the language model's type as allennlp-models has it, and without keys that
    only this package's model has. Returns it and the changes. Raises `ConfigurationError` if a
    loader's batches have no such form, or the model computes what allennlp-models can't.
    """
    new, renamed = with_stock_names(config)
    report = Report(changes=renamed)
    if type_of(new.get("model")) in LANGUAGE_MODELS and isinstance(new["model"], dict):
        _make_model_stock(new["model"], report)
    if type_of(config.get("evaluation")) == LANGUAGE_MODELING_LOADER:
        report.dropped("evaluation", new.pop("evaluation"), "AllenNLP takes means of batches")
    for key in ITERATORS.values():
        if type_of(config.get(key)) == LANGUAGE_MODELING_LOADER:
            new[key] = _stock_loader(new, key, report)
    loader, validation_loader = ITERATORS.values()
    if new.get(loader) != config.get(loader) and validation_loader not in new:
        add_evaluation_loader(new, report)
    return new, report.changes


def _make_model_stock(model: dict[str, Any], report: Report) -> None:
    kind = model["type"]
    if kind == "bidirectional_language_model":
        model["type"] = "bidirectional-language-model"
        reason = "allennlp-models has no other name for it"
        report.moved("model.type", kind, "model.type", model["type"], reason)
    report.drop_keys(model, "model", _DROPPED_OF_MODEL)
    contextualizer, path = model.get("contextualizer"), "model.contextualizer"
    if isinstance(contextualizer, dict):
        activation = contextualizer.get("activation")
        if activation not in ("relu", None):
            refuse(f"{path}.activation", activation, "allennlp-models has no other than relu.")
        reason = "allennlp-models has no other"
        report.drop_keys(contextualizer, path, {"activation": reason}, lost=False)


def _stock_loader(config: dict[str, Any], key: str, report: Report) -> dict[str, Any]:
    """The loader that takes the place of the one at `key`. It may need another reader."""
    old = as_object(config[key], key)
    loader = dict(old)
    report.drop_keys(loader, key, _NEEDLESS, lost=False)
    report.drop_keys(loader, key, _DROPPED)
    if loader.pop(_KEEPS_LONG, False):
        _keep_long_sentences(config, key, report)
    stock = of_language_modeling_loader(loader, key).loader(report)
    report.moved(key, old, key, stock)
    return stock


def _keep_long_sentences(config: dict[str, Any], key: str, report: Report) -> None:
    """What one of our loaders does by itself takes a reader without a limit in AllenNLP."""
    reader = config.get(reader_key(config, key))
    path = f"{key}.{_KEEPS_LONG}"
    if not isinstance(reader, dict) or reader.get("max_sequence_length") is None:
        report.needless(path, True, "no sentence is too long")
    elif key == ITERATORS["validation_iterator"]:
        unlimited = {k: v for k, v in reader.items() if k != "max_sequence_length"}
        config[READERS[1]] = unlimited
        report.moved(path, True, READERS[1], unlimited, "it has no max_sequence_length")
    else:
        reason = "AllenNLP's loader reads what the reader's max_sequence_length lets through"
        report.dropped(path, True, reason)
