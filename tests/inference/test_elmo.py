"""What `TransformerElmo` does beside what all integrations do (`tests/integrations`)."""

import copy
import math

import numpy as np
import pytest
import torch

from tests.integrations.small_model import assert_close
from tests.small_lm import (
    DIM,
    experiment_config,
    model_config,
    random_sentences,
    reader_config,
    write_archive,
)
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.inference.elmo import Candidate, TransformerElmo

SENTENCES = [*random_sentences(30, seed=11), "the cat", "", "unheard-of words 東京"]


@pytest.fixture(scope="module")
def elmo(lm_archive):
    return TransformerElmo.open(lm_archive, device="cpu", max_tokens=20)


def test_weights_of_the_mix(elmo):
    everything = elmo.embed(SENTENCES, layers="all")
    for weights in ([0.5, -1.0, 3.0], np.array([0.5, -1.0, 3.0], np.float32)):
        expected = [np.tensordot(weights, layers, 1) for layers in everything]
        assert_close(elmo.embed(SENTENCES, weights=weights), expected)


def test_names_of_layers(elmo):
    for one, other in ((np.int64(1), 1), (2, "top"), (-3, 0)):
        assert np.array_equal(elmo.embed(["the"], one)[0], elmo.embed(["the"], other)[0])
        assert elmo.checked_layers(one) == other


def test_padded(elmo):
    vectors, mask = elmo.embed_padded(SENTENCES)
    assert mask.sum(-1).tolist() == [len(sentence.split()) for sentence in SENTENCES]
    assert vectors.shape == (*mask.shape, 2 * DIM) and not vectors.requires_grad
    assert not vectors[~mask].any()
    rows = [row[flags].numpy() for row, flags in zip(vectors, mask)]
    assert_close(rows, elmo.embed(SENTENCES), 0)
    layers, mask = elmo.embed_padded(SENTENCES[:2], "all")
    assert layers.shape == (2, 3, mask.shape[1], 2 * DIM)
    assert [found.shape for found in elmo.embed_padded([])] == [(0, 0, 2 * DIM), (0, 0)]


def test_gradients_only_when_asked(elmo):
    vectors, _ = elmo.embed_padded(SENTENCES[:3], track_gradients=True)
    vectors.sum().backward()
    weight = elmo.model.contextualizer._forward_transformer.layers[0].feed_forward.w_1.weight
    assert weight.grad is not None
    elmo.model.zero_grad(set_to_none=True)
    # Whoever reads a stream computes with gradients meanwhile.
    next(elmo.embed_stream(SENTENCES))
    assert torch.is_grad_enabled()


def test_long_sentences_go_in_segments(lm_archive):
    words = " ".join(random_sentences(40, seed=12)).split()
    whole, parts = (TransformerElmo.open(lm_archive, segment_length=n) for n in (None, 64))
    found, expected = (elmo.embed([words, ["the"]]) for elmo in (parts, whole))
    assert [v.shape for v in found] == [v.shape for v in expected]
    assert np.array_equal(found[1], expected[1])
    assert not np.allclose(found[0], expected[0], atol=1e-3)
    # Words have the same vectors at the bottom wherever the text is cut.
    for length in (63, 64, 65, 67):
        short = [words[: length - 2]]
        assert_close(parts.embed(short, 0), whole.embed(short, 0))


def test_evaluate(elmo, tmp_path):
    filled = elmo.score(filter(None, SENTENCES))
    total = sum(s.forward.log_prob + s.backward.log_prob for s in filled)
    count = sum(s.num_tokens for s in filled)
    path = tmp_path / "text.txt"
    path.write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    metrics = elmo.evaluate(path)
    assert metrics["num_tokens"] == count and metrics["num_sentences"] == len(filled)
    assert metrics["perplexity"] == pytest.approx(math.exp(-total / 2 / count), rel=1e-6)
    assert elmo.perplexity(str(path)) == metrics["perplexity"]
    # A blank line is no sentence, wherever it comes from.
    assert elmo.evaluate(SENTENCES) == metrics == elmo.evaluate(s.split() for s in SENTENCES)


def test_fill(elmo, lm_archive):
    found = elmo.fill("the ___ sat on", top_k=4)
    assert len(found) == 4 and all(isinstance(candidate, Candidate) for candidate in found)
    words, probabilities = zip(*found)
    assert not {"<S>", "</S>", "@@UNKNOWN@@"} & set(words)
    assert list(probabilities) == sorted(probabilities, reverse=True) and sum(probabilities) < 1
    # What stands in the gap isn't read.
    for word, probability in found:
        (scores,) = elmo.score([f"the {word} sat on"])
        assert math.exp(scores.combined.log_probs[2]) == pytest.approx(probability, rel=1e-4)
    assert elmo.fill(["the", "[]", "sat", "on"], top_k=4, gap="[]") == found
    # Where the tokenizer knows no gaps.
    expected = elmo.fill(["the", "cat", "___", "."], top_k=3)
    assert elmo.fill("the cat ___.", top_k=3) == expected
    letters = TransformerElmo.open(lm_archive, tokenizer="letters_digits")
    assert letters.words("___ .") == ["_", "_", "_", "."]
    again = letters.fill("the cat ___ .", top_k=3)
    assert [c.word for c in again] == [c.word for c in expected]


