# ruff: noqa: E402 (what follows can't be imported without flair)
import copy
import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any, List

import numpy as np
import pytest
import torch

flair = pytest.importorskip("flair")

from flair.data import Corpus, Sentence
from flair.datasets import FlairDatapointDataset
from flair.embeddings import DocumentPoolEmbeddings, StackedEmbeddings
from flair.embeddings.base import load_embeddings
from flair.models import SequenceTagger
from flair.trainers import ModelTrainer

from tests.integrations.small_model import DIM, OF_IDS, save_small_model
from transformer_elmo import ConfigurationError, TransformerElmo
from transformer_elmo.integrations import flair as integration
from transformer_elmo.integrations.flair import TransformerElmoEmbeddings

ROOT = Path(__file__).parents[2]

KINDS = {"Anna": "PER", "Otto": "PER", "Berlin": "LOC", "Paris": "LOC"}

LAYERS = ("mix", "top", "all", 0, 1, -1)


@pytest.fixture(autouse=True)
def _no_downloads(tmp_path, monkeypatch):
    monkeypatch.setattr(flair, "cache_root", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    return save_small_model(tmp_path / "folder")


def words_of_sentences(count, seed=0):
    generator = random.Random(seed)
    for _ in range(count):
        who, where = generator.choice(("Anna", "Otto")), generator.choice(("Berlin", "Paris"))
        rest = generator.choice(("sat", "ran"))
        yield generator.choice(
            ([who, rest, "in", where, "."], ["the", "cat", rest, "."], [where, ",", "a", who])
        )


def tagged(count, seed=0):
    sentences = []
    for words in words_of_sentences(count, seed):
        sentence = Sentence(words)
        for place, word in enumerate(words):
            if word in KINDS:
                sentence[place : place + 1].add_label("ner", KINDS[word])
        sentences.append(sentence)
    return sentences


def new_corpus(*sizes):
    train, dev, test = (FlairDatapointDataset(tagged(n, n)) for n in sizes or (60, 20, 15))
    return Corpus(train, dev, test, name="made up", sample_missing_splits=False)


def new_tagger(embeddings, corpus, **options):
    options = {"hidden_size": 32, "use_crf": False, "reproject_embeddings": False, **options}
    torch.manual_seed(0)
    labels = corpus.make_label_dictionary("ner", add_unk=False)
    return SequenceTagger(embeddings, labels, tag_type="ner", **options)


def train(tagger, corpus, path, **options):
    options = {"max_epochs": 8, "learning_rate": 0.005, "mini_batch_size": 4, **options}
    trainer = ModelTrainer(tagger, corpus)
    return trainer.train(path, optimizer=torch.optim.AdamW, save_final_model=False, **options)


def predicted(tagger, sentences):
    sentences = [Sentence([token.text for token in sentence]) for sentence in sentences]
    tagger.predict(sentences)
    return [
        [(span.start_position, span.get_label("ner").value) for span in sentence.get_spans("ner")]
        for sentence in sentences
    ]


def vectors_of(embeddings, *texts):
    sentences = [Sentence(text.split()) for text in texts]
    with torch.no_grad():
        embeddings.embed(sentences)
    return [
        np.stack([token.get_embedding(embeddings.get_names()).numpy() for token in sentence])
        for sentence in sentences
    ]


def in_new_process(code, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FLAIR_CACHE_ROOT": str(folder / "cache")}
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.parametrize("layers", LAYERS)
def test_vectors_are_the_model_s(folder, layers):
    embeddings = TransformerElmoEmbeddings(folder, layers)
    texts = ["Anna sat in Berlin .", "the", "unheard-of 東京 words"]
    expected = TransformerElmo.open(folder, "cpu").embed(texts, layers)
    for found, wanted in zip(vectors_of(embeddings, *texts), expected):
        if layers == "all":
            wanted = np.concatenate(list(wanted), axis=-1)
        assert found.shape[1] == embeddings.embedding_length
        assert found.shape == wanted.shape and np.abs(found - wanted).max() < 1e-5
    assert embeddings.embedding_length == (6 * DIM if layers == "all" else 2 * DIM)
    assert embeddings.embedding_type == "word-level"


def test_tokens_are_words_as_they_are(folder):
    embeddings = TransformerElmoEmbeddings(folder, "top")
    sentence = Sentence(["don't", "New York", "a.b"])
    embeddings.embed(sentence)
    (expected,) = TransformerElmo.open(folder, "cpu").embed([["don't", "New York", "a.b"]], "top")
    assert np.allclose(np.stack([token.embedding.numpy() for token in sentence]), expected)


def test_empty_sentences(folder):
    for layers in LAYERS:
        embeddings = TransformerElmoEmbeddings(folder, layers)
        empty, sentence = Sentence([]), Sentence(["the", "cat"])
        embeddings.embed([empty, sentence, Sentence([])])
        embeddings.embed(Sentence([]))
        embeddings.embed([])
        assert sentence[1].embedding.shape == (embeddings.embedding_length,)


def test_one_word_and_six_thousand(folder):
    embeddings = TransformerElmoEmbeddings(folder, "mix")
    long = [word for words in words_of_sentences(1600, 3) for word in words][:6000]
    one, many = vectors_of(embeddings, "cat", " ".join(long))
    assert one.shape == (1, 2 * DIM) and many.shape == (6000, 2 * DIM)
    assert np.isfinite(many).all() and many.any(1).all()
    assert np.allclose(one, vectors_of(embeddings, "cat")[0], atol=1e-5)


def test_what_is_trained(folder):
    for layers, fine_tune in (("mix", False), ("top", False), ("mix", True), ("top", True)):
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
        embeddings.eval()
        assert not embeddings.model.training


def test_mix_is_a_softmax_times_gamma(folder):
    embeddings = TransformerElmoEmbeddings(folder, "mix")
    scalars = [0.5, -1.0, 2.0]
    with torch.no_grad():
        for parameter, value in zip(embeddings.mix.scalar_parameters, scalars):
            parameter.fill_(value)
        embeddings.mix.gamma.fill_(3.0)
    weights = 3 * np.exp(scalars) / np.exp(scalars).sum()
    (layers,) = TransformerElmo.open(folder, "cpu").embed(["Anna sat"], "all")
    (found,) = vectors_of(embeddings, "Anna sat")
    assert np.allclose(found, np.tensordot(weights, layers, 1), atol=1e-5)


# "cpu" keeps vectors from epoch to epoch, as flair's default does.
@pytest.mark.parametrize(
    ("layers", "fine_tune", "kept", "learns"),
    [("mix", False, "cpu", True), ("mix", True, "none", False), ("top", True, "cpu", False)],
)
def test_tagger_is_whole_without_the_folder(tmp_path, monkeypatch, layers, fine_tune, kept, learns):
    folder = save_small_model(tmp_path / "there" / "folder")
    # It takes some epochs to learn, and two to see what changes.
    corpus = new_corpus() if learns else new_corpus(12, 4, 4)
    tagger = new_tagger(TransformerElmoEmbeddings(folder, layers, fine_tune), corpus)
    before = copy.deepcopy(tagger.embeddings.state_dict())
    options = {"max_epochs": 8 if learns else 2, "embeddings_storage_mode": kept}
    found = train(tagger, corpus, tmp_path / "run", **options)
    assert not learns or found["test_score"] > 0.8
    after = tagger.embeddings.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("model.") for name in changed) == fine_tune
    assert any(name.startswith("mix.") for name in changed) == (layers == "mix")

    sentences = [*tagged(30, 7), Sentence(["zebras", "sat", "in", "Rome"]), Sentence(["Anna"])]
    expected = predicted(tagger, sentences)
    assert not learns or any(expected)
    tagger.save(tmp_path / "tagger.pt")
    shutil.rmtree(tmp_path / "there")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "tagger.pt").rename(elsewhere / "moved.pt")
    monkeypatch.chdir(elsewhere)
    loaded = SequenceTagger.load("moved.pt")
    assert predicted(loaded, sentences) == expected
    for one, two in zip(
        vectors_of(tagger.embeddings, "Anna sat"), vectors_of(loaded.embeddings, "Anna sat")
    ):
        assert np.array_equal(one, two)
    assert loaded.embeddings.fine_tune == fine_tune and loaded.embeddings.layers == layers
    assert all(p.requires_grad == fine_tune for p in loaded.embeddings.model.parameters())
    # And once more, from what has been loaded.
    loaded.save("again.pt")
    assert predicted(SequenceTagger.load("again.pt"), sentences) == expected


