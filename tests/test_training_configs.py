"""The shipped configs, made small: trained, evaluated, recovered. For the tagger: `test_readme`."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from allennlp.commands.evaluate import evaluate_from_archive
from allennlp.commands.find_learning_rate import find_learning_rate_model
from allennlp.commands.train import train_model_from_file
from allennlp.common import Params
from allennlp.data import Vocabulary
from allennlp.models import Model
from allennlp.models.archival import load_archive
from allennlp.modules.token_embedders import TokenEmbedder

from tests.plugin.tiny_run import weights_are_the_same
from tests.small_lm import DIM, random_sentences
from transformer_elmo import LanguageModel
from transformer_elmo.text.vocabulary import write_vocabulary

CONFIGS = Path(__file__).parent.parent / "training_config"

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


@pytest.fixture(scope="module", autouse=True)
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
    options: Any = {"min_count": 1, "max_vocab_size": 25, "quiet": True}
    write_vocabulary(folder / "train", folder / "vocabulary", **options)
    with pytest.MonkeyPatch.context() as patch:
        for name, path in ("TRAIN", "train/*"), ("VOCAB", "vocabulary"), ("HELDOUT", "heldout"):
            patch.setenv(f"BIDIRECTIONAL_LM_{name}_PATH", str(folder / path))
        yield folder


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "lm"
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
    shapes, perplexities, encode = [], [], LanguageModel.encode

    def recorded(self, source):
        shapes.append(source["tokens"]["tokens"].shape)
        return encode(self, source)

    monkeypatch.setattr(LanguageModel, "encode", recorded)
    archive, text = trained / "model.tar.gz", str(corpus / "heldout")
    for limit in (500, 60):
        shapes.clear()
        samples = {"maximum_samples_per_batch": ["num_tokens", limit]}
        documented = json.dumps({"iterator": {"base_iterator": samples}})
        metrics = evaluate_from_archive(archive, text, cmd_overrides=documented)
        perplexities.append(metrics["perplexity"])
        assert sum(rows for rows, _ in shapes) == 51
        assert limit / 2 < max(rows * longest for rows, longest in shapes if rows > 1) <= limit
    # One number, whatever the batches.
    assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-6)


def test_the_billion_word_config_is_not_shrunk():
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


def test_the_modern_config_changes_the_recipe_alone():
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


def test_the_benchmarks_held_out_file_is_the_validation_set(monkeypatch):
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
def test_recover(recipe, tmp_path):
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


def test_find_lr(tmp_path):
    """It takes no trainer but AllenNLP's own."""
    overrides = {**TINY, "trainer.type": "language_modeling"}
    del overrides["trainer.callbacks"]
    params = Params.from_file(CONFIGS / "quickstart.jsonnet", json.dumps(overrides))
    find_learning_rate_model(params, tmp_path / "lr", num_batches=11)
    assert (tmp_path / "lr" / "lr-losses.png").exists()


TREES = """
(S (NP (DT the) (NN dog)) (VP (VBD ran) (PP (IN under) (NP (DT a) (NN tree)))) (. .))
(S (NP (NNS birds)) (VP (VBD flew)))
(S (NP (DT a) (NN cat)) (VP (VBD sat)))
"""


@pytest.fixture
def treebank(tmp_path, monkeypatch, lm_archive):
    (tmp_path / "trees").write_text(TREES)
    for part in ("TRAIN", "VALIDATION"):
        monkeypatch.setenv(f"PTB_{part}_PATH", str(tmp_path / "trees"))
    monkeypatch.setenv("BIDIRECTIONAL_LM_ARCHIVE_PATH", str(lm_archive))


def test_a_parser(treebank, tmp_path):
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


def test_parsers_differ_in_their_embedder_alone(treebank):
    transformer, original = (
        Params.from_file(CONFIGS / f"constituency_parser_{name}.jsonnet").as_dict(quiet=True)
        for name in ("transformer_elmo", "elmo")
    )
    embedders = [c["model"].pop("text_field_embedder") for c in (transformer, original)]
    assert transformer == original and embedders[0] != embedders[1]
    section = embedders[1]["token_embedders"]["elmo"]
    kind = TokenEmbedder.by_name(section.pop("type"))
    assert section.keys() <= inspect.signature(kind).parameters.keys()
