import importlib.util

import pytest
from allennlp.common import Params
from allennlp.training.callbacks import TrainerCallback

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin.compat import optional_packages


def make(folder):
    config = {"type": "wandb", "project": "p"}
    return TrainerCallback.from_params(Params(config), serialization_dir=str(folder))


def test_wandb_is_missed_before_training_begins(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(optional_packages, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="pip install wandb"):
        make(tmp_path)
    monkeypatch.setattr(optional_packages, "find_spec", lambda name: importlib.util)
    assert make(tmp_path)._wandb_kwargs["project"] == "p"