def test_tagger_in_a_process_that_knows_nothing_of_these_embeddings(folder, tmp_path):
    tagger = new_tagger(TransformerElmoEmbeddings(folder), new_corpus()).eval()
    # Without a training, it takes more words to have tags.
    sentence = [word for words in words_of_sentences(20) for word in words]
    expected = predicted(tagger, [Sentence(sentence)])
    assert any(expected)
    tagger.save(tmp_path / "tagger.pt")
    shutil.rmtree(folder)
    printed = in_new_process(
        f"""
        import json, sys
        sys.modules["allennlp"] = None  # the core is enough, and is imported sooner
        from flair.data import Sentence
        from flair.models import SequenceTagger
        assert not any("transformer_elmo" in name for name in sys.modules)
        sentence = Sentence({sentence!r})
        SequenceTagger.load("tagger.pt").predict(sentence)
        spans = sentence.get_spans("ner")
        print(json.dumps([[s.start_position, s.get_label("ner").value] for s in spans]))
        """,
        tmp_path,
    )
    assert [tuple(span) for span in json.loads(printed.splitlines()[-1])] == expected[0]


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


def test_fine_tuned_word_vectors_are_not_remembered(folder):
    embeddings = TransformerElmoEmbeddings(folder, 0, fine_tune=True)
    (before,) = vectors_of(embeddings, "Anna sat")
    embeddings.train()
    optimizer = torch.optim.SGD(embeddings.parameters(), lr=0.5)
    sentence = Sentence(["Anna", "sat"])
    embeddings.embed(sentence)
    # Not their sum: layer norm keeps that.
    sum(token.embedding.pow(3).sum() for token in sentence).backward()
    optimizer.step()
    (after,) = vectors_of(embeddings.eval(), "Anna sat")
    assert np.abs(before - after).max() > 1e-3
    # Nor has the file that the weights were mapped from changed.
    (again,) = vectors_of(TransformerElmoEmbeddings(folder, 0), "Anna sat")
    assert np.array_equal(again, before)


