"""Configs that allennlp-models evaluates without this package."""

import copy

import pytest
from allennlp.common import Params
from allennlp.data import DataLoader, DatasetReader, Vocabulary

from tests.small_lm import model_config, reader_config, with_squared_relu
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.pretrained.legacy import without_this_package

# `language_modeling` as the shipped configs have it.
OURS = {
    "dataset_reader": reader_config(),
    "data_loader": {"type": "language_modeling", "max_tokens": 200, "distinct_words": True},
    "validation_data_loader": {
        "type": "language_modeling",
        "max_tokens": 100,
        "shuffle": False,
        "keep_long_sentences": True,
    },
    "model": {**model_config(), "precision": "bfloat16"},
}


def converted(**changes):
    config = {**copy.deepcopy(OURS), **changes}
    before = copy.deepcopy(config)
    new, changed = without_this_package(config)
    assert config == before
    return new, {change.path: change for change in changed}


def test_loaders_and_model_become_allennlps():
    new, changes = converted()
    assert new["data_loader"] == {
        "batch_sampler": {"type": "max_tokens_sampler", "max_tokens": 200}
    }
    assert new["validation_data_loader"] == {
        "batch_sampler": {"type": "max_tokens_sampler", "max_tokens": 100}
    }
    assert new["model"]["type"] == "bidirectional-language-model"
    assert "precision" not in new["model"] and changes["model.precision"].dropped
    # Long sentences are kept by the reader instead.
    limited, unlimited = new["dataset_reader"], new["validation_dataset_reader"]
    assert "max_sequence_length" not in unlimited
    assert {**unlimited, "max_sequence_length": 400} == limited == reader_config()


def test_an_activation_that_is_ours_alone():
    model = with_squared_relu()
    with pytest.raises(ConfigurationError, match=r"contextualizer\.activation.*no other than relu"):
        converted(model=model)
    model["contextualizer"]["activation"] = "relu"
    new, changes = converted(model=model)
    assert "activation" not in new["model"]["contextualizer"]
    assert not changes["model.contextualizer.activation"].dropped


def test_what_is_lost_is_told():
    loader = {"type": "language_modeling", "batch_size": 7, "seed": 3, "keep_long_sentences": True}
    new, changes = converted(
        data_loader=loader, validation_data_loader=None, evaluation={"type": "language_modeling"}
    )
    assert new["data_loader"] == {"batch_sampler": {"type": "bucket", "batch_size": 7}}
    assert "evaluation" not in new
    lost = {path for path, change in changes.items() if change.dropped}
    assert lost >= {"data_loader.seed", "data_loader.keep_long_sentences", "evaluation"}


def test_evaluation_reads_everything_once():
    loader = {"type": "language_modeling", "max_tokens": 50, "batches_per_epoch": 3}
    config = {key: value for key, value in OURS.items() if key != "validation_data_loader"}
    new, _ = without_this_package({**config, "data_loader": loader})
    assert new["data_loader"]["batches_per_epoch"] == 3
    assert "batches_per_epoch" not in new["validation_data_loader"]


def test_others_stay_what_they_are():
    config = {"model": {"type": "simple_tagger"}, "data_loader": {"batch_size": 3}}
    assert without_this_package(config) == (config, [])
    with pytest.raises(ConfigurationError, match="expected a whole number"):
        without_this_package(
            {**OURS, "data_loader": {"type": "language_modeling", "batch_size": "x"}}
        )


def test_the_loader_loads(tmp_path):
    (tmp_path / "text.txt").write_text("the dog ran\n" * 40 + "the cat " * 60 + "\n")
    new, _ = converted()
    loader = DataLoader.from_params(
        Params(new["validation_data_loader"]),
        reader=DatasetReader.from_params(Params(new["validation_dataset_reader"])),
        data_path=str(tmp_path / "text.txt"),
    )
    loader.index_with(Vocabulary())
    sizes = [len(batch["source"]["tokens"]["tokens"]) for batch in loader]
    assert sum(sizes) == 41 and len(sizes) > 2
