"""A small language model's run, as `allennlp train` has it: refused, stopped, gone on with."""

import json
import os
import shutil
from unittest.mock import Mock

import pytest
import torch
from allennlp.commands.evaluate import evaluate_from_archive
from allennlp.commands.train import train_model
from allennlp.common import Params
from allennlp.models import load_archive

from tests.plugin.launched import write_config
from tests.plugin.tiny_run import weights_are_the_same
from tests.small_lm import model_config
from transformer_elmo import TransformerElmo
from transformer_elmo.commands.cli import main
from transformer_elmo.commands.vector_shards import VectorShards
from transformer_elmo.errors import ConfigurationError


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = write_config(folder)
    wrong = config.read_text().replace("train.txt", "gone.txt")
    with pytest.raises(ConfigurationError, match="gone"):
        train_model(Params(json.loads(wrong)), folder / "run")
    assert (folder / "run" / "config.json").exists()
    # Nothing was trained, so that the corrected config takes its place.
    train(config, folder / "run", recover=True)
    return folder


def train(config, run, **options):
    train_model(Params(json.loads(config.read_text())), run, **options)


@pytest.fixture
def run(space, tmp_path):
    return shutil.copytree(space / "run", tmp_path / "run")


def test_killed_after_its_last_epoch(space, run):
    for name in ("metrics.json", "model.tar.gz"):
        (run / name).unlink()
    train(space / "config.json", run, recover=True)
    for name in ("metrics.json", "metrics_epoch_1.json"):
        assert (run / name).read_text() == (space / "run" / name).read_text()
    assert (run / "model.tar.gz").exists()


def test_words_that_are_mostly_unknown(space, tmp_path):
    """One line, at the start of training and of `allennlp evaluate`."""
    config = write_config(tmp_path, model=model_config(num_samples=None))
    path = tmp_path / "vocabulary" / "tokens.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:5]))
    train(config, tmp_path / "run")
    said, log = "are not in the vocabulary", tmp_path / "run" / "out.log"
    assert log.read_text().count(said) == 1
    # The run's log is this process's, from then on.
    evaluate_from_archive(tmp_path / "run", str(tmp_path / "train.txt"))
    assert log.read_text().count(said) == 2
    assert said not in (space / "run" / "out.log").read_text()


THEIRS = """
import sys
sys.modules["transformer_elmo"] = None
import allennlp_models.lm
from allennlp.commands.evaluate import evaluate_from_archive
from allennlp.models import load_archive
archive, converted = sys.argv[1:]
# As a config that allennlp-models knows has it.
load_archive(archive, overrides={"model.type": "bidirectional-language-model"})
print(evaluate_from_archive(converted, "text.txt", cuda_device=-1)["loss"])
"""


@pytest.mark.slow
def test_the_archive_opens_in_allennlp_models_alone(run, tmp_path, run_python):
    """And is evaluated there, once its config is converted, too."""
    pytest.importorskip("allennlp_models")
    archive, converted, text = run / "model.tar.gz", run / "stock.tar.gz", tmp_path / "text.txt"
    # Of one length: allennlp-models' losses depend on padding.
    text.write_text("the dog ran\nbirds flew on\n")
    assert main(["convert", str(archive), str(converted), "--stock"]) == 0
    printed = run_python(THEIRS, archive, converted)
    expected = evaluate_from_archive(archive, str(text), cuda_device=-1)["loss"]
    assert float(printed.splitlines()[-1]) == pytest.approx(expected, rel=1e-5)


def test_a_run_of_version_0_2_0_goes_on(space, run):
    """After its first epoch: that version had another trainer, and a state in two parts."""
    expected = torch.load(run / "best.th")
    for path in [*run.glob("*_e2_b0*"), run / "metrics_epoch_1.json", run / "metrics.json"]:
        path.unlink()
    config = json.loads((run / "config.json").read_text())
    del config["trainer"]["type"]
    (run / "config.json").write_text(json.dumps(config))
    path = run / "training_state_e1_b0.th"
    state = torch.load(path)
    (number,) = [n for n, part in enumerate(state["callbacks"]) if "total_batches" in part]
    whole = state["callbacks"].pop(number)
    names = ("total_batches", "train", "random", "validation")
    guard = {"bad_steps": 0, "vocabulary": {}, "step": whole["step"], "data": whole["train"]}
    state["callbacks"] = [{n: whole[n] for n in names}, *state["callbacks"], guard]
    torch.save(state, path)
    (run / "checksums_e1_b0.sha256").unlink()
    train(space / "config.json", run, recover=True)
    weights_are_the_same(torch.load(run / "best.th"), expected)


def test_a_missing_archive_is_the_run(space, run, caplog):
    (run / "model.tar.gz").unlink()
    text = str(space / "valid.txt")
    before = evaluate_from_archive(space / "run" / "model.tar.gz", text)
    assert evaluate_from_archive(run / "model.tar.gz", text) == before
    assert f"taking what the run in {run} has so far" in caplog.text
    # Stopped within its first epoch.
    (run / "best.th").unlink()
    for path in (run, run / "model.tar.gz"):
        last = torch.load(run / "model_state_e2_b0.th")
        weights_are_the_same(load_archive(path).model.state_dict(), last)
        assert TransformerElmo.open(path).perplexity([["the", "cat"]]) > 0
    # Before its first checkpoint.
    for path in run.glob("*state_e*"):
        path.unlink()
    for opens in (load_archive, TransformerElmo.open):
        with pytest.raises(ConfigurationError, match=r"no weights .* and no checkpoint"):
            opens(run / "model.tar.gz")


def test_vectors_of_two_checkpoints_are_not_mixed(space, run, tmp_path, monkeypatch, capsys):
    (run / "best.th").unlink()
    embed = ["embed", str(run), str(space / "valid.txt"), str(tmp_path / "v.npz"), "--top"]
    with monkeypatch.context() as patch:
        patch.setattr(VectorShards, "finish", Mock(side_effect=ConfigurationError("cut short")))
        assert main(embed) == 1
    os.utime(run / "model_state_e2_b0.th", (1, 1))
    assert main(embed) == 1 and "other settings (archive)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["best.th", "config.json", "model_state_e1_b0.th"])
def test_a_file_of_a_run_is_no_model(run, name):
    for opens in (load_archive, TransformerElmo.open):
        with pytest.raises(ConfigurationError, match=f"{name} .*It lies in .*give that, {run}, in"):
            opens(str(run / name))
