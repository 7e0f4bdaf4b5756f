import copy
import math
import threading
from typing import Any

import numpy as np
import pytest
import torch

from tests.small_lm import (
    DIM,
    experiment_config,
    model_config,
    random_sentences,
    reader_config,
    write_archive,
)
from transformer_elmo import BidirectionalLanguageModelTokenEmbedder
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.inference.elmo import Candidate, TransformerElmo

SENTENCES = [*random_sentences(30, seed=11), "the cat", "", "unheard-of words 東京"]


@pytest.fixture(scope="module")
def elmo(lm_archive):
    return TransformerElmo.from_archive(lm_archive, device="cpu", max_tokens=60)


def test_is_what_the_token_embedder_computes(elmo, lm_archive):
    from tests.plugin.test_token_embedders import characters

    embedder = BidirectionalLanguageModelTokenEmbedder(archive_file=str(lm_archive)).eval()
    for sentence, vectors in zip(SENTENCES, elmo.embed(SENTENCES)):
        words = sentence.split()
        assert vectors.shape == (len(words), 2 * DIM) and vectors.dtype == np.float32
        if words:
            expected = embedder(characters([words]))[0].detach().numpy()
            assert np.abs(vectors - expected).max() < 1e-5


def test_layers(elmo):
    everything = elmo.embed(SENTENCES, layers="all")
    assert elmo.num_layers == 3 and elmo.dim == 2 * DIM
    for number, names in enumerate(((0, -3), (1, -2), (2, -1, "top"))):
        for name in names:
            for one, layers in zip(elmo.embed(SENTENCES, layers=name), everything):
                assert layers.shape == (3, *one.shape)
                assert np.abs(one - layers[number]).max(initial=0) < 1e-6
    assert np.array_equal(elmo.embed(["the"], np.int64(1))[0], elmo.embed(["the"], 1)[0])
    for weights in ([0.5, -1.0, 3.0], np.array([0.5, -1.0, 3.0], np.float32), None):
        mixed = elmo.embed(SENTENCES, weights=weights)
        for one, layers in zip(mixed, everything):
            expected = np.tensordot([1 / 3] * 3 if weights is None else weights, layers, 1)
            assert np.abs(one - expected).max(initial=0) < 1e-5


def test_order_and_company_change_nothing(elmo, lm_archive):
    expected = elmo.embed(SENTENCES)
    other = TransformerElmo.from_archive(lm_archive, device=-1, max_tokens=7)
    for found in (
        [elmo.embed([sentence])[0] for sentence in SENTENCES],
        elmo.embed(SENTENCES[::-1])[::-1],
        other.embed(sentence.split() for sentence in SENTENCES),
        list(elmo.embed_stream(iter(SENTENCES))),
    ):
        assert len(found) == len(expected)
        for one, two in zip(found, expected):
            assert one.shape == two.shape
            assert np.abs(one - two).max(initial=0) < 1e-5
    again = elmo.embed(SENTENCES)
    assert all(np.array_equal(one, two) for one, two in zip(again, expected))


def test_padded(elmo):
    vectors, mask = elmo.embed_padded(SENTENCES)
    assert mask.sum(-1).tolist() == [len(sentence.split()) for sentence in SENTENCES]
    assert vectors.shape == (*mask.shape, 2 * DIM) and not vectors.requires_grad
    assert not vectors[~mask].any()
    for one, row, flags in zip(elmo.embed(SENTENCES), vectors, mask):
        assert np.array_equal(one, row[flags].numpy())
    layers, mask = elmo.embed_padded(SENTENCES[:2], "all")
    assert layers.shape == (2, 3, mask.shape[1], 2 * DIM)
    nothing, mask = elmo.embed_padded([])
    assert nothing.shape == (0, 0, 2 * DIM) and mask.shape == (0, 0)


