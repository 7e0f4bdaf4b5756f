"""
A language model taken to other text: what comes over, what training leaves, and what is told. All
archives are moved and their origin is deleted before they are opened.
"""

import json
import logging
import math
import os
import re
import shutil
import tarfile
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Dict, List

import numpy as np
import pytest
import torch
from allennlp.commands.evaluate import evaluate_from_archive
from allennlp.commands.train import train_model, train_model_from_file
from allennlp.common import Params
from allennlp.data import Vocabulary
from allennlp.models import Model
from allennlp.models.archival import load_archive
from allennlp.training.callbacks import TrainerCallback

from tests.peer_lm import peer_model
from tests.pretrained.test_standing_alone import TAGGED, tagger_config
from tests.small_lm import (
    DIM,
    experiment_config,
    model_config,
    tensors,
    write_archive,
)
from transformer_elmo import ConfigurationError, TransformerElmo
from transformer_elmo.commands.cli import main

CONFIG = Path(__file__).parents[2] / "training_config" / "fine_tune_language_model.jsonnet"

NEW_TEXT = [
    "the owl flew over the barn .",
    "an owl and a cat sat in the barn .",
    "then the cat ran , and an owl sat .",
    "the barn was very old ; an owl was in it .",
]
CHANGES = {"trainer.num_epochs": 1, "trainer.callbacks": [], "trainer.checkpointer": None}


def vocabulary_of(archive, **options):
    section = {"type": "from_pretrained_lm", "archive_file": str(archive), **options}
    return Vocabulary.from_params(Params(section))


def model_of(archive, vocab, **options):
    section = {"type": "from_pretrained_lm", "archive_file": str(archive), **options}
    return Model.from_params(Params(section), vocab=vocab)


