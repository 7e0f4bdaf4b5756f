"""The document's commands in order: train the shipped config, evaluate it, go on training it."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from allennlp.commands.evaluate import evaluate_from_archive
from allennlp.commands.train import train_model_from_file
from allennlp.common import Params
from allennlp.common.checks import ConfigurationError as AllenNLPError
from allennlp.models.archival import load_archive

from tests.small_lm import random_sentences
from transformer_elmo import LanguageModel
from transformer_elmo.errors import ConfigurationError

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "training_config"
DOCUMENTED_OVERRIDE = (
    '{"iterator": {"base_iterator": {"maximum_samples_per_batch": ["num_tokens", 500] }}}'
)

# The quickstart's model, smaller still.
TINY = {
    "model.num_samples": 16,
    "model.text_field_embedder.token_embedders.token_characters.encoder.filters": [[1, 8], [3, 8]],
    "model.text_field_embedder.token_embedders.token_characters.encoder.projection_dim": 32,
    "model.contextualizer.input_dim": 32,
    "model.contextualizer.hidden_dim": 64,
    "trainer.num_epochs": 2,
    "trainer.callbacks": [{"type": "tensorboard"}, {"type": "resume_data"}],
}


TINY_BILLION = {
    "data_loader.max_tokens": 200,
    "model.contextualizer.num_layers": 2,
    # There is no held-out text.
    "trainer.validation_metric": "-loss",
}
TINY_MODERN = {
    "data_loader.batches_per_epoch": 4,
    # The fall to zero begins in the last epoch, whether two or four are asked for.
    "trainer.learning_rate_scheduler": {
        "type": "warmup_stable_decay",
        "warmup": 3,
        "decay": 4,
        "num_steps": 16,
    },
}


def write_vocabulary(folder: Path, words) -> None:
    folder.mkdir(parents=True)
    (folder / "tokens.txt").write_text("\n".join(["</S>", "<S>", "@@UNKNOWN@@", *words]) + "\n")
    (folder / "non_padded_namespaces.txt").write_text("*labels\n*tags\n")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "train").mkdir()
    for shard in range(3):
        lines = random_sentences(40, seed=shard)
        (folder / "train" / f"shard-{shard}").write_text("\n".join(lines) + "\n")
    heldout = random_sentences(50, seed=9)
    # Longer than any batch of 500 tokens, and than the 400 tokens that training keeps.
    heldout.insert(3, " ".join(["the dog ran"] * 200))
    (folder / "heldout").write_text("\n".join(heldout) + "\n")
    words = sorted({word for line in random_sentences(200, seed=5) for word in line.split()})
    write_vocabulary(folder / "vocabulary", words[:-4])
    return folder


def set_variables(monkeypatch, corpus):
    monkeypatch.setenv("BIDIRECTIONAL_LM_TRAIN_PATH", str(corpus / "train" / "*"))
    monkeypatch.setenv("BIDIRECTIONAL_LM_VOCAB_PATH", str(corpus / "vocabulary"))
    monkeypatch.setenv("BIDIRECTIONAL_LM_HELDOUT_PATH", str(corpus / "heldout"))


@pytest.fixture
def environment(corpus, monkeypatch):
    set_variables(monkeypatch, corpus)
    return corpus


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "lm"
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_variables(monkeypatch, corpus)
        train_model_from_file(CONFIGS / "quickstart.jsonnet", output, json.dumps(TINY))
    return output


def test_train_leaves_what_allennlp_leaves(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["best_epoch"] in (0, 1)
    assert 1 < metrics["best_validation_perplexity"] < 100
    names = {path.name for path in trained.iterdir()}
    assert {"model.tar.gz", "best.th", "config.json", "vocabulary", "log"} <= names
    assert list((trained / "log" / "train").iterdir())
    assert list(trained.glob("model_state_e*")) and list(trained.glob("training_state_e*"))


def test_evaluate_with_the_documented_override(trained, corpus, monkeypatch):
    sizes = []
    encode = LanguageModel.encode

    def recorded(self, source):
        sizes.append(tuple(source["tokens"]["tokens"].shape))
        return encode(self, source)

    monkeypatch.setattr(LanguageModel, "encode", recorded)
    heldout = str(corpus / "heldout")
    results, batches = {}, {}
    for name, override in {
        "document": DOCUMENTED_OVERRIDE,
        "sentences": '{"iterator": {"base_iterator": {"batch_size": 3}}}',
        "modern": '{"data_loader.max_tokens": 60}',
        "modern, nested": '{"data_loader": {"max_tokens": 60}}',
        "modern, validation": '{"validation_data_loader.max_tokens": 60}',
        "none": "",
    }.items():
        sizes.clear()
        archive = trained / "model.tar.gz"
        results[name] = evaluate_from_archive(archive, heldout, cmd_overrides=override)
        batches[name] = list(sizes)

    def padded(batch):
        return batch[0] * batch[1]

    num_sentences = len((corpus / "heldout").read_text().splitlines())
    for shapes in batches.values():
        assert sum(rows for rows, _ in shapes) == num_sentences
    assert all(padded(b) <= 500 or b[0] == 1 for b in batches["document"])
    assert max(padded(b) for b in batches["document"] if b[0] > 1) > 250
    assert max(rows for rows, _ in batches["sentences"]) == 3
    for name in ("modern", "modern, nested", "modern, validation"):
        assert all(padded(b) <= 60 or b[0] == 1 for b in batches[name])
        assert len(batches[name]) > 2 * len(batches["none"])
    # One number, whatever the batches, to six digits.
    for result in results.values():
        assert result["perplexity"] == pytest.approx(results["none"]["perplexity"], rel=1e-6)
        assert result["loss"] == pytest.approx(math.log(result["perplexity"]), rel=1e-6)


def test_evaluate_refuses_what_it_does_not_know(trained, corpus):
    for override in (
        '{"iterator": {"base_iterator": {"maximum_sample_per_batch": ["num_tokens", 500]}}}',
        '{"iteratr": {"batch_size": 5}}',
        '{"data_loader.max_tokns": 5}',
    ):
        with pytest.raises((ConfigurationError, AllenNLPError)) as error:
            evaluate_from_archive(
                trained / "model.tar.gz", str(corpus / "heldout"), cmd_overrides=override
            )
        names = ("maximum_sample_per_batch", "iteratr", "max_tokns")
        assert any(name in str(error.value) for name in names)


@pytest.mark.slow
def test_the_billion_word_config_is_not_shrunk(environment, tmp_path, monkeypatch):
    """With more words than samples, as it needs, and sentences for two steps."""
    vocabulary = tmp_path / "vocabulary"
    write_vocabulary(vocabulary, ["the", "dog", "ran", *(f"word{n}" for n in range(8500))])
    monkeypatch.setenv("BIDIRECTIONAL_LM_VOCAB_PATH", str(vocabulary))
    shard = tmp_path / "shard"
    shard.write_text("the dog ran\nword17 ran !\n")
    monkeypatch.setenv("BIDIRECTIONAL_LM_TRAIN_PATH", str(shard))
    overrides = {"trainer.num_epochs": 1, "data_loader.batch_size": 1, "trainer.cuda_device": -1}
    model: Any = train_model_from_file(
        CONFIGS / "bidirectional_language_model.jsonnet", tmp_path / "lm", json.dumps(overrides)
    )
    sizes = {
        name.split(".")[0]: sum(
            p.numel() for n, p in model.named_parameters() if n.startswith(part)
        )
        for name, part in (
            ("words", "_text_field_embedder."),
            ("forward", "_contextualizer._forward_transformer."),
            ("backward", "_contextualizer._backward_transformer."),
        )
    }
    # Six layers of 512 and 2048; a CNN of 2048 filters, two highway layers and a projection to 512.
    layer = 4 * (512 * 512 + 512) + (512 * 2048 + 2048) + (2048 * 512 + 512) + 4 * 512
    filters = [(1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024)]
    cnn = 262 * 16 + sum(16 * width * count + count for width, count in filters)
    highways, projection = 2 * (2048 * 4096 + 4096), 2048 * 512 + 512
    assert sizes["forward"] == sizes["backward"] == 6 * layer + 2 * 512
    assert sizes["words"] == cnn + highways + projection + 2 * 512
    assert model._softmax_loss.num_samples == 8192
    assert (tmp_path / "lm" / "model.tar.gz").exists()


def test_the_modern_config_changes_the_recipe_alone(monkeypatch):
    monkeypatch.setenv("BIDIRECTIONAL_LM_TRAIN_PATH", "text")
    monkeypatch.setenv("BIDIRECTIONAL_LM_VOCAB_PATH", "vocabulary")
    old, new = (
        Params.from_file(CONFIGS / f"{name}.jsonnet").as_flat_dict()
        for name in ("bidirectional_language_model", "bidirectional_language_model_modern")
    )
    changed = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
    # The model is the same.
    changed.remove("data_loader.batches_per_epoch")
    assert changed and all(key.startswith("trainer.") for key in changed)
    assert new["trainer.optimizer.type"] == "muon_sparse_adam"
    assert new["trainer.learning_rate_scheduler.type"] == "warmup_stable_decay"


def test_the_benchmarks_held_out_file_is_the_validation_set(tmp_path, monkeypatch):
    def config(train_path):
        monkeypatch.setenv("BIDIRECTIONAL_LM_TRAIN_PATH", train_path)
        monkeypatch.setenv("BIDIRECTIONAL_LM_VOCAB_PATH", "vocabulary")
        return Params.from_file(CONFIGS / "bidirectional_language_model.jsonnet").as_dict(
            quiet=True
        )

    root = "/data/1-billion-word-language-modeling-benchmark-r13output/"
    assert config(root + "training-monolingual.tokenized.shuffled/*")["validation_data_path"] == (
        root + "heldout-monolingual.tokenized.shuffled/news.en-00000-of-00100"
    )
    assert config("/data/my-own-text/*")["validation_data_path"] is None


@pytest.mark.parametrize("recipe", ["", "_modern"])
def test_recover(recipe, environment, trained, tmp_path):
    """Two epochs and two more after a stop end where four epochs end, to the bit."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    tiny = {**TINY, **TINY_BILLION, **(TINY_MODERN if recipe else {})}
    config = CONFIGS / f"bidirectional_language_model{recipe}.jsonnet"
    four = {**tiny, "trainer.num_epochs": 4}
    train_model_from_file(config, whole, json.dumps(four))
    train_model_from_file(config, parts, json.dumps(tiny))
    # The configuration may not change on recovery, but for how long to go on.
    stored = json.loads((parts / "config.json").read_text())
    stored["trainer"]["num_epochs"] = 4
    (parts / "config.json").write_text(json.dumps(stored))
    train_model_from_file(config, parts, json.dumps(four), recover=True)
    states = [load_archive(folder / "model.tar.gz").model.state_dict() for folder in (whole, parts)]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


