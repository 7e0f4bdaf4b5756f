"""What is flair's alone: training, what a tagger's file holds, vectors that flair keeps."""

# ruff: noqa: E402 (what follows can't be imported without flair)
import json
import random
import shutil
import sys
from typing import Any

import numpy as np
import pytest
import torch

flair = pytest.importorskip("flair")

from flair.data import Corpus, Sentence
from flair.datasets import FlairDatapointDataset
from flair.embeddings.base import load_embeddings
from flair.models import SequenceTagger
from flair.trainers import ModelTrainer

from transformer_elmo import ConfigurationError, TransformerElmo
from transformer_elmo.integrations import flair as ours
from transformer_elmo.integrations.flair import TransformerElmoEmbeddings

KINDS = {"Anna": "PER", "Otto": "PER", "Berlin": "LOC", "Paris": "LOC"}


@pytest.fixture(autouse=True)
def _no_downloads(tmp_path, monkeypatch):
    monkeypatch.setattr(flair, "cache_root", tmp_path / "cache")


def tagged(count):
    generator = random.Random(count)
    sentences = []
    for _ in range(count):
        who, where = generator.choice(("Anna", "Otto")), generator.choice(("Berlin", "Paris"))
        did = generator.choice(("sat", "ran"))
        texts = (f"{who} {did} in {where} .", f"the cat {did} .", f"{where} , a {who}")
        sentences.append(Sentence(generator.choice(texts).split()))
        for place, token in enumerate(sentences[-1]):
            if token.text in KINDS:
                sentences[-1][place : place + 1].add_label("ner", KINDS[token.text])
    return sentences


def vectors_of(embeddings, text="Anna sat"):
    sentence = Sentence(text.split())
    with torch.no_grad():
        embeddings.embed(sentence)
    return np.stack([token.get_embedding(embeddings.get_names()).numpy() for token in sentence])


@pytest.mark.parametrize("layers", ["mix", "top"])
@pytest.mark.parametrize("fine_tune", [False, True])
def test_what_is_trained(folder, layers, fine_tune):
    embeddings = TransformerElmoEmbeddings(folder, layers, fine_tune)
    assert embeddings.static_embeddings == (layers == "top" and not fine_tune)
    assert not embeddings.training and not embeddings.model.training
    embeddings.train()
    # Its dropout is for training the language model.
    assert embeddings.model.training == fine_tune
    sentence = Sentence(["Anna", "sat"])
    embeddings.embed(sentence)
    assert sentence[0].embedding.requires_grad != embeddings.static_embeddings
    if not embeddings.static_embeddings:
        sum(token.embedding.sum() for token in sentence).backward()
    assert all(p.requires_grad == fine_tune for p in embeddings.model.parameters())
    assert any(p.grad is not None for p in embeddings.model.parameters()) == fine_tune
    if layers == "mix":
        assert all(p.grad is not None for p in embeddings.mix.parameters())


def test_a_tagger_is_whole_without_the_folder(folder, tmp_path, monkeypatch, in_new_process):
    train, dev, test = (FlairDatapointDataset(tagged(count)) for count in (60, 20, 15))
    corpus = Corpus(train, dev, test, name="made up", sample_missing_splits=False)
    labels = corpus.make_label_dictionary("ner", add_unk=False)
    torch.manual_seed(0)
    embeddings = TransformerElmoEmbeddings(folder, "mix")
    options: Any = {"hidden_size": 32, "use_crf": False, "reproject_embeddings": False}
    tagger = SequenceTagger(embeddings, labels, tag_type="ner", **options)
    assert not any("softmax" in name for name in embeddings.state_dict())
    # "cpu" keeps vectors from epoch to epoch, as flair's default does.
    options = {"optimizer": torch.optim.AdamW, "learning_rate": 0.02, "mini_batch_size": 4}
    options |= {"max_epochs": 12, "embeddings_storage_mode": "cpu", "save_final_model": False}
    assert ModelTrainer(tagger, corpus).train(tmp_path / "run", **options)["test_score"] > 0.8
    sentences = tagged(20)
    tagger.predict(sentences)
    tagger.save(tmp_path / "tagger.pt")
    shutil.rmtree(folder)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tagger.pt").rename(tmp_path / "elsewhere" / "moved.pt")
    monkeypatch.chdir(tmp_path / "elsewhere")
    printed = in_new_process(
        f"""
        from flair.data import Sentence
        from flair.models import SequenceTagger
        assert not any("transformer_elmo" in name for name in sys.modules)
        sentences = list(map(Sentence, {[[token.text for token in s] for s in sentences]}))
        tagger = SequenceTagger.load("moved.pt")
        tagger.predict(sentences)
        tagger.save("again.pt")
        print(json.dumps(list(map(str, sentences))))
        """,
        tmp_path / "elsewhere",
        FLAIR_CACHE_ROOT=str(tmp_path / "cache"),
    )
    assert json.loads(printed) == list(map(str, sentences))
    again: Any = SequenceTagger.load("again.pt")
    assert np.array_equal(vectors_of(again.embeddings), vectors_of(embeddings))


def test_kept_vectors_of_what_changes_are_not_believed(folder):
    embeddings = TransformerElmoEmbeddings(folder, "mix")
    sentence = Sentence(["Anna"])
    with torch.no_grad():
        embeddings.embed(sentence)
        first = sentence[0].embedding
        embeddings.mix.gamma.fill_(2.0)
        embeddings.embed(sentence)
    assert torch.allclose(sentence[0].embedding, 2 * first)


def test_fine_tuned_model(folder, tmp_path):
    """Word vectors are not remembered, the folder is as it was, and a new one has what changed."""
    embeddings = TransformerElmoEmbeddings(folder, 0, fine_tune=True)
    before = vectors_of(embeddings)
    with torch.no_grad():
        for parameter in embeddings.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    after = vectors_of(embeddings)
    assert np.abs(before - after).max() > 1e-3
    unchanged = TransformerElmoEmbeddings(folder, 0)
    assert np.array_equal(vectors_of(unchanged), before)
    embeddings.elmo.save(tmp_path / "tuned" / "folder")
    elmo = TransformerElmo.open(tmp_path / "tuned" / "folder", "cpu")
    assert np.array_equal(elmo.embed(["Anna sat"], 0)[0], after)
    loaded: Any = load_embeddings(embeddings.save_embeddings(use_state_dict=True))
    assert np.array_equal(vectors_of(loaded), after)
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    # flair would take one for the other if their names were the same.
    assert TransformerElmoEmbeddings(elmo.name, 0).name != unchanged.name


def test_damaged_files(folder):
    saved: Any = TransformerElmoEmbeddings(folder).save_embeddings(use_state_dict=True)
    no_words = {key: value for key, value in saved.items() if key != "vocabulary"}
    for damaged, message in (
        (no_words, "flair saved have no 'vocabulary'"),
        ({**saved, "config": {}}, "flair saved: config"),
        ({**saved, "layers": 9}, r"to 2 \(top\): got 9"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            load_embeddings(damaged)


def test_without_flair(monkeypatch):
    monkeypatch.delitem(vars(ours), "TransformerElmoEmbeddings")
    monkeypatch.setitem(sys.modules, "flair", None)
    with pytest.raises(ImportError, match="pip install flair"):
        ours.TransformerElmoEmbeddings  # noqa: B018