@pytest.fixture
def work(tmp_path, monkeypatch, lm_archive):
    """Where adaptation takes place, with a language model of other text."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    shutil.copy(lm_archive, folder / "lm.tar.gz")
    (folder / "new.txt").write_text("\n".join(NEW_TEXT * 3) + "\n")
    (folder / "tagged.txt").write_text(TAGGED)
    monkeypatch.setenv("BIDIRECTIONAL_LM_ARCHIVE_PATH", "lm.tar.gz")
    monkeypatch.setenv("BIDIRECTIONAL_LM_TRAIN_PATH", "new.txt")
    return folder


def moved_alone(work, monkeypatch, name):
    """The only thing left is a file or folder of that name, elsewhere."""
    away = work.parent / "away"
    away.mkdir()
    path = Path(shutil.move(str(work / name), str(away / "it.tar.gz")))
    for text in ("new.txt", "tagged.txt"):
        shutil.copy(work / text, away)
    shutil.rmtree(work)
    monkeypatch.chdir(away)
    return path


def test_the_shipped_config(work, monkeypatch):
    overrides = {**CHANGES, "validation_data_path": "new.txt"}
    overrides["model.contextualizer.dropout"] = 0.2
    train_model_from_file(str(CONFIG), "out", json.dumps(overrides))
    log = Path("out/out.log").read_text()
    assert "rows of the softmax came over" in log and "Biases are set" in log
    elmo = TransformerElmo.open("out/model.tar.gz")
    assert "owl" in elmo.vocab and "dog" not in elmo.vocab
    with tarfile.open("out/model.tar.gz") as tar:
        assert not [name for name in tar.getnames() if "adapted" in name]
        config = tar.extractfile("config.json").read().decode()
    assert "lm.tar.gz" not in config and "from_pretrained_lm" not in config
    assert json.loads(config)["model"]["contextualizer"]["dropout"] == 0.2
    # Not named, so that it is the archive's.
    assert json.loads(config)["model"]["contextualizer"]["input_dropout"] == 0.1
    assert json.loads(config)["model"]["contextualizer"]["num_layers"] == 2
    whole = evaluate_from_archive("out/model.tar.gz", "new.txt")
    vectors = elmo.embed(["an owl flew ."], "all")[0]

    archive = moved_alone(work, monkeypatch, "out/model.tar.gz")
    assert evaluate_from_archive(archive, "new.txt") == whole
    elmo = TransformerElmo.open(archive)
    assert np.array_equal(elmo.embed(["an owl flew ."], "all")[0], vectors)
    assert elmo.perplexity("new.txt") == pytest.approx(whole["perplexity"], rel=1e-5)
    assert main(["export", str(archive), "folder"]) == 0
    assert TransformerElmo.open("folder").perplexity("new.txt") == pytest.approx(
        whole["perplexity"], rel=1e-5
    )
    train_model(Params(tagger_config(archive)), "tagger")
    assert load_archive("tagger/model.tar.gz").config["model"]["type"] == "simple_tagger"
    # Adapted again, from the archive and from the folder.
    for name in (str(archive), "folder"):
        vocab = vocabulary_of(name, words="keep")
        again = model_of(name, vocab)
        for key, tensor in load_archive(archive).model.state_dict().items():
            if key != "_last_average_loss":
                assert torch.equal(again.state_dict()[key], tensor), (name, key)


def test_the_run_itself_opens_without_its_origin(work, monkeypatch):
    train_model_from_file(str(CONFIG), "out", json.dumps(CHANGES))
    whole = evaluate_from_archive("out/model.tar.gz", "new.txt")
    run = moved_alone(work, monkeypatch, "out")
    assert TransformerElmo.open(run).perplexity("new.txt") == pytest.approx(whole["perplexity"])
    assert evaluate_from_archive(str(run), "new.txt") == whole
    train_model(Params(tagger_config(run)), "tagger")
    shutil.rmtree(run)
    assert evaluate_from_archive("tagger/model.tar.gz", "tagged.txt")


def test_a_run_that_lost_what_its_model_is(work):
    train_model_from_file(str(CONFIG), "out", json.dumps(CHANGES))
    os.remove("out/adapted_model.json")
    with pytest.raises(ConfigurationError, match=r"adapted_model\.json"):
        TransformerElmo.open("out")


def test_rows_stand_where_the_new_vocabulary_has_them(work):
    old = load_archive("lm.tar.gz").model
    vocab = vocabulary_of("lm.tar.gz", data_path="new.txt")
    words = vocab.get_index_to_token_vocabulary()
    # Counted with the archive's reader, by falling frequency; the entry for unknown words first.
    assert words[1] == "@@UNKNOWN@@" and {words[i] for i in range(2, 8)} >= {"owl", "<S>", "</S>"}
    new = model_of("lm.tar.gz", vocab)
    before, after = old.softmax.word_weights(), new.softmax.word_weights()
    numbers = old.vocab.get_token_to_index_vocabulary()
    shared = [i for i in words if i and words[i] in numbers]
    assert len(shared) < len(words) - 1
    for i in shared:
        assert torch.equal(after[0][i - 1], before[0][numbers[words[i]] - 1])
        assert after[1][i - 1] == before[1][numbers[words[i]] - 1]
    for name, tensor in old.state_dict().items():
        if not name.startswith("_softmax_loss."):
            assert torch.equal(new.state_dict()[name], tensor)


def test_biases_fit_the_new_text(work):
    vocab = vocabulary_of("lm.tar.gz", data_path="new.txt", words="extend")
    assert "dog" in vocab.get_token_to_index_vocabulary()
    losses = []
    for options in ({}, {"data_path": "new.txt"}):
        model = model_of("lm.tar.gz", vocab, **options).eval()
        losses.append(model(**tensors(NEW_TEXT, vocab))["loss"].item())
    assert losses[1] < losses[0] - 0.2


def test_keep_goes_on_where_the_model_was(work):
    """And with other settings of training."""
    old = load_archive("lm.tar.gz").model
    vocab = vocabulary_of("lm.tar.gz", words="keep")
    assert vocab.get_index_to_token_vocabulary() == old.vocab.get_index_to_token_vocabulary()
    new = model_of("lm.tar.gz", vocab, num_samples=None, sparse_embeddings=False, dropout=0.5)
    batch = tensors(NEW_TEXT, vocab)
    assert torch.equal(new.eval()(**batch)["loss"], old.eval()(**batch)["loss"])
    assert new.softmax.softmax_w.shape == old.softmax.softmax_w.weight.t().shape


def test_allennlp_models_opens_it(work):
    pytest.importorskip("allennlp_models")
    train_model_from_file(str(CONFIG), "out", json.dumps(CHANGES))
    archive = load_archive("out/model.tar.gz")
    peer = peer_model(archive.model.vocab, archive.config["model"].as_dict())
    peer.load_state_dict(archive.model.state_dict())
    batch = tensors(NEW_TEXT, archive.model.vocab)
    theirs = peer.eval()(**batch)["forward_loss"]
    assert torch.allclose(theirs, archive.model.eval()(**batch)["forward_loss"], atol=1e-4)


@pytest.mark.parametrize("kind", ["word level", "lstm"])
def test_other_language_models(work, make_model, kind, caplog):
    caplog.set_level(logging.INFO)
    config = experiment_config()
    if kind == "word level":
        config["model"]["text_field_embedder"] = {
            "token_embedders": {"tokens": {"type": "embedding", "embedding_dim": DIM}}
        }
        config["dataset_reader"]["token_indexers"] = {"tokens": {"type": "single_id"}}
    else:
        config["model"]["type"] = "language_model"
        config["model"]["contextualizer"] = {
            "type": "lstm",
            "input_size": DIM,
            "hidden_size": DIM,
        }
    old = make_model(**config["model"])
    write_archive(work / "other", config, old)
    vocab = vocabulary_of("other/model.tar.gz", data_path="new.txt")
    new = model_of("other/model.tar.gz", vocab, data_path="new.txt")
    words = vocab.get_index_to_token_vocabulary()
    numbers = old.vocab.get_token_to_index_vocabulary()
    shared = [i for i in words if words[i] in numbers]
    if kind == "word level":
        before = old._text_field_embedder.token_embedder_tokens.weight
        after = new._text_field_embedder.token_embedder_tokens.weight
        for i in words:
            expected = before[numbers.get(words[i], numbers["@@UNKNOWN@@"])]
            assert torch.equal(after[i], expected), words[i]
        assert "are the mean of the old ones" in caplog.text
    for i in shared[1:]:
        row = old.softmax.word_weights()[0][numbers[words[i]] - 1]
        assert torch.equal(new.softmax.word_weights()[0][i - 1], row)
    batch = tensors(NEW_TEXT, vocab, config["dataset_reader"])
    if kind == "lstm":
        # It reads forward only: nothing predicts the first token.
        with torch.no_grad():
            (contexts,) = new.eval().encode(batch["source"]).predicting(False)
            weight, bias = new.softmax.word_weights()
            average = torch.softmax(contexts @ weight.t() + bias, 1).mean(0)
        numbers = vocab.get_token_to_index_vocabulary()
        assert average[numbers["<S>"] - 1] < 0.01 < 0.05 < average[numbers["</S>"] - 1]
    assert math.isfinite(new.eval()(**batch)["loss"].item())


def test_another_script_altogether(work, caplog):
    (work / "new.txt").write_text("თბილისი ქუთაისი ။\nბათუმი თბილისი ။\n" * 5)
    vocab = vocabulary_of("lm.tar.gz", data_path="new.txt")
    for token in ("<S>", "</S>"):
        assert token in vocab.get_token_to_index_vocabulary()
    model_of("lm.tar.gz", vocab, data_path="new.txt")
    assert "No word of the new vocabulary" in caplog.text


def test_habits_that_differ_are_told(work):
    changes = {**CHANGES, "dataset_reader.start_tokens": ["<BOS>"]}
    train_model_from_file(str(CONFIG), "out", json.dumps(changes))
    log = Path("out/out.log").read_text()
    found = [line for line in log.splitlines() if "plugin.adaptation - dataset_reader." in line]
    assert len(found) == 1 and "start_tokens" in found[0] and '["<BOS>"]' in found[0]


class TestWrongInput:
    def test_no_softmax(self, work):
        TransformerElmo.open("lm.tar.gz").save("folder", with_softmax=False)
        with pytest.raises(ConfigurationError, match="folder has no softmax"):
            model_of("folder", vocabulary_of("folder", words="keep"))

    def test_no_archive(self, work, vocabulary):
        for make in (
            lambda name: vocabulary_of(name, words="keep"),
            lambda name: model_of(name, vocabulary),
        ):
            with pytest.raises(ConfigurationError, match=r"There is no archive 'none\.tar\.gz'"):
                make("none.tar.gz")

    def test_no_language_model(self, work, vocabulary):
        train_model(Params(tagger_config("lm.tar.gz")), "tagger")
        for make in (
            lambda name: vocabulary_of(name, words="keep"),
            lambda name: model_of(name, vocabulary),
        ):
            with pytest.raises(ConfigurationError, match="'simple_tagger', but only a language"):
                make("tagger/model.tar.gz")

    def test_other_sizes(self, work, vocabulary):
        for changes, told in (
            ({"hidden_dim": 128}, r"feed_forward.* has shape .* after the changes"),
            ({"num_layers": 3}, "want a weight _contextualizer"),
            ({"num_layers": 1}, "and none after the changes"),
        ):
            with pytest.raises(ConfigurationError, match=told):
                model_of("lm.tar.gz", vocabulary, contextualizer=changes)

    def test_options_of_the_vocabulary(self, work):
        for options, told in (
            ({"words": "more", "data_path": "new.txt"}, "one of replace, extend, keep: got 'more'"),
            ({}, '"replace" needs "data_path"'),
            ({"words": "extend", "data_path": "new.txt", "max_vocab_size": 3}, "max_vocab_size"),
            ({"data_path": "new.txt", "min_count": 1000}, "No word of new.txt occurs 1000 times"),
        ):
            with pytest.raises(ConfigurationError, match=told):
                vocabulary_of("lm.tar.gz", **options)

    def test_no_memory(self, work, vocabulary, monkeypatch, caplog):
        path = "transformer_elmo.plugin.adaptation._available_memory"
        monkeypatch.setattr(path, lambda: 1e-7)
        with pytest.raises(ConfigurationError, match="Take fewer words"):
            model_of("lm.tar.gz", vocabulary)
        needed = vocabulary.get_vocab_size() * (DIM + 1) * 4 / 1e9
        monkeypatch.setattr(path, lambda: 2 * needed)
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        model_of("lm.tar.gz", vocabulary)
        assert "Take fewer words" in caplog.text


def test_samples_as_the_archive_had_them(work):
    """Where the new vocabulary allows that."""
    vocab = vocabulary_of("lm.tar.gz", words="keep")
    assert model_of("lm.tar.gz", vocab).softmax.num_samples == model_config()["num_samples"]
    with pytest.raises(ConfigurationError, match="num_samples"):
        model_of("lm.tar.gz", vocab, num_samples=1000)


class SeesRates(TrainerCallback):
    """
    Keeps the learning rate of each parameter, by name, after every step.
    """

    found: ClassVar[List[Dict[str, float]]] = []

    def on_batch(self, trainer, *args, is_training=True, **kwargs):
        names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
        if is_training:
            self.found.append(
                {
                    names[id(parameter)]: group["lr"]
                    for group in trainer.optimizer.param_groups
                    for parameter in group["params"]
                }
            )


def test_rates_that_fall_layer_by_layer(work, make_model, monkeypatch):
    """The example in the shipped config's comments, copied from there."""
    monkeypatch.setattr(SeesRates, "found", [])
    TrainerCallback.register("sees_rates", exist_ok=True)(SeesRates)
    config = experiment_config()
    config["model"]["contextualizer"]["num_layers"] = 6
    write_archive(work / "deep", config, make_model(**config["model"]))
    monkeypatch.setenv("BIDIRECTIONAL_LM_ARCHIVE_PATH", "deep/model.tar.gz")
    lines = [line.removeprefix("//") for line in CONFIG.read_text().splitlines()]
    begin, end = lines.index("   trainer+: {"), lines.index("   }")
    example = "\n".join(lines[begin : end + 1])
    Path("layers.jsonnet").write_text(f"(import '{CONFIG}') + {{\n{example}\n}}")
    changes = {
        "trainer.num_epochs": 1,
        "trainer.callbacks": [{"type": "sees_rates"}],
        "trainer.checkpointer": None,
        "data_loader.max_tokens": 60,
    }
    train_model_from_file("layers.jsonnet", "out", json.dumps(changes))
    assert len(SeesRates.found) > 2
    model = load_archive("out/model.tar.gz").model
    for rates in SeesRates.found:
        # All parameters are there, each at one rate.
        assert rates.keys() == {name for name, _ in model.named_parameters()}
        groups = {}
        for name, rate in rates.items():
            layer = re.search(r"_(?:forward|backward)_transformer\.layers\.(\d)\.", name)
            groups.setdefault(int(layer[1]) if layer else name.split(".")[0], set()).add(rate)
        assert groups.keys() == {
            *range(6),
            "_text_field_embedder",
            "_contextualizer",
            "_softmax_loss",
        }
        assert all(len(its) == 1 for its in groups.values())
        order = ["_text_field_embedder", *range(6), "_softmax_loss"]
        falling = [groups[name].copy().pop() for name in order]
        for lower, higher in pairwise(falling):
            assert higher == pytest.approx(1.5 * lower)
        # The norms behind the last layer go with the softmax.
        assert groups["_contextualizer"] == groups["_softmax_loss"]
    # It warms up: after a step, the rate is that of the next one.
    warm = [its["_softmax_loss.softmax_b.weight"] for its in SeesRates.found]
    assert warm == pytest.approx([5e-4 * step / 200 for step in range(2, len(warm) + 2)])