def test_fine_tuned_model_as_a_folder(folder, tmp_path):
    embeddings = TransformerElmoEmbeddings(folder, "top", fine_tune=True)
    with torch.no_grad():
        for parameter in embeddings.model.parameters():
            parameter.mul_(1.1)
    embeddings.elmo.save(tmp_path / "tuned")
    elmo = TransformerElmo.open(tmp_path / "tuned", "cpu")
    assert np.array_equal(elmo.embed(["Anna sat"], "top")[0], vectors_of(embeddings, "Anna sat")[0])
    assert elmo.model.card == {"corpus": "made up"}


def test_stacked_with_another_model(tmp_path, monkeypatch):
    folders = [save_small_model(tmp_path / str(n) / "folder", seed=n) for n in (1, 2)]
    parts = [
        TransformerElmoEmbeddings(folders[0], 0),
        TransformerElmoEmbeddings(folders[1], "all"),
    ]
    # flair would take one for the other if their names were the same.
    names = {TransformerElmoEmbeddings(folder, "top").name for folder in folders}
    assert len(names) == 2
    corpus = new_corpus(12, 4, 4)
    tagger = new_tagger(StackedEmbeddings([*parts]), corpus)
    assert all(part.static_embeddings for part in parts)
    train(tagger, corpus, tmp_path / "run", max_epochs=2, embeddings_storage_mode="cpu")
    expected = predicted(tagger, tagged(10, 5))
    tagger.save(tmp_path / "tagger.pt")
    for folder in folders:
        shutil.rmtree(folder)
    assert predicted(SequenceTagger.load(tmp_path / "tagger.pt"), tagged(10, 5)) == expected


