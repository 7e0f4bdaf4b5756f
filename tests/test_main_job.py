"""The document's commands in order: train the shipped config, evaluate it, go on training it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from allennlp.commands import main
from allennlp.commands.evaluate import evaluate_from_archive
from allennlp.commands.train import train_model_from_file
from allennlp.common import Params
from allennlp.data import Vocabulary
from allennlp.models import Model
from allennlp.models.archival import load_archive

from tests.plugin.tiny_run import weights_are_the_same
from tests.small_lm import random_sentences
from transformer_elmo import LanguageModel

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
    words = ["</S>", "<S>", "@@UNKNOWN@@", *words[:-4]]
    (folder / "vocabulary").mkdir()
    (folder / "vocabulary" / "tokens.txt").write_text("\n".join(words) + "\n")
    (folder / "vocabulary" / "non_padded_namespaces.txt").write_text("*labels\n*tags\n")
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
    results, batches = {}, {}
    for override in (
        DOCUMENTED_OVERRIDE,
        '{"iterator": {"base_iterator": {"batch_size": 3}}}',
        '{"data_loader": {"max_tokens": 60}}',
        '{"validation_data_loader.max_tokens": 60}',
        "",
    ):
        sizes.clear()
        results[override] = evaluate_from_archive(
            trained / "model.tar.gz", str(corpus / "heldout"), cmd_overrides=override
        )
        batches[override] = list(sizes)
    documented, three, *sixty, default = batches.values()
    num_sentences = len((corpus / "heldout").read_text().splitlines())
    assert {sum(rows for rows, _ in shapes) for shapes in batches.values()} == {num_sentences}
    assert 250 < max(rows * longest for rows, longest in documented if rows > 1) <= 500
    assert max(rows for rows, _ in three) == 3
    for shapes in sixty:
        assert all(rows * longest <= 60 or rows == 1 for rows, longest in shapes)
        assert len(shapes) > 2 * len(default)
    # One number, whatever the batches, to six digits.
    for result in results.values():
        assert result["perplexity"] == pytest.approx(results[""]["perplexity"], rel=1e-6)


def test_the_billion_word_config_is_not_shrunk(environment):
    config = Params.from_file(CONFIGS / "bidirectional_language_model.jsonnet")
    # More words than samples, as it needs.
    vocabulary = Vocabulary(counter={"tokens": {f"word{n}": 1 for n in range(8500)}})
    model: Any = Model.from_params(config["model"], vocab=vocabulary)
    parts = ("_text_field_embedder", "_contextualizer._forward", "_contextualizer._backward")
    words, forward, backward = (
        sum(p.numel() for name, p in model.named_parameters() if name.startswith(part))
        for part in parts
    )
    # Six layers of 512 and 2048; a CNN of 2048 filters, two highway layers and a projection to 512.
    layer = 4 * (512 * 512 + 512) + (512 * 2048 + 2048) + (2048 * 512 + 512) + 4 * 512
    filters = [(1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024)]
    cnn = 262 * 16 + sum(16 * width * count + count for width, count in filters)
    highways, projection = 2 * (2048 * 4096 + 4096), 2048 * 512 + 512
    assert forward == backward == 6 * layer + 2 * 512
    assert words == cnn + highways + projection + 2 * 512
    assert model._softmax_loss.num_samples == 8192


def test_the_modern_config_changes_the_recipe_alone(environment):
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


def test_the_benchmarks_held_out_file_is_the_validation_set(environment, monkeypatch):
    root = "/data/1-billion-word-language-modeling-benchmark-r13output/"
    heldout = root + "heldout-monolingual.tokenized.shuffled/news.en-00000-of-00100"
    for path, expected in (
        (root + "training-monolingual.tokenized.shuffled/*", heldout),
        ("/data/my-own-text/*", None),
    ):
        monkeypatch.setenv("BIDIRECTIONAL_LM_TRAIN_PATH", path)
        config = Params.from_file(CONFIGS / "bidirectional_language_model.jsonnet")
        assert config.as_dict(quiet=True)["validation_data_path"] == expected


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
    archives = [load_archive(folder / "model.tar.gz") for folder in (whole, parts)]
    weights_are_the_same(*(archive.model.state_dict() for archive in archives))


@pytest.mark.slow
def test_other_commands(environment, trained, tmp_path, monkeypatch, capsys):
    """The rest of AllenNLP's commands that read a training config or its data."""
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