@pytest.mark.parametrize("overrides", [None, {"model.dropout": 0.1}])
def test_without_a_softmax(elmo, lm_archive, tmp_path, overrides):
    bare = TransformerElmo.open(lm_archive, softmax=False, overrides=overrides)
    assert not any("softmax" in name for name in bare.model.state_dict())
    assert_close(bare.embed(SENTENCES), elmo.embed(SENTENCES))
    with pytest.raises(ConfigurationError, match="no softmax"):
        bare.score(["the cat"])
    bare.save(tmp_path / "saved")
    assert TransformerElmo.open(tmp_path / "saved").dim == elmo.dim


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_results_follow_each_change_of_a_weight(lm_archive, precision):
    elmo = TransformerElmo.open(lm_archive, precision=precision)

    def results(elmo):
        return elmo.embed(["the cat sat on trees"])[0].tolist(), elmo.nearest("cat", 3)

    seen = [results(elmo)]
    for name, weight in elmo.model.named_parameters():
        if "softmax" in name or "layers.0" in name or "backward" in name:
            continue
        # Behind the back of autograd, which would count it.
        weight.data.flatten()[::2] += 0.1
        seen.append(results(elmo))
        assert seen[-1] == results(TransformerElmo(copy.deepcopy(elmo.model), elmo._reader)), name
        # A bias of keys makes no difference.
        assert seen[-1][0] != seen[-2][0] or "self_attn.linears.1.bias" in name
    assert len(seen) > 30


def test_precision_and_tokenizer(lm_archive, elmo):
    half = TransformerElmo.open(lm_archive, precision="bfloat16", tokenizer="character")
    assert half.model.precision == "bfloat16"
    (vectors,) = half.embed(["abc"])
    assert vectors.shape == (3, 2 * DIM) and vectors.dtype == np.float32
    assert 0 < np.abs(vectors - elmo.embed([["a", "b", "c"]])[0]).max() < 0.2


def test_a_model_that_reads_forward_only(tmp_path, make_model, monkeypatch):
    """With an LSTM over word ids, which returns one layer and needs another kind of indexing."""
    embedders = {"token_embedders": {"tokens": {"type": "embedding", "embedding_dim": DIM}}}
    config = model_config(
        type="language_model",
        text_field_embedder=embedders,
        contextualizer={"type": "lstm", "input_size": DIM, "hidden_size": DIM},
    )
    reader = {**reader_config(), "token_indexers": {"tokens": {"type": "single_id"}}}
    experiment = experiment_config(model=config, dataset_reader=reader)
    elmo = TransformerElmo.open(write_archive(tmp_path / "lm", experiment, make_model(**config)))
    (scores,) = elmo.score(["the cat sat"])
    assert scores.backward is None and "combined_log_probs" not in scores.to_json()
    assert set(elmo.evaluate(["the cat sat"])) >= {"forward_perplexity", "perplexity"}
    assert elmo.fill("the ___")[0].word and "layers: the top one" in repr(elmo)
    # No pass over the vocabulary for vectors, and none that isn't needed for scores.
    monkeypatch.setattr(type(elmo.model.language_model), "losses", None)
    elmo.score(["the cat sat"])
    assert elmo.embed(["the cat"], "top")[0].shape == (2, DIM)
    with pytest.raises(ConfigurationError, match='use layers = "top"'):
        elmo.embed(["the cat"], 0)


def test_what_cannot_be_done(elmo, lm_archive):
    for call, error, message in (
        (lambda: elmo.embed(["the"], True), ValueError, r"to 2 \(top\)"),
        (lambda: elmo.embed(["the"], None), ValueError, r"to 2 \(top\)"),
        (lambda: elmo.embed(["the"], weights=[1.0]), ValueError, "weights must be 3 numbers"),
        (lambda: elmo.embed(["the"], "top", weights=[1.0] * 3), ValueError, "weights are for"),
        (lambda: elmo.fill("no gap"), ValueError, "one gap"),
        (lambda: elmo.fill("___ and ___"), ValueError, "one gap"),
        (lambda: elmo.fill("the ___", 0), ValueError, "top_k must be at least 1"),
        (lambda: elmo.score(["the"], -1), ValueError, "top_k must not be negative"),
        (lambda: elmo.nearest("dog", sentence="the dogs"), ValueError, "no word 'dog' in"),
        (lambda: elmo.nearest(["dog"]), ValueError, "Expected a word"),
        (lambda: elmo.nearest("dog", 0), ValueError, "top_k must be at least 1"),
        (lambda: elmo.perplexity([]), ConfigurationError, "no word to predict"),
        (lambda: TransformerElmo.open(lm_archive, "cpu", "half"), ConfigurationError, "precision"),
    ):
        with pytest.raises(error, match=message):
            call()