def test_gradients_only_when_asked(elmo):
    vectors = elmo.embed_tensors(SENTENCES[:3], track_gradients=True)
    sum(v.sum() for v in vectors).backward()
    weight = elmo.model.contextualizer._forward_transformer.layers[0].feed_forward.w_1.weight
    assert weight.grad is not None
    elmo.model.zero_grad(set_to_none=True)
    assert torch.is_grad_enabled()
    stream = elmo.embed_stream(SENTENCES)
    next(stream)
    assert torch.is_grad_enabled()


def test_long_sentences_go_in_windows(lm_archive):
    words = " ".join(random_sentences(40, seed=12)).split()
    assert len(words) > 200
    whole = TransformerElmo.from_archive(lm_archive, segment_length=None).embed([words, ["the"]])
    parts = TransformerElmo.from_archive(lm_archive, segment_length=64).embed([words, ["the"]])
    assert [v.shape for v in parts] == [v.shape for v in whole]
    assert np.array_equal(parts[1], whole[1])
    # Words have the same vectors at the bottom, and similar ones further up.
    assert not np.allclose(parts[0], whole[0], atol=1e-3)
    for length in (63, 64, 65, 66, 67):
        short = words[: length - 2]
        one, two = (
            TransformerElmo.from_archive(lm_archive, segment_length=n).embed([short], 0)[0]
            for n in (64, None)
        )
        assert one.shape == two.shape == (len(short), 2 * DIM)
        if length <= 64:
            assert np.allclose(one, two, atol=1e-6)


def test_scores(elmo):
    found = elmo.score(SENTENCES, top_k=2)
    for sentence, scores in zip(SENTENCES, found):
        assert scores.tokens == ["<S>", *sentence.split(), "</S>"]
        (alone,) = elmo.score([sentence.split()])
        assert scores.perplexity == pytest.approx(alone.perplexity, rel=1e-5)
        assert scores.forward.log_probs[1:] == pytest.approx(alone.forward.log_probs[1:], abs=1e-5)
        assert scores.forward.ranks == alone.forward.ranks
    assert found[-1].out_of_vocabulary[1:3] == [True, True]


def test_perplexity(elmo, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    scores = [s for sentence, s in zip(SENTENCES, elmo.score(SENTENCES)) if sentence]
    total = sum(s.forward_log_prob + s.backward_log_prob for s in scores)
    count = sum(s.num_tokens for s in scores)
    metrics = elmo.evaluate(path)
    assert metrics["num_tokens"] == count and metrics["num_sentences"] == len(scores)
    assert metrics["perplexity"] == pytest.approx(math.exp(-total / 2 / count), rel=1e-6)
    assert elmo.perplexity(str(path)) == metrics["perplexity"]
    # A blank line is no sentence, wherever it comes from.
    assert elmo.evaluate(SENTENCES) == metrics == elmo.evaluate(s.split() for s in SENTENCES)


def test_fill(elmo):
    found = elmo.fill("the ___ sat on", top_k=4)
    assert len(found) == 4 and all(isinstance(candidate, Candidate) for candidate in found)
    words = [word for word, _ in found]
    assert not {"<S>", "</S>", "@@UNKNOWN@@"} & set(words)
    probabilities = [probability for _, probability in found]
    assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) < 1
    # What stands in the gap isn't read.
    for word, probability in found:
        (scores,) = elmo.score([f"the {word} sat on"])
        assert math.exp(scores.combined.log_probs[2]) == pytest.approx(probability, rel=1e-4)
    assert elmo.fill(["the", "[]", "sat", "on"], top_k=4, gap="[]") == found


def test_fill_where_the_tokenizer_knows_no_gaps(elmo, lm_archive):
    expected = elmo.fill(["the", "cat", "___", "."], top_k=3)
    assert elmo.fill("the cat ___.", top_k=3) == expected
    letters = TransformerElmo.from_archive(lm_archive, tokenizer="letters_digits")
    assert letters.words("___ .") == ["_", "_", "_", "."]
    # Another model in memory: its word vectors may come from other batches.
    words, probabilities = zip(*letters.fill("the cat ___ .", top_k=3))
    assert list(words) == [candidate.word for candidate in expected]
    assert list(probabilities) == pytest.approx([c.probability for c in expected], rel=1e-5)


