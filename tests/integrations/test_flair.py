"""What is flair's alone: training, what a tagger's file holds, vectors that flair keeps."""

# ruff: noqa: E402 (what follows can't be imported without flair)
import copy
import json
import random
import shutil
from functools import reduce
from typing import Any

import numpy as np
import pytest
import torch

flair = pytest.importorskip("flair")

from flair.data import Corpus, Sentence
from flair.datasets import FlairDatapointDataset
from flair.embeddings import StackedEmbeddings
from flair.models import SequenceTagger
from flair.trainers import ModelTrainer

from tests.integrations.small_model import save_small_model
from transformer_elmo import ConfigurationError, TransformerElmo
from transformer_elmo.integrations.flair import TransformerElmoEmbeddings

KINDS = {"Anna": "PER", "Otto": "PER", "Berlin": "LOC", "Paris": "LOC"}


@pytest.fixture(autouse=True)
def _no_downloads(tmp_path, monkeypatch):
    monkeypatch.setattr(flair, "cache_root", tmp_path / "cache")


def tagged(count, seed=0):
    generator = random.Random(seed)
    sentences = []
    for _ in range(count):
        who, where = generator.choice(("Anna", "Otto")), generator.choice(("Berlin", "Paris"))
        did = generator.choice(("sat", "ran"))
        words = generator.choice(
            ([who, did, "in", where, "."], ["the", "cat", did, "."], [where, ",", "a", who])
        )
        sentences.append(Sentence(words))
        for place, word in enumerate(words):
            if word in KINDS:
                sentences[-1][place : place + 1].add_label("ner", KINDS[word])
    return sentences


def new_corpus(*sizes):
    train, dev, test = (FlairDatapointDataset(tagged(n, n)) for n in sizes or (60, 20, 15))
    return Corpus(train, dev, test, name="made up", sample_missing_splits=False)


def new_tagger(embeddings, corpus):
    torch.manual_seed(0)
    labels = corpus.make_label_dictionary("ner", add_unk=False)
    options: Any = {"hidden_size": 32, "use_crf": False, "reproject_embeddings": False}
    return SequenceTagger(embeddings, labels, tag_type="ner", **options)


def predicted(tagger, words):
    """Of each sentence the places of its spans, and their labels."""
    sentences = list(map(Sentence, words))
    tagger.predict(sentences)
    return [
        [[s.start_position, s.get_label("ner").value] for s in t.get_spans("ner")]
        for t in sentences
    ]


WORDS = [[token.text for token in sentence] for sentence in tagged(20, 7)]
WORDS += [["zebras", "sat", "in", "Rome"], ["Anna"]]


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


def test_mix_is_a_softmax_times_gamma(folder):
    embeddings = TransformerElmoEmbeddings(folder, "mix")
    scalars = [0.5, -1.0, 2.0]
    with torch.no_grad():
        for parameter, value in zip(embeddings.mix.scalar_parameters, scalars):
            parameter.fill_(value)
        embeddings.mix.gamma.fill_(3.0)
    weights = 3 * np.exp(scalars) / np.exp(scalars).sum()
    (layers,) = TransformerElmo.open(folder, "cpu").embed(["Anna sat"], "all")
    expected = np.tensordot(weights, layers, 1)
    assert np.allclose(vectors_of(embeddings), expected, atol=1e-5)


