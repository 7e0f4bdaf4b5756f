"""The shipped downstream configs, trained for an epoch over small language models."""

import inspect
import json
from pathlib import Path

import pytest
from allennlp.commands.train import train_model_from_file
from allennlp.common import Params
from allennlp.common.checks import ConfigurationError as AllenNLPError
from allennlp.modules.token_embedders import TokenEmbedder

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
    train_model_from_file(config, output, json.dumps(overrides))
    metrics = json.loads((output / "metrics.json").read_text())
    assert 0 <= metrics["best_validation_accuracy"] <= 1


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


def test_parsers_differ_in_their_embedder_alone(data):
    def config(name):
        return Params.from_file(CONFIGS / f"constituency_parser_{name}.jsonnet").as_dict(quiet=True)

    transformer, original = config("transformer_elmo"), config("elmo")
    embedders = [c["model"].pop("text_field_embedder") for c in (transformer, original)]
    assert transformer == original and embedders[0] != embedders[1]
    section = embedders[1]["token_embedders"]["elmo"]
    kind = TokenEmbedder.by_name(section.pop("type"))
    assert section.keys() <= inspect.signature(kind).parameters.keys()
