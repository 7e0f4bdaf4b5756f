"""
What training leaves opens anywhere: each archive is moved, all else is deleted, and the working
folder is another one.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from allennlp.commands.evaluate import evaluate_from_archive
from allennlp.commands.train import train_model
from allennlp.common import Params
from allennlp.data import Token
from allennlp.models.archival import load_archive
from allennlp.predictors import Predictor

from tests.small_lm import (
    DIM,
    WORDS,
    experiment_config,
    model_config,
    random_sentences,
    write_archive,
)
from transformer_elmo import ConfigurationError, TransformerElmo
from transformer_elmo.commands.cli import main
from transformer_elmo.pretrained.nested_models import FOLDER

ROOT = Path(__file__).resolve().parents[2]

TAGGED = "the###D dog###N ran###V .###.\na###D cat###N sat###V\nbirds###N flew###V\n"


def tagger_config(archive, **changes):
    return {
        "dataset_reader": {
            "type": "sequence_tagging",
            "token_indexers": {"elmo": {"type": "elmo_characters"}},
        },
        "train_data_path": "tagged.txt",
        "validation_data_path": "tagged.txt",
        "model": {
            "type": "simple_tagger",
            "text_field_embedder": {
                "token_embedders": {
                    "elmo": {
                        "type": "bidirectional_lm_token_embedder",
                        "archive_file": str(archive),
                        **changes,
                    }
                }
            },
            "encoder": {"type": "pass_through", "input_dim": 2 * DIM},
        },
        "data_loader": {"batch_size": 2},
        "trainer": {"num_epochs": 1, "optimizer": {"type": "adam", "lr": 0.01}},
    }


@pytest.fixture(scope="module")
def trained(lm_archive, tmp_path_factory):
    """A folder with a language model, texts, and the run of a tagger that trains it along."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tagged.txt").write_text(TAGGED)
    known = [
        " ".join(w for w in s.split() if w in WORDS[:-3]) for s in random_sentences(60, seed=3)
    ]
    (folder / "text.txt").write_text("\n".join(known))
    (folder / "lm").mkdir()
    shutil.copy(lm_archive, folder / "lm" / "model.tar.gz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # As people write it: relative to where they are.
        train_model(Params(tagger_config("lm/model.tar.gz", requires_grad=True)), "out")
    return folder


@pytest.fixture
def work(trained, tmp_path, monkeypatch):
    """Where training takes place."""
    folder = shutil.copytree(trained, tmp_path / "work")
    monkeypatch.chdir(folder)
    return folder


LM = "lm/model.tar.gz"


@pytest.fixture
def alone(tmp_path, work, monkeypatch):
    """Moves an archive away and deletes all that it was made from."""

    def move(*names):
        away = tmp_path / "away" / "deep"
        away.mkdir(parents=True)
        moved = [Path(shutil.move(str(work / name), str(away))) for name in names]
        kept = {name: (work / name).read_text() for name in ("tagged.txt", "text.txt")}
        monkeypatch.chdir(tmp_path / "away")
        shutil.rmtree(work)
        for name, text in kept.items():
            (tmp_path / "away" / name).write_text(text)
        return moved[0] if len(moved) == 1 else moved

    return move


def members(archive):
    with tarfile.open(archive) as tar:
        return tar.getnames()


def same_weights(one, other):
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_tagger(work, alone):
    model = load_archive("out/model.tar.gz").model
    whole = evaluate_from_archive("out/model.tar.gz", "tagged.txt")
    names = members("out/model.tar.gz")
    assert names[0] == "config.json" and names[-1] == "weights.th"
    assert any(name.startswith(f"{FOLDER}/") and name.endswith("tokens.txt") for name in names)
    assert not any(name.endswith(".lock") for name in names)
    archive = alone("out/model.tar.gz")

    assert evaluate_from_archive(archive, "tagged.txt") == whole
    opened = load_archive(archive)
    same_weights(model, opened.model)
    instance = next(iter(opened.dataset_reader.read("tagged.txt")))
    assert opened.model.forward_on_instance(instance)["tags"]
    # In a process of its own, as users have it.
    done = subprocess.run(
        [
            *(sys.executable, "-m", "allennlp", "evaluate", "--include-package"),
            *("transformer_elmo", str(archive), "tagged.txt"),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_language_model_in_a_tagger(work, alone, capsys):
    vectors = TransformerElmo.open(LM).embed(["the dog ran ."], "all")[0]
    archive = alone("out/model.tar.gz")
    elmo = TransformerElmo.open(archive)
    # It was trained along.
    found = elmo.embed(["the dog ran ."], "all")[0]
    assert not np.allclose(found, vectors, atol=1e-4)
    opened = load_archive(archive)
    opened.model.eval()
    embedder = opened.model.text_field_embedder.token_embedder_elmo
    tokens = [Token(word) for word in "the dog ran .".split()]
    instance = opened.dataset_reader.text_to_instance(tokens)
    opened.dataset_reader.apply_token_indexers(instance)
    instance.index_fields(opened.model.vocab)
    characters = instance.as_tensor_dict()["tokens"]["elmo"]["elmo_tokens"].unsqueeze(0)
    mix: Any = embedder._scalar_mix
    weights = torch.softmax(torch.cat(list(mix.scalar_parameters)), 0) * mix.gamma
    mixed = torch.tensordot(weights, torch.from_numpy(found), 1)
    assert torch.allclose(mixed, embedder(characters)[0], atol=1e-5)
    assert "cat" in elmo.vocab
    with pytest.raises(ConfigurationError, match=r"no softmax"):
        elmo.score(["the dog"])
    assert main(["export", str(archive), "folder"]) == 0
    exported = TransformerElmo.open("folder").embed(["the dog ran ."], "all")[0]
    assert np.allclose(exported, found, atol=1e-6)
    assert main(["embed", str(archive), "text.txt", "vectors.npy", "--top"]) == 0


def test_a_tagger_adapted_again(work, alone):
    """From the archive of a tagger, itself gone afterwards."""
    config = tagger_config(LM)
    config["model"] = {"type": "from_archive", "archive_file": "out/model.tar.gz"}
    # Its labels come in another order.
    (work / "tagged.txt").write_text("\n".join(reversed(TAGGED.split("\n"))))
    train_model(Params(config), "second")
    whole = evaluate_from_archive("second/model.tar.gz", "tagged.txt")
    labels = load_archive("second/model.tar.gz").model.vocab.get_index_to_token_vocabulary("labels")
    archive = alone("second/model.tar.gz")
    assert evaluate_from_archive(archive, "tagged.txt") == whole
    opened = load_archive(archive)
    assert opened.config["model"]["type"] == "simple_tagger"
    assert opened.model.vocab.get_index_to_token_vocabulary("labels") == labels


def fine_tuning_config(archive):
    return experiment_config(
        train_data_path="text.txt",
        # Counted in the new text, in another order than the archive's.
        vocabulary={"type": "from_corpus", "data_path": "text.txt"},
        model={"type": "from_archive", "archive_file": str(archive)},
        trainer={"num_epochs": 1, "optimizer": {"type": "dense_sparse_adam", "lr": 0.01}},
    )


def test_a_language_model_trained_further(work, alone):
    words = TransformerElmo.open(LM).vocab.words
    train_model(Params(fine_tuning_config(LM)), "tuned")
    whole = evaluate_from_archive("tuned/model.tar.gz", "text.txt")
    expected = TransformerElmo.open("tuned/model.tar.gz").perplexity("text.txt")
    archive = alone("tuned/model.tar.gz")
    assert evaluate_from_archive(archive, "text.txt") == pytest.approx(whole)
    elmo = TransformerElmo.open(archive)
    assert elmo.perplexity("text.txt") == pytest.approx(expected, rel=1e-6)
    assert elmo.perplexity("text.txt") == pytest.approx(whole["perplexity"], rel=1e-5)
    # What the archive knew keeps its place.
    assert elmo.vocab.words == words
    predictor = Predictor.from_archive(load_archive(archive))
    assert predictor.predict_json({"sentence": "the cat sat"})["tokens"][1:3] == ["the", "cat"]
    assert main(["report", str(archive), "-o", "report.html", "--sentences", "text.txt"]) == 0
    assert "<h3>Sentence" in Path("report.html").read_text()
    # Trained on, and as an embedder.
    shutil.copy(archive, "lm.tar.gz")
    train_model(Params(fine_tuning_config("lm.tar.gz")), "third")
    train_model(Params(tagger_config("third/model.tar.gz")), "tagger")


def test_an_archive_of_allennlp_s_own_that_names_its_base(work, capsys):
    """Such an archive has the run's own config, and opens where the base is."""
    config = fine_tuning_config(LM)
    model = train_model(Params(config), "tuned")
    with tarfile.open("stock.tar.gz", "w:gz") as tar:
        for name in ("config.json", "vocabulary", "best.th"):
            tar.add(f"tuned/{name}", name.replace("best", "weights"))

    def check(overrides):
        opened = load_archive("stock.tar.gz", overrides=overrides)
        same_weights(model, opened.model)
        predictor = Predictor.from_archive(opened)
        predicted = predictor.predict_json(predictor.load_line("the cat"))
        assert predicted["tokens"][1:3] == ["the", "cat"]
        elmo = TransformerElmo.open("stock.tar.gz", overrides=overrides or None)
        metrics = evaluate_from_archive("stock.tar.gz", "text.txt", cmd_overrides=overrides)
        assert metrics["perplexity"] == pytest.approx(elmo.perplexity("text.txt"), rel=1e-5)

    check("")
    assert main(["score", "stock.tar.gz", "text.txt", "--output-file", "scores"]) == 0
    shutil.move(LM, "moved.tar.gz")
    expected = (
        r"stock\.tar\.gz names lm/model\.tar\.gz, which its training began with and which isn't "
        r"there.*-o '\{\"model\.archive_file\": "
    )
    evaluate = partial(evaluate_from_archive, input_file="text.txt")
    for opened in (load_archive, TransformerElmo.open, evaluate):
        with pytest.raises(ConfigurationError, match=expected):
            opened("stock.tar.gz")
    for command in (["score", "text.txt"], ["export", "folder"], ["embed", "text.txt", "a.npy"]):
        options = ["--top"] if command[0] == "embed" else []
        assert main([command[0], "stock.tar.gz", *command[1:], *options]) == 1
        assert re.search(expected, capsys.readouterr().err)
    assert not {"folder", "a.npy", "a.npy.partial"} & set(os.listdir())
    check(json.dumps({"model.archive_file": "moved.tar.gz"}))


def test_a_run_that_was_moved(work, alone):
    """A folder, not an archive."""
    whole = evaluate_from_archive("out", "tagged.txt")
    folder = alone("out")
    assert evaluate_from_archive(str(folder), "tagged.txt") == whole


def test_over_a_model_folder(work, alone):
    TransformerElmo.open(LM).save("folder", with_softmax=False)
    train_model(Params(tagger_config("folder")), "over")
    whole = evaluate_from_archive("over/model.tar.gz", "tagged.txt")
    assert evaluate_from_archive(alone("over/model.tar.gz"), "tagged.txt") == whole


def test_what_is_missing_is_named(work, alone, make_model):
    """Over a model of word ids, which are known to its archive alone."""
    embedder = {"token_embedders": {"tokens": {"type": "embedding", "embedding_dim": DIM}}}
    model = model_config(text_field_embedder=embedder, sparse_embeddings=False)
    config = experiment_config(model=model)
    config["dataset_reader"]["token_indexers"] = {"tokens": {"type": "single_id"}}
    write_archive(work / "words", config, make_model(**config["model"]))
    tagger = tagger_config("words/model.tar.gz")
    tagger["dataset_reader"]["token_indexers"] = {"elmo": {"type": "single_id"}}
    train_model(Params(tagger), "over")
    whole = evaluate_from_archive("over/model.tar.gz", "tagged.txt")
    vectors = TransformerElmo.open("words/model.tar.gz").embed(["the dog ran ."])[0]
    with tarfile.open("over/model.tar.gz") as tar:
        tar.extractall("unpacked", filter="data")
    # As earlier versions wrote it, and AllenNLP does.
    shutil.rmtree(f"unpacked/{FOLDER}")
    with tarfile.open("old.tar.gz", "w:gz") as tar:
        for name in sorted(os.listdir("unpacked")):
            tar.add(f"unpacked/{name}", name)
    assert evaluate_from_archive("old.tar.gz", "tagged.txt") == whole
    new, old = alone("over/model.tar.gz", "old.tar.gz")
    assert evaluate_from_archive(new, "tagged.txt") == whole
    assert np.allclose(TransformerElmo.open(new).embed(["the dog ran ."])[0], vectors)
    override = r"model\.text_field_embedder\.token_embedders\.elmo\.archive_file"
    for opened in (load_archive, TransformerElmo.open):
        with pytest.raises(ConfigurationError, match=rf"words/model\.tar\.gz.*{override}"):
            opened(old)


def test_no_language_model_at_all(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model": {"type": "simple_tagger"}}))
    with pytest.raises(ConfigurationError, match="'simple_tagger', which is no language model"):
        TransformerElmo.open(tmp_path)


def test_a_failing_archive_leaves_nothing(work, monkeypatch):
    before = Path("out/model.tar.gz").read_bytes()
    from allennlp.models.archival import archive_model

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(ConfigurationError, match=r"model\.tar\.gz can't be written: no space"):
            archive_model("out")
    assert Path("out/model.tar.gz").read_bytes() == before
    assert not list(Path("out").glob(".model*"))
    with pytest.raises(RuntimeError, match=r"weights file 'out/none\.th' does not exist"):
        archive_model("out", weights="none.th")
    # With more of the run, and elsewhere.
    (work / "out" / "notes[1].txt").write_text("x")
    path = archive_model("out", archive_path=str(work), include_in_archive=["notes*"])
    assert path == str(work / "model.tar.gz") and "notes[1].txt" in members(path)