@pytest.mark.slow
def test_command_line(trained, corpus, tmp_path):
    """As a user types it, from the folder with the plugin file, to the letter."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "allennlp", "evaluate", "--cuda-device", "-1"]
    arguments = ["-o", DOCUMENTED_OVERRIDE, str(trained / "model.tar.gz"), str(corpus / "heldout")]
    output = ["--output-file", str(tmp_path / "metrics.json")]
    run = subprocess.run(
        command + output + arguments, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]), rel=1e-6)
    assert {"forward_perplexity", "backward_perplexity"} <= set(metrics)

    # Elsewhere, the package is named.
    run = subprocess.run(
        [*command, "--include-package", "transformer_elmo", *arguments[:2], "missing.tar.gz", "x"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0 and "missing.tar.gz" in run.stderr


@pytest.mark.slow
def test_other_commands(environment, trained, tmp_path, monkeypatch, capsys):
    """The rest of AllenNLP's commands that read a training config or its data."""
    from allennlp.commands import main

    monkeypatch.chdir(ROOT)
    config, overrides = str(CONFIGS / "quickstart.jsonnet"), json.dumps(TINY)

    def allennlp(*arguments):
        monkeypatch.setattr(sys, "argv", ["allennlp", *map(str, arguments)])
        main(prog="allennlp")

    allennlp("build-vocab", config, tmp_path / "vocabulary.tar.gz", "-o", overrides)
    assert (tmp_path / "vocabulary.tar.gz").exists()

    allennlp("count-instances", config, "-o", overrides)
    assert "120" in capsys.readouterr().out

    plain = {key: value for key, value in TINY.items() if key != "trainer.callbacks"}
    allennlp(
        *("find-lr", config, "-s", tmp_path / "lr", "-o", json.dumps(plain)),
        *("--num-batches", 12, "--start-lr", 1e-4, "--end-lr", 1e-2),
    )
    assert (tmp_path / "lr" / "lr-losses.png").exists()
