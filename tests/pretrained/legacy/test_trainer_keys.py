"""Misspelled keys of a modern trainer, which AllenNLP 2 would ignore."""

import inspect

import pytest
from allennlp.commands.train import train_model_from_file
from allennlp.models.archival import load_archive
from allennlp.training import GradientDescentTrainer

from tests.small_lm import experiment_config, write_archive
from transformer_elmo import TransformerElmo
from transformer_elmo.commands.convert import convert
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.pretrained.legacy import check_trainer_keys
from transformer_elmo.pretrained.legacy.trainer import TRAINER_KEYS


def test_the_known_keys_are_allennlps():
    parameters = inspect.signature(GradientDescentTrainer.from_partial_objects).parameters
    given = {"model", "serialization_dir", "data_loader", "validation_data_loader", "kwargs"}
    # Its constructor still looks for the second of these in its `kwargs`.
    theirs = (set(parameters) - given) | {"type", "run_sanity_checks"}
    assert theirs | {"max_bad_steps"} == TRAINER_KEYS


@pytest.mark.parametrize("kind", [{}, {"type": "gradient_descent"}])
@pytest.mark.parametrize(
    ("key", "advice"), [("num_epoch", r"Is it num_epochs\?"), ("zzz", r"ignore it\.")]
)
def test_a_misspelled_key(kind, key, advice):
    message = rf"^a\.b\.{key} = 3: a trainer has no such key, .*{advice}$"
    with pytest.raises(ConfigurationError, match=message):
        check_trainer_keys({**kind, "optimizer": "adam", key: 3}, "a.b")
    check_trainer_keys({"type": "mine", key: 3})


def test_a_trainer_made_of_callbacks(tmp_path, make_model):
    """Nothing is trained by it; what it trained opens."""
    config = experiment_config(trainer={"type": "callback", "callbacks": ["validate"]})
    config["iterator"] = {"type": "basic", "batch_size": 2}
    del config["data_loader"]
    path = write_archive(tmp_path, config, make_model())
    assert TransformerElmo.open(path).dim and load_archive(path).model.vocab
    for use in (train_model_from_file, convert):
        with pytest.raises(ConfigurationError, match=r'trainer\.type = "callback": write its'):
            use(tmp_path / "config.json", tmp_path / "new.json")