def test_twice_in_a_row(work, monkeypatch):
    """From what an adaptation left, to a third text, and on with that."""
    train_model_from_file(str(CONFIG), "first", json.dumps(CHANGES))
    archive = moved_alone(work, monkeypatch, "first/model.tar.gz")
    Path("third.txt").write_text("a fox met the owl .\nthe fox was old .\n" * 5)
    monkeypatch.setenv("BIDIRECTIONAL_LM_TRAIN_PATH", "third.txt")
    texts, vocabularies = ("new.txt", "third.txt"), {}
    for words in ("extend", "keep"):
        monkeypatch.setenv("BIDIRECTIONAL_LM_ARCHIVE_PATH", str(archive))
        changes = {**CHANGES, "vocabulary.words": words, "validation_data_path": "third.txt"}
        train_model_from_file(str(CONFIG), words, json.dumps(changes))
        whole = [evaluate_from_archive(f"{words}/model.tar.gz", text) for text in texts]
        before = TransformerElmo.open(archive).vocab.words
        os.remove(archive)
        archive = shutil.move(f"{words}/model.tar.gz", f"{words}.tar.gz")
        shutil.rmtree(words)
        assert [evaluate_from_archive(archive, text) for text in texts] == whole
        vocabularies[words] = TransformerElmo.open(archive).vocab.words
        if words == "extend":
            # All of the first text's words, by their frequency in the new one.
            assert {*before, "fox"} < {*vocabularies[words]}
            assert vocabularies[words].index("fox") < vocabularies[words].index("barn")
    assert vocabularies["keep"] == vocabularies["extend"]


def test_keep_by_the_shipped_config(work):
    """Training goes on where the archive was: with no rate, nothing but biases changes."""
    changes = {**CHANGES, "vocabulary.words": "keep", "trainer.optimizer.lr": 0.0}
    changes["trainer.learning_rate_scheduler"] = None
    train_model_from_file(str(CONFIG), "out", json.dumps(changes))
    before = load_archive("lm.tar.gz").model
    after = load_archive("out/model.tar.gz").model
    for name, tensor in before.state_dict().items():
        # But for biases, which fit the new text.
        if "softmax_b" not in name and name != "_last_average_loss":
            assert torch.equal(after.state_dict()[name], tensor), name
