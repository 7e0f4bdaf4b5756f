"""Overrides of a model that is opened; those of any config are in golden/overrides.json."""

from transformer_elmo.pretrained.legacy import shared_with_validation


def test_what_is_said_of_the_data_loader_is_meant_for_the_one_evaluation_uses():
    reader = {"type": "simple_language_modeling"}
    ours = {"type": "language_modeling", "max_tokens": 50}
    config = {
        "dataset_reader": reader,
        "model": {"type": "bidirectional_language_model"},
        "data_loader": ours,
        "validation_data_loader": {**ours, "shuffle": False},
    }
    dotted = {"data_loader.max_tokens": 7}
    assert shared_with_validation(config, dotted) == {
        **dotted,
        "validation_data_loader.max_tokens": 7,
    }
    for overrides in (
        {"trainer.num_epochs": 1},
        {"data_loader.max_tokens": 7, "validation_data_loader.max_tokens": 8},
    ):
        assert shared_with_validation(config, overrides) == overrides

    # Where there is no place for it in the other loader, it is for the first alone.
    other = {**config, "validation_data_loader": {"batch_size": 8}}
    sampler = {"type": "bucket", "batch_size": 2}
    for alone in (
        {"data_loader.batch_sampler.max_tokens": 9},
        {"data_loader.batch_sampler": sampler},
    ):
        assert shared_with_validation(other, alone) == alone

    # Models of other kinds are AllenNLP's own matter.
    tagger = {
        **config,
        "dataset_reader": {"type": "sequence_tagging"},
        "model": {"type": "simple_tagger"},
        "data_loader": {"batch_sampler": {"type": "bucket", "batch_size": 4}},
        "validation_data_loader": {"batch_size": 4},
    }
    overrides = {"data_loader.batch_sampler.batch_size": 2}
    assert shared_with_validation(tagger, overrides) == overrides
