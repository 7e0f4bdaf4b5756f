"""
What training leaves opens anywhere: each archive is moved, all else is deleted, and the working
folder is another one.
"""

import json
import os
import shutil
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
from allennlp.models.archival import archive_model, load_archive
from allennlp.modules.elmo import batch_to_ids
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

LM = "lm/model.tar.gz"
TAGGED = "the###D dog###N ran###V .###.\na###D cat###N sat###V\nbirds###N flew###V\n"
SENTENCE = "the dog ran ."


def tagger_config(archive, **changes):
    lm = {"type": "bidirectional_lm_token_embedder", "archive_file": str(archive), **changes}
    return {
        "dataset_reader": {
            "type": "sequence_tagging",
            "token_indexers": {"elmo": {"type": "elmo_characters"}},
        },
        "train_data_path": "tagged.txt",
        "validation_data_path": "tagged.txt",
        "model": {
            "type": "simple_tagger",
            "text_field_embedder": {"token_embedders": {"elmo": lm}},
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
    shutil.copy(lm_archive, folder / LM)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # As people write it: relative to where they are.
        train_model(Params(tagger_config(LM, requires_grad=True)), "out")
    return folder


@pytest.fixture(autouse=True)
def work(trained, tmp_path, monkeypatch):
    """Where training takes place."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


def members(archive):
    with tarfile.open(archive) as tar:
        return tar.getnames()


def test_a_tagger(alone, run_python):
    whole = evaluate_from_archive("out/model.tar.gz", "tagged.txt")
    names = members("out/model.tar.gz")
    assert names[0] == "config.json" and names[-1] == "weights.th"
    assert any(name.startswith(f"{FOLDER}/") and name.endswith("tokens.txt") for name in names)
    assert not any(name.endswith(".lock") for name in names)
    archive = alone("out/model.tar.gz")

    assert evaluate_from_archive(archive, "tagged.txt") == whole
    opened = load_archive(archive)
    instance = next(iter(opened.dataset_reader.read("tagged.txt")))
    assert opened.model.forward_on_instance(instance)["tags"]
    # In a process of its own, as users have it.
    arguments = "evaluate", archive, Path("tagged.txt").resolve()
    options = "--include-package", "transformer_elmo"
    run_python("from allennlp.commands import main\nmain()", *arguments, *options)


def test_the_language_model_in_a_tagger(alone):
    before = TransformerElmo.open(LM).embed([SENTENCE], "all")[0]
    archive = alone("out/model.tar.gz")
    elmo = TransformerElmo.open(archive)
    # It was trained along.
    found = elmo.embed([SENTENCE], "all")[0]
    assert not np.allclose(found, before, atol=1e-4)
    tagger: Any = load_archive(archive).model.eval()
    embedder = tagger.text_field_embedder.token_embedder_elmo
    mix = embedder._scalar_mix
    weights = torch.softmax(torch.cat(list(mix.scalar_parameters)), 0) * mix.gamma
    mixed = elmo.embed([SENTENCE], weights=weights.detach().numpy())[0]
    expected = embedder(batch_to_ids([SENTENCE.split()]))[0].detach().numpy()
    assert np.allclose(mixed, expected, atol=1e-5)
    assert "cat" in elmo.vocab
    with pytest.raises(ConfigurationError, match=r"no softmax"):
        elmo.score(["the dog"])
    assert main(["export", str(archive), "folder"]) == 0
    exported = TransformerElmo.open("folder").embed([SENTENCE], "all")[0]
    assert np.allclose(exported, found, atol=1e-6)


def test_a_tagger_adapted_again(alone):
    """From the archive of a tagger, itself gone afterwards."""
    config = tagger_config(LM)
    config["model"] = {"type": "from_archive", "archive_file": "out/model.tar.gz"}
    # Its labels come in another order.
    Path("tagged.txt").write_text("\n".join(reversed(TAGGED.split("\n"))))
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


def test_a_language_model_trained_further(alone):
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
    # Trained on, and as an embedder.
    train_model(Params(fine_tuning_config(archive)), "third")
    train_model(Params(tagger_config("third/model.tar.gz")), "tagger")


def test_an_archive_of_allennlp_s_own_that_names_its_base():
    """Such an archive has the run's own config, and opens where the base is."""
    train_model(Params(fine_tuning_config(LM)), "tuned")
    whole = evaluate_from_archive("tuned/model.tar.gz", "text.txt")
    with tarfile.open("stock.tar.gz", "w:gz") as tar:
        for name in ("config.json", "vocabulary", "best.th"):
            tar.add(f"tuned/{name}", name.replace("best", "weights"))

    def check(overrides):
        predictor = Predictor.from_archive(load_archive("stock.tar.gz", overrides=overrides))
        predicted = predictor.predict_json(predictor.load_line("the cat"))
        assert predicted["tokens"][1:3] == ["the", "cat"]
        elmo = TransformerElmo.open("stock.tar.gz", overrides=overrides or None)
        metrics = evaluate_from_archive("stock.tar.gz", "text.txt", cmd_overrides=overrides)
        assert metrics == pytest.approx(whole)
        assert metrics["perplexity"] == pytest.approx(elmo.perplexity("text.txt"), rel=1e-5)

    check("")
    shutil.move(LM, "moved.tar.gz")
    expected = (
        r"^stock\.tar\.gz names lm/model\.tar\.gz, which its training began with and which isn't "
        r"there.*-o '\{\"model\.archive_file\": .*$"
    )
    evaluate = partial(evaluate_from_archive, input_file="text.txt")
    for opened in (load_archive, TransformerElmo.open, evaluate):
        with pytest.raises(ConfigurationError, match=expected):
            opened("stock.tar.gz")
    check(json.dumps({"model.archive_file": "moved.tar.gz"}))


def test_a_run_that_was_moved(alone):
    """A folder, not an archive."""
    whole = evaluate_from_archive("out", "tagged.txt")
    assert evaluate_from_archive(str(alone("out")), "tagged.txt") == whole


def test_over_a_model_folder(alone):
    TransformerElmo.open(LM).save("folder", with_softmax=False)
    train_model(Params(tagger_config("folder")), "over")
    whole = evaluate_from_archive("over/model.tar.gz", "tagged.txt")
    assert evaluate_from_archive(alone("over/model.tar.gz"), "tagged.txt") == whole


def test_what_is_missing_is_named(alone, make_model):
    """Over a model of word ids, which are known to its archive alone."""
    embedder = {"token_embedders": {"tokens": {"type": "embedding", "embedding_dim": DIM}}}
    model = model_config(text_field_embedder=embedder, sparse_embeddings=False)
    config = experiment_config(model=model)
    config["dataset_reader"]["token_indexers"] = {"tokens": {"type": "single_id"}}
    write_archive(Path("words"), config, make_model(**model))
    tagger = tagger_config("words/model.tar.gz")
    tagger["dataset_reader"]["token_indexers"] = {"elmo": {"type": "single_id"}}
    train_model(Params(tagger), "over")
    whole = evaluate_from_archive("over/model.tar.gz", "tagged.txt")
    vectors = TransformerElmo.open("words/model.tar.gz").embed([SENTENCE])[0]
    # As earlier versions wrote it, and AllenNLP does.
    with tarfile.open("over/model.tar.gz") as new, tarfile.open("old.tar.gz", "w:gz") as old:
        for member in new:
            if not member.name.startswith(FOLDER):
                old.addfile(member, new.extractfile(member) if member.isreg() else None)
    assert evaluate_from_archive("old.tar.gz", "tagged.txt") == whole
    new, old = alone("over/model.tar.gz", "old.tar.gz")
    assert evaluate_from_archive(new, "tagged.txt") == whole
    assert np.allclose(TransformerElmo.open(new).embed([SENTENCE])[0], vectors)
    override = r"model\.text_field_embedder\.token_embedders\.elmo\.archive_file"
    for opened in (load_archive, TransformerElmo.open):
        with pytest.raises(ConfigurationError, match=rf"words/model\.tar\.gz.*{override}"):
            opened(old)


def test_no_language_model_at_all(tmp_path):
    Path("config.json").write_text(json.dumps({"model": {"type": "simple_tagger"}}))
    with pytest.raises(ConfigurationError, match="'simple_tagger', which is no language model"):
        TransformerElmo.open(tmp_path)


def test_a_failing_archive_leaves_nothing(no_larger_files):
    before = Path("out/model.tar.gz").read_bytes(), sorted(os.listdir("out"))
    with (
        no_larger_files(1000),
        pytest.raises(ConfigurationError, match=r"model\.tar\.gz can't be written: File too large"),
    ):
        archive_model("out")
    assert (Path("out/model.tar.gz").read_bytes(), sorted(os.listdir("out"))) == before
    with pytest.raises(RuntimeError, match=r"weights file 'out/none\.th' does not exist"):
        archive_model("out", weights="none.th")


def test_an_archive_with_more_of_the_run_and_elsewhere(tmp_path):
    run = Path("out").rename("out[1]")
    (run / "notes.txt").write_text("x")
    path = archive_model(run, archive_path=tmp_path, include_in_archive=["notes*"])
    assert path == str(tmp_path / "model.tar.gz") and "notes.txt" in members(path)
