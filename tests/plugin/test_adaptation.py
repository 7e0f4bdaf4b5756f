"""
A language model taken to other text: what comes over, what training leaves, and what is told. All
archives are moved and their origin is deleted before they are opened.
"""

import copy
import json
import math
import os
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from allennlp.commands.evaluate import evaluate_from_archive
from allennlp.commands.train import train_model, train_model_from_file
from allennlp.common import Params
from allennlp.data import Vocabulary
from allennlp.models import Model
from allennlp.models.archival import load_archive
from allennlp.training.learning_rate_schedulers import LearningRateScheduler
from allennlp.training.optimizers import Optimizer

from tests.peer_lm import peer_model
from tests.pretrained.test_standing_alone import TAGGED, tagger_config
from tests.small_lm import DIM, experiment_config, model_config, tensors, write_archive
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


def train(folder, **changes):
    train_model_from_file(str(CONFIG), folder, json.dumps({**CHANGES, **changes}))


def write_work(folder, lm_archive, patch):
    """Where adaptation takes place, with a language model of other text."""
    patch.chdir(folder)
    shutil.copy(lm_archive, "lm.tar.gz")
    Path("new.txt").write_text("\n".join(NEW_TEXT * 3) + "\n")
    Path("tagged.txt").write_text(TAGGED)
    patch.setenv("BIDIRECTIONAL_LM_ARCHIVE_PATH", "lm.tar.gz")
    patch.setenv("BIDIRECTIONAL_LM_TRAIN_PATH", "new.txt")
    return folder


@pytest.fixture
def work(tmp_path, monkeypatch, lm_archive):
    (tmp_path / "work").mkdir()
    return write_work(tmp_path / "work", lm_archive, monkeypatch)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, lm_archive):
    with pytest.MonkeyPatch.context() as patch:
        folder = write_work(tmp_path_factory.mktemp("trained"), lm_archive, patch)
        train("out", **{"validation_data_path": "new.txt", "model.contextualizer.dropout": 0.2})
    return folder


@pytest.fixture
def adapted(work, trained):
    """The run of the shipped config in `work`, as `out`."""
    shutil.copytree(trained / "out", work / "out")
    return work


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


@pytest.mark.parametrize("name", ["out/model.tar.gz", "out"])
def test_what_training_leaves_stands_alone(adapted, monkeypatch, name):
    log = Path("out/out.log").read_text()
    assert "rows of the softmax came over" in log and "Biases are set" in log
    whole = evaluate_from_archive("out/model.tar.gz", "new.txt")
    vectors = TransformerElmo.open("out").embed(["an owl flew ."], "all")[0]
    path = moved_alone(adapted, monkeypatch, name)

    if path.is_file():
        config = load_archive(path).config.as_dict(quiet=True)
        assert "from_pretrained_lm" not in str(config) and "lm.tar.gz" not in str(config)
        # What isn't named is as the archive has it.
        contextualizer = {**model_config()["contextualizer"], "dropout": 0.2}
        assert config["model"]["contextualizer"].items() >= contextualizer.items()
    assert evaluate_from_archive(str(path), "new.txt") == whole
    elmo = TransformerElmo.open(path)
    assert "owl" in elmo.vocab and "dog" not in elmo.vocab
    assert np.array_equal(elmo.embed(["an owl flew ."], "all")[0], vectors)
    assert main(["export", str(path), "folder"]) == 0
    for opened in (elmo, TransformerElmo.open("folder")):
        assert opened.perplexity("new.txt") == pytest.approx(whole["perplexity"], rel=1e-5)
    # Adapted again, from there and from the folder.
    for again in (str(path), "folder"):
        state = model_of(again, vocabulary_of(again, words="keep")).state_dict()
        for key, tensor in load_archive(path).model.state_dict().items():
            assert key == "_last_average_loss" or torch.equal(state[key], tensor), (again, key)
    train_model(Params(tagger_config(path)), "tagger")
    shutil.rmtree(path, ignore_errors=True)
    assert evaluate_from_archive("tagger/model.tar.gz", "tagged.txt")


def test_a_run_that_lost_what_its_model_is(adapted):
    os.remove("out/adapted_model.json")
    with pytest.raises(ConfigurationError, match=r"adapted_model\.json"):
        TransformerElmo.open("out")


def test_allennlp_models_opens_it(adapted):
    pytest.importorskip("allennlp_models")
    archive = load_archive("out/model.tar.gz")
    peer = peer_model(archive.model.vocab, archive.config["model"].as_dict())
    peer.load_state_dict(archive.model.state_dict())
    batch = tensors(NEW_TEXT, archive.model.vocab)
    theirs = peer.eval()(**batch)["forward_loss"]
    assert torch.allclose(theirs, archive.model.eval()(**batch)["forward_loss"], atol=1e-4)


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
        for one, other in zip(after, before):
            assert torch.equal(one[i - 1], other[numbers[words[i]] - 1])
    for name, tensor in old.state_dict().items():
        if not name.startswith("_softmax_loss."):
            assert torch.equal(new.state_dict()[name], tensor)


def test_biases_fit_the_new_text(work):
    vocab = vocabulary_of("lm.tar.gz", data_path="new.txt", words="extend")
    numbers = vocab.get_token_to_index_vocabulary()
    # All of the archive's words, by their frequency in the new text.
    assert (
        numbers.keys()
        >= load_archive("lm.tar.gz").model.vocab.get_token_to_index_vocabulary().keys()
    )
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


