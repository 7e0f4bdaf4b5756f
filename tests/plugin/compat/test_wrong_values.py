"""A value of a wrong type or a misspelled key in a config is one message that names it."""

import copy

import pytest
from allennlp.commands.train import TrainModel
from allennlp.common import Params
from allennlp.modules import TokenEmbedder

from tests.small_lm import WORDS, experiment_config
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin.compat.shown_errors import message_of

STRINGS = "expected a list (a string each)"
COUNTED = {"type": "from_corpus", "data_path": "none"}
ADAM = {"type": "dense_sparse_adam"}
EMBEDDER = "model.text_field_embedder.token_embedders.token_characters"


@pytest.fixture
def shown(tmp_path):
    """What the command line shows of a config with a change."""
    (tmp_path / "train.txt").write_text("the cat sat\n")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "tokens.txt").write_text("\n".join(["@@UNKNOWN@@", *WORDS]))
    (tmp_path / "words" / "non_padded_namespaces.txt").write_text("*labels\n")
    base = experiment_config(
        train_data_path=str(tmp_path / "train.txt"),
        vocabulary={"type": "from_files", "directory": str(tmp_path / "words")},
    )
    base["trainer"]["cuda_device"] = -1

    def show(key, value):
        config = copy.deepcopy(base)
        section, (*above, last) = config, key.split(".")
        for name in above:
            section = section[name]
        section[last] = value
        with pytest.raises(Exception) as error:
            TrainModel.from_params(
                params=Params(config), serialization_dir=str(tmp_path / "run"), local_rank=0
            )
        return message_of(error.value)

    return show


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("model.dropout", "a", "model.dropout: expected a number, got 'a'."),
        ("model.num_samples", [8], "model.num_samples: expected an integer, got [8]."),
        ("model.precision", 3, "model.precision: expected a string, got 3."),
        ("model.precision", None, "model.precision: expected a string, got None."),
        ("model.contextualizer.dropout", None, "model.contextualizer.dropout: expected a number"),
        ("model.contextualizer.num_layers", {}, "num_layers: expected an integer, got {}."),
        ("model.contextualizer.num_layers", 2.5, "num_layers: expected an integer, got 2.5."),
        ("data_loader.max_tokens", "x", "data_loader.max_tokens: expected an integer"),
        ("dataset_reader.max_sequence_length", "x", "max_sequence_length: expected an integer"),
        ("dataset_reader.start_tokens", 3, "start_tokens: expected"),
        (
            "dataset_reader.start_tokens",
            "<S>",
            f"dataset_reader.start_tokens: {STRINGS}, got '<S>'.",
        ),
        ("dataset_reader.end_tokens", "['</S>']", "Leave out the quotes around the list."),
        ("dataset_reader.end_tokens", {"</S>": 1}, f"dataset_reader.end_tokens: {STRINGS}, got {{"),
        ("vocabulary", {**COUNTED, "start_tokens": "<S>"}, f"vocabulary.start_tokens: {STRINGS}"),
        ("vocabulary", {**COUNTED, "non_padded_namespaces": "*tags"}, "_namespaces: expected a"),
        ("vocabulary", {**COUNTED, "tokens_to_add": {"tokens": "cat"}}, f"add.tokens: {STRINGS}"),
        (f"{EMBEDDER}.encoder.filters", "[[1, 8], [2, 8]]", "encoder.filters|CnnHighwayEncoder"),
        (
            "trainer.optimizer",
            {**ADAM, "parameter_groups": [["softmax", {}]]},
            f"groups.0.0: {STRINGS}",
        ),
        (
            "trainer.optimizer",
            {**ADAM, "parameter_groups": "softmax"},
            "_groups: expected a list, got",
        ),
        ("trainer.optimizer", {**ADAM, "betas": [0.9]}, "betas: expected a list of 2, got [0.9]."),
        ("trainer.optimizer", {**ADAM, "betas": [0.9, 0.99, 0.999]}, "betas: expected a list of 2"),
        ("trainer.optimizer", {**ADAM, "lr": "x"}, "lr: expected a number"),
        ("trainer.num_epochs", "x", "trainer.num_epochs: expected an integer, got 'x'."),
        ("model.num_sample", 8, "model.num_sample: there is no such key. Is it num_samples?"),
        ("model.contextualizer.num_layer", 8, "contextualizer.num_layer: there is no such key. Is"),
        ("data_loader.max_token", 8, "data_loader.max_token: there is no such key. Is it max_tok"),
        ("dataset_reader.start_token", [], "start_token: there is no such key. Is it start_tokens"),
        (f"{EMBEDDER}.encoder.filters", 3, "cnn-highway|CnnHighwayEncoder|filters"),
        (f"{EMBEDDER}.encoder.activation", "gelus", "gelus"),
        (f"{EMBEDDER}.embedding.num_embeddings", -3, "num_embeddings|Embedding can be built"),
    ],
)
def test_what_is_shown(shown, key, value, expected):
    message = shown(key, value)
    assert message is not None and "Traceback" not in message and message.count("\n") <= 2
    assert any(part in message for part in expected.split("|")), message


@pytest.mark.parametrize("embedder", ["language", "bidirectional"])
def test_a_string_for_two(embedder):
    name = {"language": "language_model", "bidirectional": "bidirectional_lm"}[embedder]
    config = {"type": f"{name}_token_embedder", "archive_file": "none", "dropout": 0.0}
    for given in ("<>", ["<S>"], ["<S>", "</S>", "<S>"]):
        with pytest.raises(ConfigurationError, match=r"^bos_eos_tokens: expected a list"):
            TokenEmbedder.from_params(Params({**config, "bos_eos_tokens": given}))


def test_a_gpu_that_is_not_there(shown):
    message = shown("trainer.cuda_device", 0)
    assert message is not None and message.count("\n") == 0
    assert "For the CPU, say -1" in message
