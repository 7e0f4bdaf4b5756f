"""Batches that don't fit in memory have the results of those that do."""

import gc
import logging
import math
import pickle
import weakref

import numpy as np
import pytest
import torch

from tests.small_lm import random_sentences
from transformer_elmo import TransformerElmo
from transformer_elmo import memory as out_of_memory
from transformer_elmo.commands.cli import main
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.memory import BatchSplitter, is_out_of_memory

SENTENCES = random_sentences(24, seed=3)


@pytest.fixture(autouse=True)
def no_collection(monkeypatch):
    """What a failure leaves goes away by itself, and looking for more takes its time."""
    monkeypatch.setattr(out_of_memory.gc, "collect", lambda: 0)


class Scarce:
    """A model's `encode` with memory for few tokens; `failed` are the batches that it refused."""

    def __init__(self, monkeypatch, model, limit):
        self.failed, self.limit, self.leftovers = [], limit, []
        stock = model.encode

        def encode(batch):
            assert not any(tensor() is not None for tensor in self.leftovers)
            encoded = stock(batch)
            if encoded.mask.numel() > self.limit:
                self.failed.append(tuple(encoded.mask.shape))
                self.leftovers.append(weakref.ref(encoded.layers[-1]))
                # More than there is.
                torch.empty(2**60, dtype=torch.uint8)
            return encoded

        monkeypatch.setattr(model, "encode", encode)


@pytest.fixture
def elmo(lm_archive):
    return TransformerElmo.open(lm_archive, device="cpu", max_tokens=150)


@pytest.mark.parametrize("layers", ["mix", "all", "top", 0])
def test_vectors(elmo, monkeypatch, layers, caplog):
    expected = elmo.embed(SENTENCES, layers)
    scarce = Scarce(monkeypatch, elmo.model, 50)
    found = elmo.embed(SENTENCES, layers)
    assert scarce.failed
    for one, other in zip(found, expected):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_scores(elmo, monkeypatch):
    expected = elmo.score(SENTENCES, top_k=2)
    filled = elmo.fill("the ___ sat on the mat")
    scarce = Scarce(monkeypatch, elmo.model, 50)
    found = elmo.score(SENTENCES, top_k=2)
    assert scarce.failed
    assert [s.tokens for s in found] == [s.tokens for s in expected]
    for one, other in zip(found, expected):
        assert one.perplexity == pytest.approx(other.perplexity, rel=1e-5)
        assert one.combined.ranks == other.combined.ranks
    assert elmo.fill("the ___ sat on the mat")[0].word == filled[0].word


def test_perplexity_counts_every_sentence_once(elmo, monkeypatch):
    options = {"words_of": ["the", "cat"], "bits_per_character": True}
    expected = elmo.evaluate(SENTENCES, **options)
    scarce = Scarce(monkeypatch, elmo.model, 50)
    found = elmo.evaluate(SENTENCES, **options)
    assert scarce.failed
    assert found == pytest.approx(expected, rel=1e-6)


def test_segments_of_a_text(elmo, monkeypatch):
    text = " ".join(SENTENCES)
    elmo.segment_length = 30
    (expected,) = elmo.embed([text])
    scarce = Scarce(monkeypatch, elmo.model, 60)
    (found,) = elmo.embed([text])
    assert scarce.failed
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_gradients_flow_through_parts(elmo, monkeypatch):
    def gradient():
        vectors, _ = elmo.embed_padded(SENTENCES[:8], track_gradients=True)
        elmo.model.zero_grad()
        vectors.sum().backward()
        return [p.grad.clone() for p in elmo.model.parameters() if p.grad is not None]

    expected = gradient()
    scarce = Scarce(monkeypatch, elmo.model, 50)
    for one, other in zip(gradient(), expected):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert scarce.failed


@pytest.mark.parametrize(
    "use, advice",
    [
        (lambda elmo, text: elmo.embed([text, "a cat"]), r"segment_length \(now 5000\)"),
        (lambda elmo, text: elmo.score([text, "a cat"]), "need the whole sentence"),
        (lambda elmo, text: elmo.perplexity([text, "a cat"]), "need the whole sentence"),
    ],
)
def test_a_sentence_that_is_too_long_by_itself(elmo, monkeypatch, use, advice):
    Scarce(monkeypatch, elmo.model, 30)
    with pytest.raises(ConfigurationError, match=rf"sentence of 52 tokens .*{advice}") as caught:
        use(elmo, "the " * 50)
    # What led to it would hold all that was made.
    assert caught.value.__context__ is None


def test_other_errors_are_left_alone(elmo, monkeypatch):
    calls = []

    def encode(batch):
        calls.append(batch)
        raise RuntimeError("something else")

    monkeypatch.setattr(elmo.model, "encode", encode)
    with pytest.raises(RuntimeError, match="something else"):
        elmo.embed(SENTENCES)
    assert len(calls) == 1


def test_warnings_name_shape_and_key_and_grow_rare(elmo, monkeypatch, caplog):
    scarce = Scarce(monkeypatch, elmo.model, 60)
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            elmo.embed(SENTENCES)
    said = [r.getMessage() for r in caplog.records if "Memory ran out" in r.message]
    num_split = elmo._splitter.num_split
    assert len(said) == int(math.log2(num_split)) + 1 < num_split
    rows, columns = scarce.failed[0]
    assert f"{rows} sentences x {columns} tokens" in said[0]
    assert "max_tokens (now 150)" in said[0]


def test_it_can_be_pickled_still(elmo, monkeypatch):
    again = pickle.loads(pickle.dumps(elmo))
    scarce = Scarce(monkeypatch, again.model, 50)
    assert len(again.embed(SENTENCES)) == len(SENTENCES)
    assert scarce.failed and elmo._splitter.num_split == 0


@pytest.mark.parametrize(
    "error, expected",
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
def test_what_is_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


def test_an_allocation_that_fails_is_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_parts_are_in_order_and_nothing_of_a_failure_stays():
    class Large:
        pass

    alive = weakref.WeakSet()

    def function(items):
        assert not alive
        large = Large()
        alive.add(large)
        if len(items) > 3:
            raise MemoryError
        return list(items)

    gc.disable()
    try:
        parts = BatchSplitter().run(function, range(10), lambda item: 7, "key", "advice")
    finally:
        gc.enable()
    assert [item for part in parts for item in part] == list(range(10))
    assert len(parts) == 4


def test_commands_end_with_one_message(lm_archive, tmp_path, monkeypatch, capsys):
    (tmp_path / "text").write_text("the cat\n")

    def no_memory(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr(TransformerElmo, "open", no_memory)
    assert main(["score", str(lm_archive), str(tmp_path / "text")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("transformer-elmo score: Memory ran out (CUDA out of memory.")
