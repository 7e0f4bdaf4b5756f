"""A value of a wrong type or a misspelled key in a config is one message that names it."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any, Dict

import pytest
from allennlp.commands.train import train_model
from allennlp.common import Params

from tests.plugin.launched import write_config
from tests.small_lm import model_config
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin.compat.shown_errors import message_of
from transformer_elmo.plugin.compat.wrong_values import check_config

STRINGS = "expected a list (a string each)"
COUNTED = {"type": "from_corpus", "data_path": "none"}
ADAM = {"type": "dense_sparse_adam"}
CHARACTERS = "model.text_field_embedder.token_embedders.token_characters"


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """What the command line shows of a config with a change."""
    monkeypatch.chdir(tmp_path)
    base = json.loads(write_config(tmp_path, model=model_config(num_samples=None)).read_text())
    for folder, word in (("counted", "cat\t12"), ("spaced", "cat ")):
        shutil.copytree("vocabulary", folder)
        Path(folder, "tokens.txt").write_text(f"@@UNKNOWN@@\n{word}\n")

    def show(key, value):
        config = copy.deepcopy(base)
        section, (*above, last) = config, key.split(".")
        for name in above:
            section = section[name]
        section[last] = value
        if value == "reduce_on_plateau":
            del config["validation_data_path"]
        with pytest.raises(Exception) as error:
            train_model(Params(config), "run")
        return message_of(error.value)

    return show


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("model.dropout", "a", "model.dropout: expected a number, got 'a'."),
        ("model.num_samples", True, "model.num_samples: expected an integer, got True."),
        ("model.precision", None, "model.precision: expected a string, got None."),
        ("model.contextualizer.num_layers", 2.5, "num_layers: expected an integer, got 2.5."),
        ("dataset_reader.start_tokens", "<S>", f"start_tokens: {STRINGS}, got '<S>'."),
        ("dataset_reader.end_tokens", "['</S>']", f"{STRINGS} without quotes, got"),
        ("dataset_reader.end_tokens", [3], "end_tokens.0: expected a string, got 3."),
        ("vocabulary", {**COUNTED, "tokens_to_add": {"tokens": "cat"}}, f"add.tokens: {STRINGS}"),
        ("trainer.optimizer", {**ADAM, "parameter_groups": [["x", {}]]}, f"groups.0.0: {STRINGS}"),
        ("trainer.optimizer", {**ADAM, "betas": [0.9]}, "betas: expected a list of 2, got [0.9]."),
        ("trainer.optimizer", {"type": "adam", "lr": "high"}, "optimizer.lr: expected a number"),
        ("trainer.max_bad_steps", 0, "trainer.max_bad_steps: expected at least 1, got 0."),
        ("trainer", None, "trainer: expected an object, got None."),
        ("trainer.callbacks", ["resume"], "callbacks.0.type resume: there is no such name"),
        ("dataset_reader.type", "language_modeling", "Is it simple_language_modeling?"),
        ("distributed", 3, "distributed: expected an object, got 3."),
        ("train_data", "x", "train_data: there is no such key. Is it train_data_path?"),
        ("model.contextualizer.num_layer", 8, "contextualizer.num_layer: there is no such key. Is"),
        # What only a class knows.
        (f"{CHARACTERS}.encoder.filters", [[1]], f"{CHARACTERS}.encoder: no CnnHighwayEncoder"),
        ("model.contextualizer.num_layers", 0, "model.contextualizer: num_layers must be at le"),
        # What only the first step tells.
        (f"{CHARACTERS}.encoder.embedding_dim", 4, f"{CHARACTERS}: no step can be made with it: "),
        ("vocabulary.directory", "counted", "entry 2, 'cat\\t12', is none that a word of the"),
        ("vocabulary.directory", "spaced", "entry 2, 'cat ', is none that a word of the"),
        # What AllenNLP finds out after the first epoch.
        ("trainer.learning_rate_scheduler", "reduce_on_plateau", "looks at a metric of validation"),
        ("trainer.validation_metric", "+accuracy", "no metric 'accuracy'. Expected some of loss, "),
        ("trainer.cuda_device", 0, "For the CPU, say -1"),
    ],
)
def test_what_is_shown(shown, key, value, expected):
    message = shown(key, value)
    assert message is not None and "Traceback" not in message and message.count("\n") <= 2
    assert expected in message


@pytest.mark.parametrize("name", ["language_model", "bidirectional_lm"])
def test_another_s_model_is_checked_where_it_is_ours(name):
    embedders: Dict[str, Any] = {}
    config = {
        "dataset_reader": {"type": "sequence_tagging"},
        "model": {"type": "simple_tagger", "text_field_embedder": {"token_embedders": embedders}},
        "trainer": {"optimizer": {"type": "adam", "lr": "high", "no_key": 1}},
    }
    check_config(config)
    for given in ("<>", ["<S>"], ["<S>", "</S>", "<S>"]):
        embedders["lm"] = {"type": f"{name}_token_embedder", "bos_eos_tokens": given}
        with pytest.raises(ConfigurationError, match=r"lm\.bos_eos_tokens: expected a list"):
            check_config(config)
