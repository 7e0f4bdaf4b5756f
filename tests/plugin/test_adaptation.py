"""
A language model taken to other text: what comes over, what training leaves, and what is told. All
archives are moved and their origin is deleted before they are opened.
"""

import copy
import json
import os
import shutil
import signal
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch._dynamo  # Once, and not in each process.
from allennlp.commands.evaluate import evaluate_from_archive
from allennlp.commands.train import train_model_from_file
from allennlp.common import Params
from allennlp.data import Vocabulary
from allennlp.models import Model
from allennlp.models.archival import load_archive
from allennlp.training.callbacks import TrainerCallback
from allennlp.training.learning_rate_schedulers import LearningRateScheduler
from allennlp.training.optimizers import Optimizer

from tests.plugin.tiny_run import Signal, forked, weights_are_the_same
from tests.small_lm import DIM, experiment_config, model_config, tensors, write_archive
from transformer_elmo import ConfigurationError, LanguageModelTokenEmbedder, TransformerElmo
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


def train(folder, **changes):
    train_model_from_file(str(CONFIG), folder, json.dumps({**CHANGES, **changes}))


@pytest.fixture
def work(tmp_path, monkeypatch, lm_archive):
    """Where adaptation takes place, with a language model of other text."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    shutil.copy(lm_archive, "lm.tar.gz")
    Path("new.txt").write_text("\n".join(NEW_TEXT * 3) + "\n")
    monkeypatch.setenv("BIDIRECTIONAL_LM_ARCHIVE_PATH", "lm.tar.gz")
    monkeypatch.setenv("BIDIRECTIONAL_LM_TRAIN_PATH", "new.txt")
    return folder


@pytest.fixture
def adapted(work):
    """The run of the shipped config in `work`, as `out`."""
    train("out", **{"validation_data_path": "new.txt", "model.contextualizer.dropout": 0.2})
    return work


@pytest.mark.parametrize("name", ["out/model.tar.gz", "out"])
def test_what_training_leaves_stands_alone(adapted, monkeypatch, name):
    log = Path("out/out.log").read_text()
    assert "rows of the softmax came over" in log and "Biases are set" in log
    whole = evaluate_from_archive("out/model.tar.gz", "new.txt")
    away = adapted.parent / "away"
    away.mkdir()
    path = Path(shutil.move(adapted / name, away / "it.tar.gz"))
    shutil.copy("new.txt", away)
    monkeypatch.chdir(away)
    shutil.rmtree(adapted)

    if path.is_file():
        config = load_archive(path).config.as_dict(quiet=True)
        assert "from_pretrained_lm" not in str(config) and "lm.tar.gz" not in str(config)
        # What isn't named is as the archive has it.
        contextualizer = {**model_config()["contextualizer"], "dropout": 0.2}
        assert config["model"]["contextualizer"].items() >= contextualizer.items()
    assert evaluate_from_archive(str(path), "new.txt") == whole
    elmo = TransformerElmo.open(path)
    assert "owl" in elmo.vocab and "dog" not in elmo.vocab
    assert main(["export", str(path), "folder"]) == 0
    for opened in (elmo, TransformerElmo.open("folder")):
        assert opened.perplexity("new.txt") == pytest.approx(whole["perplexity"], rel=1e-5)
    # Adapted again, from there and from the folder.
    for again in (str(path), "folder"):
        state = model_of(again, vocabulary_of(again, words="keep")).state_dict()
        for key, tensor in load_archive(path).model.state_dict().items():
            assert key == "_last_average_loss" or torch.equal(state[key], tensor), (again, key)


def test_a_run_that_lost_what_its_model_is(adapted):
    os.remove("out/adapted_model.json")
    with pytest.raises(ConfigurationError, match=r"adapted_model\.json"):
        TransformerElmo.open("out")


def test_biases_fit_the_new_text(work):
    vocab = vocabulary_of("lm.tar.gz", data_path="new.txt", words="extend")
    numbers = vocab.get_token_to_index_vocabulary()
    # All of the archive's words, by their frequency in the new text.
    assert numbers.keys() >= {*TransformerElmo.open("lm.tar.gz").vocab.words}
    assert numbers["owl"] < numbers["dog"]
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
    assert model_of("lm.tar.gz", vocab).softmax.num_samples == model_config()["num_samples"]
    batch = tensors(NEW_TEXT, vocab)
    # With more samples than words, it is the full softmax's.
    for changes in ({"num_samples": None, "sparse_embeddings": False}, {"num_samples": 1000}):
        new = model_of("lm.tar.gz", vocab, dropout=0.5, **changes)
        assert torch.equal(new.eval()(**batch)["loss"], old.eval()(**batch)["loss"])
        assert new.softmax.softmax_w.shape == old.softmax.softmax_w.weight.t().shape


def test_rows_stand_where_the_new_vocabulary_has_them(work, make_model, caplog):
    caplog.set_level("INFO")
    config = experiment_config()
    embedders = {"tokens": {"type": "embedding", "embedding_dim": DIM}}
    config["model"]["text_field_embedder"] = {"token_embedders": embedders}
    config["dataset_reader"]["token_indexers"] = {"tokens": {"type": "single_id"}}
    old = make_model(**config["model"])
    write_archive(work / "other", config, old)
    vocab = vocabulary_of("other/model.tar.gz", data_path="new.txt")
    words = vocab.get_index_to_token_vocabulary()
    # Counted with the archive's reader, by falling frequency; the entry for unknown words first.
    assert words[1] == "@@UNKNOWN@@" and {words[i] for i in range(2, 8)} >= {"owl", "<S>", "</S>"}
    new = model_of("other/model.tar.gz", vocab)
    numbers = old.vocab.get_token_to_index_vocabulary()
    before, after = (model.state_dict() for model in (old, new))
    embedding = "_text_field_embedder.token_embedder_tokens.weight"
    for i, word in words.items():
        expected = numbers.get(word, numbers["@@UNKNOWN@@"])
        assert torch.equal(after[embedding][i], before[embedding][expected]), word
        if i and word in numbers:
            for one, other in zip(new.softmax.word_weights(), old.softmax.word_weights()):
                assert torch.equal(one[i - 1], other[expected - 1]), word
    for name in before:
        if name != embedding and not name.startswith("_softmax_loss."):
            assert torch.equal(after[name], before[name]), name
    assert "are the mean of the old ones" in caplog.text


def test_a_model_that_reads_forward_only(work, make_model):
    config = experiment_config()
    config["model"]["type"] = "language_model"
    lstm = {"type": "lstm", "input_size": DIM, "hidden_size": DIM}
    config["model"]["contextualizer"] = lstm
    write_archive(work / "other", config, make_model(**config["model"]))
    vocab = vocabulary_of("other/model.tar.gz", data_path="new.txt")
    new = model_of("other/model.tar.gz", vocab, data_path="new.txt").eval()
    with torch.no_grad():
        (contexts,) = new.encode(tensors(NEW_TEXT, vocab)["source"]).predicting(False)
        weight, bias = new.softmax.word_weights()
        average = torch.softmax(contexts @ weight.t() + bias, 1).mean(0)
    # Nothing predicts the first token.
    first, last = (average[vocab.get_token_index(word) - 1] for word in ("<S>", "</S>"))
    assert first < 0.01 < 0.05 < last


def test_another_script_altogether(work, caplog):
    caplog.set_level("INFO")
    (work / "new.txt").write_text("თბილისი ქუთაისი ။\nბათუმი თბილისი ။\n" * 5)
    vocab = vocabulary_of("lm.tar.gz", data_path="new.txt")
    assert {"<S>", "</S>"} <= vocab.get_token_to_index_vocabulary().keys()
    Path("run").mkdir()
    model = model_of("lm.tar.gz", vocab, data_path="new.txt", serialization_dir="run")
    assert "No word of the new vocabulary" in caplog.text
    assert model.get_parameter("_softmax_loss.softmax_w").shape == (DIM, 8)
    assert "num_samples is 8, and the vocabulary has 8 entries" in caplog.text
    # allennlp-models wants more words than samples.
    assert json.loads(Path("run/adapted_model.json").read_text())["num_samples"] is None


def test_habits_that_differ_are_told(work):
    changes = {"start_tokens": ["<BOS>"], "tokenizer": "whitespace"}
    train("out", **{f"dataset_reader.{key}": value for key, value in changes.items()})
    log = Path("out/out.log").read_text()
    found = [line for line in log.splitlines() if "plugin.adaptation - dataset_reader." in line]
    assert len(found) == 1 and "start_tokens" in found[0] and '["<BOS>"]' in found[0]


def test_archives_of_other_models(work, vocabulary):
    words = {"type": "pass_through", "hidden_dim": 1}
    section = {
        "type": "simple_tagger",
        "text_field_embedder": {"token_embedders": {"tokens": words}},
        "encoder": {"type": "pass_through", "input_dim": 1},
    }
    labels = Vocabulary(counter={"labels": {"N": 1}})
    tagger = Model.from_params(Params(copy.deepcopy(section)), vocab=labels)
    config = {"dataset_reader": {"type": "sequence_tagging"}, "model": section}
    archive = str(write_archive(work / "other", config, tagger))
    TransformerElmo.open("lm.tar.gz").save("folder", with_softmax=False)
    for call, told in (
        (lambda: vocabulary_of("none.tar.gz", words="keep"), r"no archive 'none\.tar\.gz'"),
        (lambda: model_of("none.tar.gz", vocabulary), r"no archive 'none\.tar\.gz'"),
        (lambda: vocabulary_of(archive, words="keep"), "'simple_tagger', but only a language"),
        (lambda: model_of(archive, vocabulary), "'simple_tagger', but only a language"),
        (lambda: LanguageModelTokenEmbedder(archive), "SimpleTagger, but a token embedder needs"),
        (lambda: model_of("folder", vocabulary), "folder has no softmax"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            call()


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"hidden_dim": 128}, r"feed_forward\S* has shape \[64\] in lm\S*, and \[128\] after the"),
        ({"num_layers": 3}, r"layers\.2\S* has shape None in lm"),
        ({"num_layers": 1}, "and None after the changes"),
    ],
)
def test_other_sizes(work, vocabulary, changes, told):
    with pytest.raises(ConfigurationError, match=told):
        model_of("lm.tar.gz", vocabulary, contextualizer=changes)


@pytest.mark.parametrize(
    "options, told",
    [
        ({"words": "more", "data_path": "new.txt"}, "one of replace, extend, keep: got 'more'"),
        ({}, '"replace" needs "data_path"'),
        ({"words": "extend", "data_path": "new.txt", "max_vocab_size": 3}, "max_vocab_size"),
        ({"data_path": "new.txt", "min_count": 1000}, "No word of new.txt occurs 1000 times"),
    ],
)
def test_options_of_the_vocabulary(work, options, told):
    with pytest.raises(ConfigurationError, match=told):
        vocabulary_of("lm.tar.gz", **options)


def test_rates_that_fall_layer_by_layer(work, make_model):
    """The example in the shipped config's comments, copied from there."""
    lines = [line.removeprefix("//") for line in CONFIG.read_text().splitlines()]
    begin, end = lines.index("   trainer+: {"), lines.index("   }")
    example = "\n".join(lines[begin : end + 1])
    Path("layers.jsonnet").write_text(f"(import '{CONFIG}') + {{\n{example}\n}}")
    trainer = Params.from_file("layers.jsonnet")["trainer"]
    model = make_model(contextualizer={**model_config()["contextualizer"], "num_layers": 6})
    named = [[n, p] for n, p in model.named_parameters()]
    optimizer = Optimizer.from_params(trainer["optimizer"], model_parameters=named)
    section = trainer["learning_rate_scheduler"]
    LearningRateScheduler.from_params(section, optimizer=optimizer, num_epochs=1)
    names = {parameter: name for name, parameter in named}
    rates = {names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates.keys() == set(names.values())
    layers = [f"_transformer.layers.{n}." for n in range(6)]
    # At the first of 200 steps of warm-up.
    falling = []
    for part in ("_text_field_embedder", *layers, "_softmax_loss"):
        (rate,) = {rate for name, rate in rates.items() if part in name}
        falling.append(rate)
    assert falling[-1] == pytest.approx(5e-4 / 200)
    for lower, higher in pairwise(falling):
        assert higher == pytest.approx(1.5 * lower)


@TrainerCallback.register("kill_at", exist_ok=True)
class KillAt(Signal):
    """At a step that isn't in the config: all runs have the same one."""

    at = -1

    def __init__(self, serialization_dir):
        super().__init__(serialization_dir, at=self.at)


def train_in_parts(folder, kill_at, recover=False):
    KillAt.at = kill_at
    changes = {
        "validation_data_path": "new.txt",
        "data_loader.max_tokens": 60,
        "trainer.num_epochs": 3,
        "trainer.checkpointer.save_every_num_batches": 2,
        "trainer.callbacks": [{"type": "resume_data"}, {"type": "kill_at"}],
    }
    # A run that goes on must not depend on what its process begins with.
    torch.manual_seed(int(recover))
    train_model_from_file(str(CONFIG), folder, json.dumps(changes), recover=recover)


def test_a_killed_run_goes_on_to_the_same_bits_without_the_archive(work, capfd):
    assert forked(train_in_parts, "whole", -1) == 0
    assert forked(train_in_parts, "out", 3) == -signal.SIGKILL
    assert list(Path("out").glob("model_state_*.th")) and not Path("out/model.tar.gz").exists()
    written = [Path("out/vocabulary/tokens.txt"), Path("out/config.json")]
    before = [path.read_text() for path in written]
    os.remove("lm.tar.gz")
    # In the first epoch, and in the last one.
    assert forked(train_in_parts, "out", 8, True) == -signal.SIGKILL, capfd.readouterr().err[-2000:]
    assert forked(train_in_parts, "out", -1, True) == 0, capfd.readouterr().err[-2000:]
    assert [path.read_text() for path in written] == before
    for name in ("best.th", "model_state_e3_b0.th"):
        weights_are_the_same(torch.load(f"whole/{name}"), torch.load(f"out/{name}"))
    elmo = TransformerElmo.open("out/model.tar.gz")
    assert elmo.perplexity("new.txt") == TransformerElmo.open("whole").perplexity("new.txt")


def test_without_a_checkpoint_a_killed_run_needs_the_archive(work):
    assert forked(train_in_parts, "out", 1) == -signal.SIGKILL
    assert not list(Path("out").glob("model_state_*.th"))
    # Weights alone are none to go on with.
    Path("out/best.th").write_bytes(b"")
    os.remove("lm.tar.gz")
    with pytest.raises(ConfigurationError, match=r"There is no archive 'lm\.tar\.gz'"):
        train_in_parts("out", -1, True)
