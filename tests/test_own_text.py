"""From a folder of text to vectors, by the commands that the README names."""

import json
import shutil

import numpy as np
import pytest
from allennlp.commands.evaluate import evaluate_from_archive
from allennlp.commands.train import train_model_from_file

from tests.small_lm import random_sentences
from transformer_elmo.commands.cli import main
from transformer_elmo.pretrained.jsonnet import evaluated_file

VARIABLES = ("TRAIN", "HELDOUT", "VOCAB")


@pytest.fixture
def work(tmp_path, monkeypatch):
    folder = tmp_path / "work"
    (folder / "text").mkdir(parents=True)
    monkeypatch.chdir(folder)
    for number in range(2):
        lines = random_sentences(40, seed=number)
        (folder / "text" / f"{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    held_out = "\n".join(random_sentences(10, seed=7))
    (folder / "held-out.txt").write_text(held_out, encoding="utf-8")
    for name, path in zip(VARIABLES, ("text", "held-out.txt", "vocabulary")):
        monkeypatch.setenv(f"BIDIRECTIONAL_LM_{name}_PATH", path)
    return folder


@pytest.mark.parametrize("size, dim, layers", [("1M", 256, 2), ("10M", 512, 3), ("100M", 512, 6)])
def test_sizes(tmp_path, capsys, size, dim, layers):
    assert main(["config", "own_text"]) == 0
    text = capsys.readouterr().out
    assert text.count("local SIZE = '1M';") == 1
    (tmp_path / "mine.jsonnet").write_text(text.replace("SIZE = '1M'", f"SIZE = '{size}'"))
    variables = {f"BIDIRECTIONAL_LM_{name}_PATH": "there" for name in VARIABLES}
    config = evaluated_file(tmp_path / "mine.jsonnet", variables)
    encoder = config["model"]["text_field_embedder"]["token_embedders"]["token_characters"][
        "encoder"
    ]
    contextualizer = config["model"]["contextualizer"]
    assert encoder["projection_dim"] == contextualizer["input_dim"] == dim
    assert contextualizer["num_layers"] == layers
    assert config["trainer"]["learning_rate_scheduler"]["model_size"] == dim


def test_from_text_to_vectors(work, tmp_path, monkeypatch, capsys):
    assert main(["vocab", "text", "vocabulary", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["config", "own_text"]) == 0
    (work / "mine.jsonnet").write_text(capsys.readouterr().out)
    # Of so few words, none need be drawn; so that it is quick, a layer and an epoch less.
    smaller = {
        "model.num_samples": None,
        "model.contextualizer.num_layers": 1,
        "trainer.num_epochs": 1,
    }
    train_model_from_file("mine.jsonnet", "model", json.dumps(smaller))

    away = tmp_path / "away"
    away.mkdir()
    shutil.move(work / "model" / "model.tar.gz", away / "model.tar.gz")
    shutil.move(work / "held-out.txt", away / "held-out.txt")
    monkeypatch.chdir(away)
    shutil.rmtree(work)
    metrics = evaluate_from_archive("model.tar.gz", "held-out.txt", cuda_device=-1)
    assert 1 < metrics["perplexity"] < 100 and metrics["num_sentences"] == 10
    assert main(["score", "model.tar.gz", "held-out.txt", "--output-file", "scores.jsonl"]) == 0
    assert len((away / "scores.jsonl").read_text(encoding="utf-8").splitlines()) == 10
    assert main(["embed", "model.tar.gz", "held-out.txt", "vectors.npz", "--average"]) == 0
    assert np.load("vectors.npz")["vectors"].shape[1] == 512
