"""Words like a word, and what `TransformerElmo` shows of itself."""

from unittest.mock import Mock

import numpy as np
import pytest

from tests.small_lm import WORDS
from transformer_elmo import with_allennlp
from transformer_elmo.inference.elmo import TransformerElmo

KNOWN = WORDS[:-3]


@pytest.fixture(scope="module", params=[None, '{"model.contextualizer.return_all_layers": true}'])
def opened(request, lm_archive):
    """By the core, and with overrides by AllenNLP."""
    return TransformerElmo.open(lm_archive, "cpu", overrides=request.param)


def check(found, vectors, others, vector, mean):
    """Whether words are there by their cosines with a vector, of which all have had a mean less."""
    vectors, vector = vectors - mean, vector - mean
    cosines = vectors @ vector / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vector)
    similarity = dict(zip(others, cosines))
    assert [n.word for n in found] == sorted(others, key=lambda w: -similarity[w])[: len(found)]
    assert [n.similarity for n in found] == pytest.approx(
        [similarity[n.word] for n in found], abs=1e-5
    )


@pytest.mark.parametrize("word", ["dog", "unheard-of", "東京"])
def test_by_themselves(opened, word):
    everything = [opened.vocab[number] for number in range(1, len(opened.vocab) + 1)]
    others = sorted({*KNOWN} - {word})
    table, vectors, vector = opened.embed([everything, others, [word]], layers=0)
    check(opened.nearest(word, 5), vectors, others, vector[0], table.mean(0))
    # Neither boundary tokens nor the unknown word, however many are asked for.
    assert {neighbor.word for neighbor in opened.nearest(word, 1000)} == {*others}


@pytest.mark.parametrize("sentence", ["the dog sat on a dog", "dog"])
def test_in_a_sentence(opened, sentence):
    """There are so few words that all are tried."""
    words = sentence.split()
    place, others = words.index("dog"), sorted({*KNOWN} - {"dog"})
    swapped = [[*words[:place], other, *words[place + 1 :]] for other in ["dog", *others]]
    here = np.stack([vectors[place] for vectors in opened.embed(swapped)])
    check(opened.nearest("dog", 6, sentence=sentence), here[1:], others, here[0], here.mean(0))


def test_without_a_softmax_and_what_it_shows_of_itself(elmo, tmp_path, lm_archive):
    elmo.save(tmp_path / "vectors", with_softmax=False)
    other = TransformerElmo.open(tmp_path / "vectors", device="cpu")
    assert other.nearest("dog") == elmo.nearest("dog")
    assert {n.word for n in other.nearest("dog", 1000, sentence="the dog")} == set(KNOWN) - {"dog"}
    words = len(elmo.vocab)
    assert f"words: {words} (their vectors, no probabilities)" in repr(other)
    assert repr(elmo) == (
        f"TransformerElmo(model: {lm_archive}, layers: 2 and words, dimensions: 64, "
        f"words: {words}, device: cpu)"
    )


def test_long_calls_show_how_far_they_are(lm_archive, monkeypatch):
    bar = Mock()
    monkeypatch.setattr(with_allennlp, "progress_bar", bar)
    elmo, sentences = TransformerElmo.open(lm_archive, device="cpu"), ["the dog", "the cat"]
    calls = (elmo.embed, elmo.embed_padded, elmo.score, elmo.evaluate)
    for call in (*calls, elmo.embed_stream, elmo.score_stream):
        for progress in (True, False):
            list(call(sentences, progress=progress))
    elmo.perplexity(sentences, progress=True)
    for _ in range(2):
        elmo.nearest("dog", progress=True)
    shown = [call.kwargs for call in bar.call_args_list]
    assert [kwargs["total"] for kwargs in shown] == [2] * 7 + [1]
    assert shown[7]["desc"] == "encoding the vocabulary"
