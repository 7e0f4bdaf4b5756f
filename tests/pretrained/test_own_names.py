"""Our variants of AllenNLP's parts: for language models, and for models with one in them."""

import json

import pytest

from transformer_elmo.pretrained.archive import own_names
from transformer_elmo.pretrained.legacy.own_names import with_stock_names

LM = {"type": "bidirectional-language-model"}
TAGGER = {"type": "simple_tagger"}


def config_of(model, spacy="spacy", from_files="from_files"):
    return {
        "dataset_reader": {
            "type": "multitask",
            "readers": [{"tokenizer": {"type": spacy, "pos_tags": False}}],
            "source_tokenizer": spacy,
            "target_tokenizer": {"type": "just_spaces"},
            "token_indexers": {"c": {"type": "characters", "character_tokenizer": {}}},
        },
        "vocabulary": {"type": from_files, "directory": "words"},
        "spacy": "from_files",
        "model": model,
    }


@pytest.mark.parametrize(
    "model",
    [
        LM,
        {**TAGGER, "elmo": {"type": "language_model_token_embedder"}},
        {"type": "from_pretrained_lm", "archive_file": "a"},
    ],
)
def test_there_and_back(model):
    new = own_names(config_of(model))
    assert new == config_of(model, "lm_spacy", "lm_from_files") == own_names(new)
    stock, changes = with_stock_names(new)
    assert stock == config_of(model)
    assert {change.path for change in changes} == {
        "dataset_reader.readers.0.tokenizer",
        "dataset_reader.source_tokenizer",
        "vocabulary",
    }


@pytest.mark.parametrize(
    "model", [TAGGER, "simple_tagger", None, {"type": "from_archive", "archive_file": "none"}]
)
def test_others_are_left_alone(model):
    config = config_of(model)
    assert own_names(config) is config


def test_the_default_tokenizer_of_a_model_that_began_as_another(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"dataset_reader": {}, "model": LM}))
    model = {"type": "from_archive", "archive_file": str(tmp_path)}
    config = own_names({"dataset_reader": {"tokenizer": {"pos_tags": False}}, "model": model})
    assert config["dataset_reader"]["tokenizer"] == {"type": "lm_spacy", "pos_tags": False}
