"""Batches that don't fit in memory have the results of those that do."""

import math
import pickle
import weakref
from contextlib import nullcontext
from itertools import chain

import numpy as np
import pytest
import torch

from tests.small_lm import random_sentences
from transformer_elmo import TransformerElmo, memory
from transformer_elmo.commands.cli import main
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.memory import BatchSplitter
from transformer_elmo.plugin.compat.shown_errors import message_of

SENTENCES = random_sentences(24, seed=3)


@pytest.fixture(autouse=True)
def no_collection(monkeypatch):
    """What a failure leaves goes away by itself, and looking for more takes its time."""
    monkeypatch.setattr(memory.gc, "collect", lambda: 0)


@pytest.fixture
def elmo(lm_archive):
    return TransformerElmo.open(lm_archive, device="cpu", max_tokens=150)


@pytest.fixture
def make_scarce(monkeypatch):
    """Leaves a model memory for so many tokens; gives the shapes of batches that it refuses."""

    def make_scarce(model, limit):
        failed, leftovers, stock = [], [], model.encode

        def encode(batch):
            assert not any(tensor() is not None for tensor in leftovers)
            encoded = stock(batch)
            if encoded.mask.numel() > limit:
                failed.append(tuple(encoded.mask.shape))
                leftovers.append(weakref.ref(encoded.layers[-1]))
                # More than there is.
                torch.empty(2**60, dtype=torch.uint8)
            return encoded

        monkeypatch.setattr(model, "encode", encode)
        return failed

    return make_scarce


def embed(elmo):
    return elmo.embed(SENTENCES, "all")


def embed_segments(elmo):
    elmo.segment_length = 30
    return elmo.embed([" ".join(SENTENCES)])


def score(elmo):
    sentences = elmo.score(SENTENCES, top_k=2)
    return [np.array([[s.perplexity, *s.combined.ranks[1:3]] for s in sentences])]


def evaluate(elmo):
    metrics = elmo.evaluate(SENTENCES, words_of=["the", "cat"], bits_per_character=True)
    return [np.array(list(metrics.values()))]


def gradients(elmo):
    vectors, _ = elmo.embed_padded(SENTENCES[:8], track_gradients=True)
    elmo.model.zero_grad()
    vectors.sum().backward()
    return [p.grad.numpy().copy() for p in elmo.model.parameters() if p.grad is not None]


@pytest.mark.parametrize("use", [embed, embed_segments, score, evaluate, gradients])
def test_results_are_those_of_the_whole(elmo, make_scarce, use):
    expected = use(elmo)
    failed = make_scarce(elmo.model, 50)
    found = use(elmo)
    assert failed
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 if use is gradients else 1e-5)


@pytest.mark.parametrize(
    "method, advice",
    [
        ("embed", r"segment_length \(now 5000\)"),
        ("score", "need the whole sentence"),
        ("perplexity", "need the whole sentence"),
    ],
)
def test_a_sentence_that_is_too_long_by_itself(elmo, make_scarce, method, advice):
    make_scarce(elmo.model, 30)
    with pytest.raises(ConfigurationError, match=rf"sentence of 52 tokens .*{advice}") as caught:
        getattr(elmo, method)(["the " * 50, "a cat"])
    # What led to it would hold all that was made.
    assert caught.value.__context__ is None


def test_warnings_name_shape_and_key_and_grow_rare(elmo, make_scarce, caplog):
    again = pickle.loads(pickle.dumps(elmo))
    failed = make_scarce(again.model, 60)
    for _ in range(4):
        again.embed(SENTENCES)
    said = [r.getMessage() for r in caplog.records if "Memory ran out" in r.message]
    num_split = again._splitter.num_split
    assert len(said) == int(math.log2(num_split)) + 1 < num_split
    rows, columns = failed[0]
    assert f"{rows} sentences x {columns} tokens" in said[0]
    assert "max_tokens (now 150)" in said[0]


@pytest.mark.parametrize(
    "error, is_split",
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: ..."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("The size of tensor a (3) must match"), False),
        (ConfigurationError("Memory ran out for a sentence"), False),
        (OSError("No space left on device"), False),
    ],
)
def test_what_is_split(error, is_split):
    calls, forgotten = [], []

    def function(items):
        calls.append(items)
        if len(items) > 3:
            raise error
        return items

    expected = nullcontext() if is_split else pytest.raises(type(error))
    with expected:
        arguments = (lambda item: 7, "key", "advice", lambda: forgotten.append(1))
        parts = BatchSplitter().run(function, range(10), *arguments)
        assert [*chain(*parts)] == [*range(10)] and len(parts) == 4
    assert (len(calls) > 1) == bool(forgotten) == is_split


def test_commands_end_with_one_message(lm_archive, tmp_path, monkeypatch, capsys):
    (tmp_path / "text").write_text("the cat\n")

    def no_memory(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr(TransformerElmo, "open", no_memory)
    assert main(["score", str(lm_archive), str(tmp_path / "text")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("transformer-elmo score: Memory ran out (CUDA out of memory.")
    assert "Memory ran out" in str(message_of(MemoryError()))
