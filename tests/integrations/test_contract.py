"""What holds for a language model in any library: `TransformerElmo`, flair, spaCy, ONNX."""

import copy
import multiprocessing
import pickle
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from tests.integrations.small_model import WORDS, assert_close, reference_vectors, save_small_model
from transformer_elmo import ConfigurationError, TransformerElmo

PACKAGES = {"flair": ["flair"], "spacy": ["spacy"], "onnx": ["onnx", "onnxscript", "onnxruntime"]}

LAYERS = ("mix", "top", "all", 0, 1, -1)

SENTENCES = [
    "Anna sat in Berlin .".split(),
    [],
    ["the"],
    ["don't", "New York", "a\u200db", "👩\u200d👩\u200d👧", "\u202e", "東" * 60, "<P>", "x" * 47],
    "the cat and the dog , unheard-of , ran".split(),
]


def flat(vectors):
    """Layers side by side."""
    return np.concatenate(list(vectors), -1) if vectors.ndim == 3 else vectors


class Elmo:
    """Each of these opens a folder and embeds sentences of words."""

    def __init__(self, folder, layers="mix", **options):
        self.layers = layers
        self.elmo = self.open(folder, **options)
        self.elmo.embed([], layers)
        self.embed_other = self.elmo.embed

    def open(self, folder, **options) -> Any:
        return TransformerElmo.open(folder, "cpu", **options)

    def embed(self, sentences):
        return list(map(flat, self.elmo.embed(sentences, self.layers)))


class Onnx(Elmo):
    def open(self, folder, **options):
        from transformer_elmo.integrations.onnx import OnnxElmo

        return OnnxElmo(folder, **options)


class Flair:
    def __init__(self, folder, layers="mix", **options):
        from transformer_elmo.integrations.flair import TransformerElmoEmbeddings

        self.embeddings: Any = TransformerElmoEmbeddings(folder, layers, **options)
        self.embed_other = self.embeddings.embed

    def embed(self, sentences):
        from flair.data import Sentence

        found = [Sentence(words) for words in sentences]
        with torch.no_grad():
            self.embeddings.embed(found)
        dim = self.embeddings.embedding_length
        rows = [[token.embedding.numpy() for token in sentence] for sentence in found]
        return [np.reshape(np.stack(row) if row else [], (len(row), dim)) for row in rows]

    def save(self, path):
        torch.save(self.embeddings.save_embeddings(use_state_dict=True), path)

    @classmethod
    def load(cls, path):
        from flair.embeddings.base import load_embeddings

        loaded = cls.__new__(cls)
        loaded.embeddings = load_embeddings(torch.load(path, weights_only=False))
        return loaded


class Spacy:
    def __init__(self, folder, layers="mix", **options):
        import spacy

        self.nlp = spacy.blank("en")
        config = {"path": str(folder), "layers": layers, "device": "cpu", **options}
        self.embed_other = self.nlp.add_pipe("transformer_elmo", config=config)

    def embed(self, sentences):
        from spacy.tokens import Doc

        docs = [Doc(self.nlp.vocab, words) for words in sentences]
        return [doc.tensor for doc in self.nlp.pipe(docs)]

    def save(self, path):
        self.nlp.to_disk(path)

    @classmethod
    def load(cls, path):
        import spacy

        loaded = cls.__new__(cls)
        loaded.nlp = spacy.load(path)
        return loaded


@pytest.fixture(params=[Elmo, Flair, Spacy, Onnx])
def library(request, tmp_path, monkeypatch):
    for name in PACKAGES.get(request.param.__name__.lower(), []):
        package = pytest.importorskip(name)
        if name == "flair":
            monkeypatch.setattr(package, "cache_root", tmp_path / "cache")
    return request.param


@pytest.mark.parametrize("kind", ["characters", "ids"])
def test_vectors_are_the_reference_s(library, models, kind):
    layers_of = reference_vectors(models[kind], SENTENCES)
    for layers in LAYERS:
        expected = [
            flat(rows if layers == "all" else rows.mean(0) if layers == "mix" else rows[number])
            for rows in layers_of
            for number in [-1 if layers == "top" else layers]
        ]
        for max_tokens in (2000, 20):
            opened = library(models[kind], layers, max_tokens=max_tokens)
            assert_close(opened.embed(SENTENCES), expected)
        assert opened.embed([]) == []
        assert_close(opened.embed([[], []]), [expected[1]] * 2)