@pytest.mark.parametrize("kind", ["word level", "lstm"])
def test_other_language_models(work, make_model, kind, caplog):
    caplog.set_level("INFO")
    config = experiment_config()
    if kind == "word level":
        embedders = {"tokens": {"type": "embedding", "embedding_dim": DIM}}
        config["model"]["text_field_embedder"] = {"token_embedders": embedders}
        config["dataset_reader"]["token_indexers"] = {"tokens": {"type": "single_id"}}
    else:
        config["model"]["type"] = "language_model"
        lstm = {"type": "lstm", "input_size": DIM, "hidden_size": DIM}
        config["model"]["contextualizer"] = lstm
    old = make_model(**config["model"])
    write_archive(work / "other", config, old)
    vocab = vocabulary_of("other/model.tar.gz", data_path="new.txt")
    new = model_of("other/model.tar.gz", vocab, data_path="new.txt")
    words = vocab.get_index_to_token_vocabulary()
    numbers = old.vocab.get_token_to_index_vocabulary()
    for i in [i for i in words if words[i] in numbers][1:]:
        row = old.softmax.word_weights()[0][numbers[words[i]] - 1]
        assert torch.equal(new.softmax.word_weights()[0][i - 1], row)
    batch = tensors(NEW_TEXT, vocab, config["dataset_reader"])
    assert math.isfinite(new.eval()(**batch)["loss"].item())
    if kind == "word level":
        before = old._text_field_embedder.token_embedder_tokens.weight
        after = new._text_field_embedder.token_embedder_tokens.weight
        for i in words:
            expected = before[numbers.get(words[i], numbers["@@UNKNOWN@@"])]
            assert torch.equal(after[i], expected), words[i]
        assert "are the mean of the old ones" in caplog.text
    else:
        # It reads forward only: nothing predicts the first token.
        with torch.no_grad():
            (contexts,) = new.encode(batch["source"]).predicting(False)
            weight, bias = new.softmax.word_weights()
            average = torch.softmax(contexts @ weight.t() + bias, 1).mean(0)
        numbers = vocab.get_token_to_index_vocabulary()
        assert average[numbers["<S>"] - 1] < 0.01 < 0.05 < average[numbers["</S>"] - 1]


def test_another_script_altogether(work, caplog):
    caplog.set_level("INFO")
    (work / "new.txt").write_text("თბილისი ქუთაისი ။\nბათუმი თბილისი ။\n" * 5)
    vocab = vocabulary_of("lm.tar.gz", data_path="new.txt")
    assert {"<S>", "</S>"} <= vocab.get_token_to_index_vocabulary().keys()
    model = model_of("lm.tar.gz", vocab, data_path="new.txt")
    assert "No word of the new vocabulary" in caplog.text
    assert model.get_parameter("_softmax_loss.softmax_w").shape == (DIM, 8)
    assert "num_samples is 8, and the vocabulary has 8 entries" in caplog.text


def test_habits_that_differ_are_told(work):
    changes = {"start_tokens": ["<BOS>"], "tokenizer": "whitespace"}
    train("out", **{f"dataset_reader.{key}": value for key, value in changes.items()})
    log = Path("out/out.log").read_text()
    found = [line for line in log.splitlines() if "plugin.adaptation - dataset_reader." in line]
    assert len(found) == 1 and "start_tokens" in found[0] and '["<BOS>"]' in found[0]


def test_what_cannot_be_adapted(work, vocabulary):
    TransformerElmo.open("lm.tar.gz").save("folder", with_softmax=False)
    with pytest.raises(ConfigurationError, match="folder has no softmax"):
        model_of("folder", vocabulary_of("folder", words="keep"))
    vocabulary = copy.deepcopy(vocabulary)
    vocabulary.add_token_to_namespace("N", "labels")
    section = {
        "type": "simple_tagger",
        "text_field_embedder": {
            "token_embedders": {"tokens": {"type": "pass_through", "hidden_dim": 1}}
        },
        "encoder": {"type": "pass_through", "input_dim": 1},
    }
    tagger = Model.from_params(Params(copy.deepcopy(section)), vocab=vocabulary)
    config = {"dataset_reader": {"type": "sequence_tagging"}, "model": section}
    write_archive(work / "other", config, tagger)
    for path, told in (
        ("none.tar.gz", r"There is no archive 'none\.tar\.gz'"),
        ("other/model.tar.gz", "'simple_tagger', but only a language"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            vocabulary_of(path, words="keep")
        with pytest.raises(ConfigurationError, match=told):
            model_of(path, vocabulary)


@pytest.mark.parametrize(
    "changes, told",
    [
        (
            {"hidden_dim": 128},
            r"feed_forward\S* has shape \[64\] in lm\S*, and \[128\] after the changes",
        ),
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
    scheduler = LearningRateScheduler.from_params(section, optimizer=optimizer, num_epochs=1)
    names = {id(parameter): name for name, parameter in named}
    groups = [
        "_text_field_embedder",
        *(f"_transformer.layers.{n}." for n in range(6)),
        "_softmax_loss",
    ]
    for step in range(1, 4):
        rates = {names[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"]}
        assert rates.keys() == set(names.values())
        of_groups = [{rate for name, rate in rates.items() if part in name} for part in groups]
        falling = [rate for (rate,) in of_groups]
        for lower, higher in pairwise(falling):
            assert higher == pytest.approx(1.5 * lower)
        # It warms up.
        assert falling[-1] == pytest.approx(5e-4 * step / 200)
        scheduler.step_batch(step)