@pytest.mark.parametrize("kind", ["archive", "folder", "overrides"])
def test_without_a_softmax(elmo, lm_archive, tmp_path, kind):
    options: Any = {}
    if kind == "overrides":
        options = {"overrides": {"model.dropout": 0.1}}
    elif kind == "folder":
        elmo.save(tmp_path / "folder")
    path = tmp_path / "folder" if kind == "folder" else lm_archive
    bare = TransformerElmo.open(path, softmax=False, **options)
    assert not any("softmax" in name for name in bare.model.state_dict())
    for one, two in zip(bare.embed(SENTENCES), elmo.embed(SENTENCES)):
        assert np.allclose(one, two, atol=1e-5)
    with pytest.raises(ConfigurationError, match="no softmax"):
        bare.score(["the cat"])
    bare.save(tmp_path / "saved")
    assert TransformerElmo.open(tmp_path / "saved").dim == elmo.dim


def test_threads(elmo):
    expected = elmo.embed(SENTENCES)
    perplexity = elmo.perplexity(SENTENCES)
    problems = []

    def work():
        for one, two in zip(elmo.embed(SENTENCES), expected):
            if not np.array_equal(one, two):
                problems.append("vectors")
        if elmo.perplexity(SENTENCES) != perplexity:
            problems.append("perplexity")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def _weight(model, name):
    (found,) = [p for n, p in model.named_parameters() if n.endswith(name)]
    return found


LAYER = "_forward_transformer.layers.1."
SHARED_CHANGES = {
    "a column beyond the number of rows": (LAYER + "feed_forward.w_2.weight", (slice(None), 50)),
    "a neuron": (LAYER + "feed_forward.w_1.weight", 5),
    "a number between two samples of one a row": (LAYER + "self_attn.linears.2.weight", (3, 30)),
    "a bias": (LAYER + "feed_forward.w_1.bias", 7),
    "a gain": (LAYER + "sublayer.0.norm.gamma", 9),
    "a letter": ("words.embedding.weight", ord("e") + 1),
    "a filter": ("words.convolutions.1.weight", (2, 3, 1)),
    "the projection": ("words.projection.weight", (slice(None), 33)),
}


def _by_data(weight, places):
    weight.data[places] = 2.0


def _by_an_array(weight, places):
    weight.detach().numpy()[places] = 2.0


def _by_set(weight, places):
    changed = weight.detach().clone()
    changed[places] = 2.0
    weight.data.set_(changed)


@pytest.mark.parametrize("name, places", SHARED_CHANGES.values(), ids=list(SHARED_CHANGES))
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_vectors_follow_each_change_of_a_weight(lm_archive, name, places, precision):
    elmo = TransformerElmo.open(lm_archive, precision=precision)
    sentence, seen = ["the", "cat", "sat", "on", "trees"], []
    for change in (None, _by_data, _by_an_array, _by_set):
        if change is not None:
            with torch.no_grad():
                # As it was.
                _weight(elmo.model, name)[places] = -1.0
            elmo.embed([sentence])
            change(_weight(elmo.model, name), places)
        seen.append(torch.from_numpy(elmo.embed([sentence])[0]))
        fresh = TransformerElmo(copy.deepcopy(elmo.model), elmo._reader)
        assert torch.equal(seen[-1], torch.from_numpy(fresh.embed([sentence])[0]))
    assert not torch.equal(seen[0], seen[1])


def test_neighbors_follow_a_change_behind_pytorchs_back(lm_archive):
    elmo = TransformerElmo.open(lm_archive)
    before = elmo.nearest("cat", top_k=3)
    assert elmo.nearest("cat", top_k=3) == before
    _weight(elmo.model, "words.projection.weight").data[::2] = 0.0
    after = elmo.nearest("cat", top_k=3)
    assert after != before
    fresh = TransformerElmo(copy.deepcopy(elmo.model), elmo._reader)
    assert fresh.nearest("cat", top_k=3) == after