@pytest.mark.parametrize(("layers", "dtype"), [("mix", "float32"), ("all", "float16")])
@pytest.mark.parametrize("library", [Flair, Spacy], indirect=True)
def test_what_is_saved_travels(library, tmp_path, monkeypatch, layers, dtype):
    folder = save_small_model(tmp_path / "there", dtype=dtype)
    opened = library(folder, layers)
    expected = opened.embed(SENTENCES)
    opened.save(tmp_path / "saved")
    # Over what is there, which it is opened from.
    library.load(tmp_path / "saved").save(tmp_path / "saved")
    shutil.rmtree(folder)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "saved").rename(tmp_path / "elsewhere" / "moved")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert_close(library.load("moved").embed(SENTENCES), expected, 0)
    torch.set_default_dtype(torch.float64)
    try:
        assert_close(library.load("moved").embed(SENTENCES), expected, 0)
    finally:
        torch.set_default_dtype(torch.float32)


def test_copied_and_pickled(library, models, tmp_path, monkeypatch):
    monkeypatch.chdir(models["ids"].parent)
    opened = library("ids", "all", max_tokens=30)
    expected = opened.embed(SENTENCES)
    data = pickle.dumps(vars(opened))
    monkeypatch.chdir(tmp_path)
    for state in (pickle.loads(data), copy.deepcopy(vars(opened))):
        other = library.__new__(library)
        vars(other).update(state)
        assert_close(other.embed(SENTENCES), expected, 0)


def test_threads(library, models):
    opened = library(models["characters"])
    sentences = [random.Random(n).choices(WORDS[3:], k=n) for n in range(30)]
    expected = opened.embed(sentences)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(opened.embed, [sentences] * 4):
            assert_close(found, expected)


NEEDS_FORK = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="needs fork"
)


@NEEDS_FORK
def test_forked_processes_answer(library, models, in_new_process):
    # In a process that has nothing but this: whatever threads others have left may hold locks.
    server = f"""
        import multiprocessing, torch
        from tests.integrations import test_contract as contract
        torch.set_num_threads(2)
        opened = contract.{library.__name__}(".")

        def embed(number):
            # Enough of them for threads.
            return opened.embed(["the cat sat in Berlin .".split()] * 300)[-1]

        expected = embed(0)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            found = pool.map_async(embed, range(2)).get(timeout=60)
        contract.assert_close(found, [expected] * 2)
        print(torch.get_num_threads())
    """
    assert in_new_process(server, models["characters"], OMP_NUM_THREADS="2") == "2"


@NEEDS_FORK
def test_forks_of_a_process_that_unpickled_its_model(folder, in_new_process):
    elmo = TransformerElmo.open(folder, "cpu")
    (folder / "elmo.pickle").write_bytes(pickle.dumps(elmo))
    server = """
        import multiprocessing, pickle, torch
        torch.set_num_threads(2)
        elmo = pickle.loads(open("elmo.pickle", "rb").read())

        def embed(number):
            return len(elmo.embed(["the cat sat in Berlin ."] * 300))

        assert embed(0) == 300
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(pool.map_async(embed, range(2)).get(timeout=60))
    """
    assert in_new_process(server, folder, OMP_NUM_THREADS="2") == "[300, 300]"


def test_folders_that_are_no_model(library, tmp_path):
    (tmp_path / "other").mkdir()
    for path, message in (
        (tmp_path / "none", "There is no .*none|none.* can't be read"),
        (tmp_path / "other", "so it is no model|other.* can't be read"),
        *([("", "The path of the language model is empty")] * (library is not Onnx)),
    ):
        with pytest.raises(ConfigurationError, match=message):
            library(path)


def test_wrong_layers_and_options(library, models):
    for layers in (3, -4, "middle", "0,1"):
        with pytest.raises(ValueError, match=r"to 2 \(top\): got"):
            library(models["characters"], layers)
    with pytest.raises(ConfigurationError, match="max_tokens must be at least 1"):
        library(models["characters"], max_tokens=0)


@pytest.mark.parametrize("wrong", ["the cat", {"tokens": ["the"]}, None, [["the", 3]]], ids=repr)
def test_wrong_sentences(library, models, wrong):
    opened = library(models["characters"])
    with pytest.raises(TypeError, match=r"^Expected |list of strings"):
        opened.embed_other(wrong)
