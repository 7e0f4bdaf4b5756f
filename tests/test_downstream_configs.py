"""The shipped parsers; the tagger is trained as `docs/adapting.md` says, by `test_readme`."""

import inspect
import json
from pathlib import Path

import pytest
from allennlp.commands.train import train_model_from_file
from allennlp.common import Params
from allennlp.modules.token_embedders import TokenEmbedder

from tests.small_lm import DIM

CONFIGS = Path(__file__).parent.parent / "training_config"

TREES = """
(S (NP (DT the) (NN dog)) (VP (VBD ran) (PP (IN under) (NP (DT a) (NN tree)))) (. .))
(S (NP (NNS birds)) (VP (VBD flew)))
(S (NP (DT a) (NN cat)) (VP (VBD sat)))
"""


@pytest.fixture(autouse=True)
def variables(tmp_path, monkeypatch, lm_archive):
    (tmp_path / "trees").write_text(TREES)
    for part in ("TRAIN", "VALIDATION"):
        monkeypatch.setenv(f"PTB_{part}_PATH", str(tmp_path / "trees"))
    monkeypatch.setenv("BIDIRECTIONAL_LM_ARCHIVE_PATH", str(lm_archive))


def test_it_trains(tmp_path):
    pytest.importorskip("allennlp_models.structured_prediction")
    overrides = {
        "model.encoder.input_size": 2 * DIM + 50,
        # F1 comes from a program that has to be compiled.
        "model.evalb_directory_path": None,
        "trainer.validation_metric": "+tag_accuracy",
        "trainer.num_epochs": 1,
    }
    config = CONFIGS / "constituency_parser_transformer_elmo.jsonnet"
    train_model_from_file(config, tmp_path / "parser", json.dumps(overrides))
    metrics = json.loads((tmp_path / "parser" / "metrics.json").read_text())
    assert 0 <= metrics["best_validation_tag_accuracy"] <= 1


def test_they_differ_in_their_embedder_alone():
    transformer, original = (
        Params.from_file(CONFIGS / f"constituency_parser_{name}.jsonnet").as_dict(quiet=True)
        for name in ("transformer_elmo", "elmo")
    )
    embedders = [c["model"].pop("text_field_embedder") for c in (transformer, original)]
    assert transformer == original and embedders[0] != embedders[1]
    section = embedders[1]["token_embedders"]["elmo"]
    kind = TokenEmbedder.by_name(section.pop("type"))
    assert section.keys() <= inspect.signature(kind).parameters.keys()