def test_alone_pooled_copied_and_pickled(folder):
    embeddings = TransformerElmoEmbeddings(folder, "mix")
    with torch.no_grad():
        embeddings.mix.gamma.fill_(1.5)
    (expected,) = vectors_of(embeddings, "Anna sat in Paris")
    shutil.rmtree(folder)
    for other in (
        load_embeddings(embeddings.save_embeddings(use_state_dict=True)),
        copy.deepcopy(embeddings),
        pickle.loads(pickle.dumps(embeddings)),
    ):
        assert other.elmo.model is other.model is not embeddings.model
        assert other.name == embeddings.name
        assert np.array_equal(vectors_of(other, "Anna sat in Paris")[0], expected)
    sentence = Sentence("Anna sat in Paris".split())
    DocumentPoolEmbeddings([embeddings]).embed(sentence)
    assert np.allclose(sentence.embedding.detach().numpy(), expected.mean(0), atol=1e-6)


def test_half_precision_folder(tmp_path):
    folder = save_small_model(tmp_path / "folder", dtype="float16")
    embeddings = TransformerElmoEmbeddings(folder, "mix", fine_tune=True)
    assert {p.dtype for p in embeddings.parameters()} == {torch.float32}
    corpus = new_corpus(8, 4, 4)
    tagger = new_tagger(embeddings, corpus)
    train(tagger, corpus, tmp_path / "run", max_epochs=1)
    tagger.save(tmp_path / "tagger.pt")
    shutil.rmtree(folder)
    loaded = SequenceTagger.load(tmp_path / "tagger.pt")
    assert predicted(loaded, tagged(10)) == predicted(tagger, tagged(10))


@pytest.mark.parametrize("default", [torch.float64, torch.float16])
def test_torch_s_default_type_is_no_matter(folder, default):
    embeddings = TransformerElmoEmbeddings(folder, "mix")
    texts = ["Anna sat in Paris", "unheard-of words"]
    expected = vectors_of(embeddings, *texts)
    saved = embeddings.save_embeddings(use_state_dict=True)
    torch.set_default_dtype(default)
    try:
        others = [load_embeddings(saved), TransformerElmoEmbeddings(folder, "mix")]
        found = [vectors_of(other, *texts) for other in others]
    finally:
        torch.set_default_dtype(torch.float32)
    for other, vectors in zip(others, found):
        assert {tensor.dtype for tensor in other.state_dict().values()} == {torch.float32}
        for one, two in zip(vectors, expected):
            assert np.array_equal(one, two)


@pytest.mark.parametrize("fine_tune", [False, True])
def test_model_that_knows_words_by_their_numbers(tmp_path, fine_tune):
    folder = save_small_model(tmp_path / "folder", config=OF_IDS)
    embeddings = TransformerElmoEmbeddings(folder, "all", fine_tune)
    texts = ["the cat sat", "zebras sat ."]
    found = vectors_of(embeddings, *texts)
    for one, wanted in zip(found, TransformerElmo.open(folder, "cpu").embed(texts, "all")):
        assert np.allclose(one, np.concatenate(list(wanted), axis=-1), atol=1e-5)
    tagger = new_tagger(embeddings, new_corpus(8, 4, 4)).eval()
    expected = predicted(tagger, tagged(10))
    tagger.save(tmp_path / "tagger.pt")
    shutil.rmtree(folder)
    loaded = SequenceTagger.load(tmp_path / "tagger.pt")
    assert predicted(loaded, tagged(10)) == expected
    for one, two in zip(vectors_of(loaded.embeddings, *texts), found):
        assert np.array_equal(one, two)


def test_words_of_any_kind(tmp_path):
    folder = save_small_model(tmp_path / "folder", with_softmax=False)
    words = [" ", "\u00a0", "\0", "a\u200db", "👩\u200d👩\u200d👧", "\u202e", "\ud800", "東" * 60]
    sentence = Sentence(words)
    TransformerElmoEmbeddings(folder, "top").embed(sentence)
    # What tokens flair makes of them: it leaves out empty ones.
    kept = [token.text for token in sentence]
    assert len(kept) >= len(words) - 2
    (expected,) = TransformerElmo.open(folder, "cpu").embed([kept], "top")
    found = np.stack([token.embedding.numpy() for token in sentence])
    assert np.allclose(found, expected, atol=1e-5) and np.isfinite(found).all()
    # Words are distinct to the model, though they may look alike.
    assert len({vector.tobytes() for vector in found}) == len(kept)


