"""The shipped downstream configs, trained for an epoch over small language models."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from allennlp.commands.train import train_model_from_file
from allennlp.common.checks import ConfigurationError as AllenNLPError
from allennlp.models.archival import load_archive

from tests.small_lm import DIM

CONFIGS = Path(__file__).parent.parent / "training_config"

TAGGED = [
    "the###D dog###N ran###V .###.",
    "a###D cat###N sat###V on###P the###D mat###N .###.",
    "birds###N flew###V",
]
TREES = """
(S (NP (DT the) (NN dog)) (VP (VBD ran) (PP (IN under) (NP (DT a) (NN tree)))) (. .))
(S (NP (NNS birds)) (VP (VBD flew)))
(S (NP (DT a) (NN cat)) (VP (VBD sat)))
"""


@pytest.fixture
def data(tmp_path, monkeypatch, lm_archive):
    (tmp_path / "tagged").write_text("\n".join(TAGGED) + "\n")
    (tmp_path / "trees").write_text(TREES)
    for prefix, name in (("TAGGER", "tagged"), ("PTB", "trees")):
        for part in ("TRAIN", "VALIDATION"):
            monkeypatch.setenv(f"{prefix}_{part}_PATH", str(tmp_path / name))
    monkeypatch.setenv("BIDIRECTIONAL_LM_ARCHIVE_PATH", str(lm_archive))
    return tmp_path


def test_tagger(data):
    overrides = {"model.encoder.input_size": 2 * DIM, "trainer.num_epochs": 2}
    config, output = CONFIGS / "pos_tagger.jsonnet", data / "tagger"
    model = train_model_from_file(config, output, json.dumps(overrides))
    metrics = json.loads((output / "metrics.json").read_text())
    assert 0 <= metrics["best_validation_accuracy"] <= 1

    # It opens again, with the vectors it was trained with.
    reader = load_archive(output / "model.tar.gz").dataset_reader
    reloaded = load_archive(output / "model.tar.gz").model
    assert all(
        torch.equal(tensor, reloaded.state_dict()[name])
        for name, tensor in model.state_dict().items()
    )
    instance = next(iter(reader.read(str(data / "tagged"))))
    assert len(reloaded.forward_on_instance(instance)["tags"]) == 4


def test_tagger_of_the_wrong_size(data):
    with pytest.raises(AllenNLPError, match=f"text field embedding dim.*{2 * DIM} and 1024"):
        train_model_from_file(CONFIGS / "pos_tagger.jsonnet", data / "tagger")


# The parsers' F1 comes from a program that has to be compiled.
WITHOUT_EVALB = {
    "model.evalb_directory_path": None,
    "trainer.validation_metric": "+tag_accuracy",
    "trainer.num_epochs": 1,
}


def test_parser_on_transformer_elmo(data):
    pytest.importorskip("allennlp_models.structured_prediction")
    overrides = {**WITHOUT_EVALB, "model.encoder.input_size": 2 * DIM + 50}
    config = CONFIGS / "constituency_parser_transformer_elmo.jsonnet"
    train_model_from_file(config, data / "parser", json.dumps(overrides))
    metrics = json.loads((data / "parser" / "metrics.json").read_text())
    assert 0 <= metrics["best_validation_tag_accuracy"] <= 1


def write_original_elmo(folder):
    """Options and random weights in the original ELMo's formats, at a hundredth of its size."""
    h5py = pytest.importorskip("h5py")
    generator = np.random.default_rng(0)
    dim, cells, filters = 16, 24, [[1, 4], [2, 8]]
    options = {
        "lstm": {
            "use_skip_connections": True,
            "projection_dim": dim,
            "cell_clip": 3,
            "proj_clip": 3,
            "dim": cells,
            "n_layers": 2,
        },
        "char_cnn": {
            "activation": "relu",
            "filters": filters,
            "n_highway": 1,
            "embedding": {"dim": 4},
            "n_characters": 262,
            "max_characters_per_token": 50,
        },
    }
    (folder / "options.json").write_text(json.dumps(options))
    width = sum(count for _, count in filters)

    def normal(*shape):
        return generator.normal(size=shape, scale=0.1).astype("float32")

    with h5py.File(folder / "weights.hdf5", "w") as file:
        file["char_embed"] = normal(261, 4)
        for number, (size, count) in enumerate(filters):
            file[f"CNN/W_cnn_{number}"] = normal(1, size, 4, count)
            file[f"CNN/b_cnn_{number}"] = normal(count)
        for name in ("W_carry", "W_transform"):
            file[f"CNN_high_0/{name}"] = normal(width, width)
        for name in ("b_carry", "b_transform"):
            file[f"CNN_high_0/{name}"] = normal(width)
        file["CNN_proj/W_proj"] = normal(width, dim)
        file["CNN_proj/b_proj"] = normal(dim)
        for direction in range(2):
            for layer in range(2):
                cell = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
                file[f"{cell}/W_0"] = normal(2 * dim, 4 * cells)
                file[f"{cell}/B"] = normal(4 * cells)
                file[f"{cell}/W_P_0"] = normal(cells, dim)
    return 2 * dim


def test_parser_on_the_original_elmo(data):
    pytest.importorskip("allennlp_models.structured_prediction")
    dim = write_original_elmo(data)
    elmo = "model.text_field_embedder.token_embedders.elmo."
    overrides = {
        **WITHOUT_EVALB,
        "model.encoder.input_size": dim + 50,
        elmo + "options_file": str(data / "options.json"),
        elmo + "weight_file": str(data / "weights.hdf5"),
    }
    config = CONFIGS / "constituency_parser_elmo.jsonnet"
    train_model_from_file(config, data / "parser", json.dumps(overrides))
    assert (data / "parser" / "model.tar.gz").exists()


def test_parsers_differ_in_their_embedder_alone(data):
    from allennlp.common import Params

    def config(name):
        return Params.from_file(CONFIGS / f"constituency_parser_{name}.jsonnet").as_dict(quiet=True)

    transformer, original = config("transformer_elmo"), config("elmo")
    embedders = [c["model"].pop("text_field_embedder") for c in (transformer, original)]
    assert transformer == original and embedders[0] != embedders[1]