# "cpu" keeps vectors from epoch to epoch, as flair's default does. It takes some epochs to learn,
# and two to see what changes.
@pytest.mark.parametrize(
    ("fine_tune", "kept", "dtype", "epochs"),
    [(False, "cpu", "float32", 8), (True, "none", "float16", 2)],
)
def test_tagger_is_whole_without_the_folder(
    tmp_path, monkeypatch, in_new_process, fine_tune, kept, dtype, epochs
):
    folder = save_small_model(tmp_path / "there" / "folder", dtype=dtype)
    corpus = new_corpus() if epochs == 8 else new_corpus(12, 4, 4)
    tagger = new_tagger(TransformerElmoEmbeddings(folder, "mix", fine_tune), corpus)
    before = copy.deepcopy(tagger.embeddings.state_dict())
    assert not any("softmax" in name for name in before)
    assert {tensor.dtype for tensor in before.values()} == {torch.float32}
    options: Any = {"learning_rate": 0.02, "mini_batch_size": 4, "save_final_model": False}
    options |= {"max_epochs": epochs, "embeddings_storage_mode": kept}
    trainer = ModelTrainer(tagger, corpus)
    found = trainer.train(tmp_path / "run", optimizer=torch.optim.AdamW, **options)
    assert epochs == 2 or found["test_score"] > 0.8
    after = tagger.embeddings.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("model.") for name in changed) == fine_tune
    assert any(name.startswith("mix.") for name in changed)

    expected = predicted(tagger, WORDS)
    tagger.save(tmp_path / "tagger.pt")
    shutil.rmtree(tmp_path / "there")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tagger.pt").rename(tmp_path / "elsewhere" / "moved.pt")
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = SequenceTagger.load("moved.pt")
    assert predicted(loaded, WORDS) == expected
    assert np.array_equal(vectors_of(tagger.embeddings), vectors_of(loaded.embeddings))
    assert all(p.requires_grad == fine_tune for p in loaded.embeddings.model.parameters())
    # And once more, from what has been loaded, where nobody knows of these embeddings.
    loaded.save("again.pt")
    if fine_tune:
        return
    printed = in_new_process(
        f"""
        from flair.data import Sentence
        from flair.models import SequenceTagger
        assert not any("transformer_elmo" in name for name in sys.modules)
        sentences = list(map(Sentence, {WORDS!r}))
        SequenceTagger.load("again.pt").predict(sentences)
        print(json.dumps([
            [[s.start_position, s.get_label("ner").value] for s in t.get_spans("ner")]
            for t in sentences
        ]))
        """,
        tmp_path / "elsewhere",
        FLAIR_CACHE_ROOT=str(tmp_path / "cache"),
    )
    assert json.loads(printed) == expected


def test_kept_vectors_of_what_changes_are_not_believed(folder):
    embeddings = TransformerElmoEmbeddings(folder, "mix")
    sentence = Sentence(["Anna"])
    with torch.no_grad():
        embeddings.embed(sentence)
        first = sentence[0].embedding
        embeddings.mix.gamma.fill_(2.0)
        embeddings.embed(sentence)
    assert torch.allclose(sentence[0].embedding, 2 * first)
    # Those that stay are.
    embeddings = TransformerElmoEmbeddings(folder, "top")
    embeddings.embed(sentence)
    first = sentence[0]._embeddings[embeddings.name]
    embeddings.embed(sentence)
    assert sentence[0]._embeddings[embeddings.name] is first


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
    assert elmo.model.card == {"corpus": "made up"}
    # flair would take one for the other if their names were the same.
    both = StackedEmbeddings([unchanged, TransformerElmoEmbeddings(elmo.name, 0)])
    assert np.array_equal(vectors_of(both), np.concatenate([before, after], -1))


def test_damaged_files(folder, tmp_path):
    new_tagger(TransformerElmoEmbeddings(folder), new_corpus(4, 1, 1)).save(tmp_path / "tagger.pt")
    for place, value, kind, message in (
        ("embeddings config words projection_dim", None, ConfigurationError, "key .* is missing"),
        ("embeddings vocabulary", None, ConfigurationError, "flair saved have no 'vocabulary'"),
        ("embeddings layers", 9, ValueError, r"to 2 \(top\): got 9"),
        ("embeddings config contextualizer hidden_dim", 8, RuntimeError, "size mismatch"),
        ("state_dict embeddings.model.words.projection.weight", None, RuntimeError, r"projection"),
    ):
        state = torch.load(tmp_path / "tagger.pt", weights_only=False)
        *path, last = place.split()
        inner = reduce(dict.__getitem__, path, state)
        inner[last] = value
        if value is None:
            del inner[last]
        torch.save(state, tmp_path / "damaged.pt")
        with pytest.raises(kind, match=message):
            SequenceTagger.load(tmp_path / "damaged.pt")
