"""Words like a word, and what `TransformerElmo` shows of itself."""

import pickle

import numpy as np
import pytest
import torch
from allennlp.models import load_archive

from tests.small_lm import WORDS
from transformer_elmo import with_allennlp
from transformer_elmo.inference.elmo import TransformerElmo

KNOWN = WORDS[:-3]


@pytest.fixture(scope="module")
def elmo(lm_archive):
    return TransformerElmo.open(lm_archive, device="cpu")


def cosines(vectors, vector, mean):
    vectors, vector = vectors - mean, vector - mean
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(vector)
    return vectors @ vector / norms


def expected_by_themselves(elmo, word):
    everything = [elmo.vocab[number] for number in range(1, len(elmo.vocab) + 1)]
    table, vector = elmo.embed([everything, [word]], layers=0)
    similarity = dict(zip(everything, cosines(table, vector[0], table.mean(0))))
    return sorted(set(KNOWN) - {word}, key=lambda other: -similarity[other]), similarity


def check(found, order, similarity):
    assert [neighbor.word for neighbor in found] == order[: len(found)]
    for neighbor in found:
        assert neighbor.similarity == pytest.approx(similarity[neighbor.word], abs=1e-5)


@pytest.mark.parametrize("word", ["dog", "unheard-of", "東京"])
def test_by_themselves(elmo, word):
    check(elmo.nearest(word, 5), *expected_by_themselves(elmo, word))
    # Neither boundary tokens nor the unknown word, however many are asked for.
    assert {neighbor.word for neighbor in elmo.nearest(word, 1000)} == set(KNOWN) - {word}


@pytest.mark.parametrize("sentence", ["the dog sat on a dog", ["dog"]])
def test_in_a_sentence(elmo, sentence):
    """There are so few words that all are tried."""
    words = sentence.split() if isinstance(sentence, str) else sentence
    place = words.index("dog")
    order = ["dog", *sorted(set(KNOWN) - {"dog"})]
    swapped = [[*words[:place], other, *words[place + 1 :]] for other in order]
    here = np.stack([vectors[place] for vectors in elmo.embed(swapped)])
    similarity = dict(zip(order, cosines(here, here[0], here.mean(0))))
    best = sorted(order[1:], key=lambda other: -similarity[other])
    check(elmo.nearest("dog", 6, sentence=sentence), best, similarity)


def test_under_allennlp(elmo, lm_archive):
    archive = load_archive(lm_archive, overrides={"model.contextualizer.return_all_layers": True})
    theirs = TransformerElmo(archive.model, archive.dataset_reader)
    for sentence in (None, "the dog ran"):
        found = [model.nearest("dog", sentence=sentence) for model in (elmo, theirs)]
        for one, other in zip(*found):
            assert one.word == other.word
            assert one.similarity == pytest.approx(other.similarity, abs=1e-5)


def test_without_a_softmax(elmo, tmp_path, capsys):
    elmo.save(tmp_path / "vectors", with_softmax=False)
    other = TransformerElmo.open(tmp_path / "vectors", device="cpu")
    assert other.nearest("dog") == elmo.nearest("dog")
    assert {n.word for n in other.nearest("dog", 1000, sentence="the dog")} == set(KNOWN) - {"dog"}


def test_neighbors_follow_the_weights(lm_archive):
    elmo = TransformerElmo.open(lm_archive, device="cpu")
    before = elmo.nearest("dog")
    with torch.no_grad():
        for parameter in elmo.model.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert elmo.nearest("dog") != before


def test_it_can_be_pickled(elmo):
    found = elmo.nearest("dog")
    other = pickle.loads(pickle.dumps(elmo))
    assert other.nearest("dog") == found
    assert repr(other) == repr(elmo)


def test_what_has_no_neighbors(elmo):
    for arguments, options, message in (
        (("dog",), {"sentence": "the cat"}, "no word 'dog' in"),
        (("dog",), {"sentence": "the dogs"}, "no word 'dog' in"),
        (("",), {}, "Expected a word"),
        ((["dog"],), {}, "Expected a word"),
        (("dog", 0), {}, "top_k must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            elmo.nearest(*arguments, **options)


def test_what_it_shows_of_itself(elmo, lm_archive, tmp_path):
    words = len(elmo.vocab)
    assert repr(elmo) == (
        f"TransformerElmo(model: {lm_archive}, layers: 2 and words, dimensions: 64, "
        f"words: {words}, device: cpu)"
    )
    html = elmo._repr_html_()
    assert f"<tr><th>words</th><td>{words}</td></tr>" in html and str(lm_archive) in html
    elmo.save(tmp_path / "<vectors>", with_softmax=False)
    other = TransformerElmo.open(tmp_path / "<vectors>", device="cpu")
    assert f"words: {words} (their vectors, no probabilities)" in repr(other)
    assert "&lt;vectors&gt;" in other._repr_html_()


def test_long_calls_show_how_far_they_are(elmo, lm_archive, monkeypatch):
    shown = []

    class Bar:
        def __init__(self, desc, total):
            shown.append((desc, total))

        def update(self, number=1):
            pass

        def close(self):
            pass

    monkeypatch.setattr(with_allennlp, "progress_bar", Bar)
    sentences = ["the dog", "the cat"]
    for call in (elmo.embed, elmo.embed_padded, elmo.embed_tensors, elmo.score, elmo.evaluate):
        call(sentences, progress=True)
    elmo.perplexity(sentences, progress=True)
    list(elmo.embed_stream(sentences, progress=True))
    list(elmo.score_stream(sentences, progress=True))
    assert [total for _, total in shown] == [2] * 8
    other = TransformerElmo.open(lm_archive, device="cpu")
    for _ in range(2):
        other.nearest("dog", progress=True)
    assert shown[8:] == [("encoding the vocabulary", 1)]
    for call in (elmo.embed, elmo.score, elmo.evaluate):
        call(sentences)
    assert len(shown) == 9