def test_nothing_of_the_softmax_is_saved(folder):
    embeddings = TransformerElmoEmbeddings(folder)
    assert embeddings.model.softmax is None
    assert not any("softmax" in name for name in embeddings.state_dict())
    assert embeddings.to_params()["config"]["softmax"] is None


def test_threads(folder):
    embeddings = TransformerElmoEmbeddings(folder, "all")
    texts = [" ".join(words) for words in words_of_sentences(40, 9)]
    expected = vectors_of(embeddings, *texts)
    different = []

    def work():
        for one, two in zip(vectors_of(embeddings, *texts), expected):
            if not np.array_equal(one, two):
                different.append(one)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not different


def test_damaged_files(folder, tmp_path):
    tagger = new_tagger(TransformerElmoEmbeddings(folder), new_corpus())
    tagger.save(tmp_path / "tagger.pt")

    def damaged(change):
        state = torch.load(tmp_path / "tagger.pt", weights_only=False)
        change(state)
        torch.save(state, tmp_path / "damaged.pt")
        return tmp_path / "damaged.pt"

    def load(change):
        return SequenceTagger.load(damaged(change))

    with pytest.raises(
        ConfigurationError, match=r"flair saved: config\.words: the key .* is missing"
    ):
        load(lambda state: state["embeddings"]["config"]["words"].pop("projection_dim"))
    with pytest.raises(ConfigurationError, match="flair saved have no 'vocabulary'"):
        load(lambda state: state["embeddings"].pop("vocabulary"))
    with pytest.raises(ValueError, match=r"to 2 \(top\): got 9"):
        load(lambda state: state["embeddings"].update(layers=9))
    weight = next(name for name in tagger.state_dict() if "embeddings.model." in name)
    with pytest.raises(RuntimeError, match=weight.replace(".", r"\.")):
        load(lambda state: state["state_dict"].pop(weight))
    with pytest.raises(RuntimeError, match="size mismatch"):
        load(lambda state: state["embeddings"]["config"]["contextualizer"].update(hidden_dim=8))


def test_what_cannot_be_done(folder, tmp_path):
    with pytest.raises(ConfigurationError, match=r"There is no .*none"):
        TransformerElmoEmbeddings(tmp_path / "none")
    with pytest.raises(ConfigurationError, match="is empty"):
        TransformerElmoEmbeddings("")
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigurationError, match="so it is no model"):
        TransformerElmoEmbeddings(tmp_path / "other")
    wrong: List[Any] = [3, "middle", "0,1", None, True, [0, 1], (0,)]
    for layers in wrong:
        with pytest.raises(ValueError, match=r"to 2 \(top\)"):
            TransformerElmoEmbeddings(folder, layers)
    with pytest.raises(ConfigurationError, match="max_tokens must be at least 1"):
        TransformerElmoEmbeddings(folder, max_tokens=0)
    sentences: List[Any] = ["the cat", ["the cat"], {"tokens": ["the"]}, [["the"]], None]
    for layers in ("mix", "top"):
        embeddings = TransformerElmoEmbeddings(folder, layers)
        for sentence in sentences:
            with pytest.raises(TypeError, match=r"Expected a flair\.data\.Sentence"):
                embeddings.embed(sentence)
    (folder / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ConfigurationError, match="is not a file of weights"):
        TransformerElmoEmbeddings(folder)


def test_the_lines_of_the_docstring(folder, monkeypatch, capsys):
    folder.rename(folder.with_name("elmo"))
    monkeypatch.chdir(folder.parent)
    (block,) = re.findall(r"```python\n(.*?)```", integration.__doc__, re.DOTALL)
    assert len(list(filter(None, block.splitlines()))) == 5
    exec(block, {})
    assert capsys.readouterr().out.splitlines()[-1] == str([torch.Size([2 * DIM])] * 7)