def test_precision_and_tokenizer(lm_archive, elmo):
    half = TransformerElmo.from_archive(lm_archive, precision="bfloat16", tokenizer="character")
    assert half.model.precision == "bfloat16"
    (vectors,) = half.embed(["abc"])
    assert vectors.shape == (3, 2 * DIM) and vectors.dtype == np.float32
    expected = elmo.embed([["a", "b", "c"]])[0]
    assert 0 < np.abs(vectors - expected).max() < 0.2


def test_a_model_that_reads_forward_only(tmp_path, vocabulary, make_model, monkeypatch):
    """With an LSTM over word ids, which returns one layer and needs another kind of indexing."""
    config = model_config(
        type="language_model",
        text_field_embedder={
            "token_embedders": {"tokens": {"type": "embedding", "embedding_dim": DIM}}
        },
        contextualizer={"type": "lstm", "input_size": DIM, "hidden_size": DIM},
    )
    reader = {**reader_config(), "token_indexers": {"tokens": {"type": "single_id"}}}
    model = make_model(**config)
    archive = write_archive(
        tmp_path / "lm", experiment_config(model=config, dataset_reader=reader), model
    )
    elmo = TransformerElmo.from_archive(archive)
    model_class = type(elmo.model.language_model)
    (scores,) = elmo.score(["the cat sat"])
    assert scores.backward is None and "combined_log_probs" not in scores.to_json()
    assert set(elmo.evaluate(["the cat sat"])) >= {"forward_perplexity", "perplexity"}
    assert elmo.fill("the ___")[0].word
    # No pass over the vocabulary for vectors, and none that isn't needed for scores.
    with monkeypatch.context() as patch:
        patch.setattr(model_class, "losses", None)
        elmo.score(["the cat sat"])
        elmo.embed(["the cat"], "top")
    assert elmo.embed(["the cat"], "top")[0].shape == (2, DIM)
    with pytest.raises(ConfigurationError, match='use layers = "top"'):
        elmo.embed(["the cat"], 0)


def test_what_cannot_be_done(elmo, tmp_path, make_model, lm_archive):
    for layers in ("middle", 3, -4, True, None, 1.0):
        with pytest.raises(ValueError, match=r"to 2 \(top\)"):
            elmo.embed(["the"], layers)
    with pytest.raises(ValueError, match="weights must be 3 numbers"):
        elmo.embed(["the"], weights=[1.0])
    with pytest.raises(ValueError, match="weights are for"):
        elmo.embed(["the"], "top", weights=[1.0, 1.0, 1.0])
    with pytest.raises(TypeError, match="put it in a list"):
        elmo.embed("the cat")
    for sentence in (["the", 3], 7, None):
        with pytest.raises(TypeError, match="list of strings"):
            elmo.embed([sentence])
    with pytest.raises(ValueError, match="one gap"):
        elmo.fill("no gap")
    with pytest.raises(ValueError, match="one gap"):
        elmo.fill("___ and ___")
    with pytest.raises(ConfigurationError, match="no word to predict"):
        elmo.perplexity([])
    with pytest.raises(ConfigurationError, match="There is no archive"):
        TransformerElmo.from_archive(tmp_path / "none.tar.gz")
    with pytest.raises(ConfigurationError, match="precision must be one of"):
        TransformerElmo.from_archive(lm_archive, precision="half")
    with pytest.raises(ConfigurationError, match="no tokenizer 'wordpiece'"):
        TransformerElmo.from_archive(lm_archive, tokenizer="wordpiece")
    model = make_model()
    model.delete_softmax()
    stripped = TransformerElmo(model, _reader())
    assert stripped.embed(["the cat"], "top")[0].shape == (2, 2 * DIM)
    with pytest.raises(ConfigurationError, match="no softmax"):
        stripped.score(["the cat"])


def _reader():
    from allennlp.common import Params
    from allennlp.data import DatasetReader

    return DatasetReader.from_params(Params(reader_config()))
