"""Two models of different vocabularies on one text."""

import json
import math

import numpy as np
import pytest
import torch
from allennlp.commands.evaluate import evaluate_from_archive
from allennlp.common import Params
from allennlp.data import Vocabulary
from allennlp.models import Model

from tests.small_lm import WORDS, experiment_config, model_config, random_sentences, write_archive
from transformer_elmo import ConfigurationError, TransformerElmo
from transformer_elmo.commands.compare import compare
from transformer_elmo.inference.evaluation import SpellingModel


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Of fewer words, in another order."""
    vocabulary = Vocabulary(non_padded_namespaces=["*labels", "*tags"])
    vocabulary.add_tokens_to_namespace(["</S>", "<S>", *WORDS[10::-1], "owl"])
    torch.manual_seed(7)
    model = Model.from_params(vocab=vocabulary, params=Params(model_config()))
    return write_archive(tmp_path_factory.mktemp("other"), experiment_config(), model)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join([*random_sentences(40, seed=2), "an owl"]) + "\n")
    return path


def test_what_is_compared(lm_archive, other, text):
    models = [TransformerElmo.open(path) for path in (lm_archive, other)]
    found = compare(models[0], models[1], str(text))
    shared = set(WORDS[:11])
    for model, perplexity in zip(models, found.perplexities):
        listed = [
            log_prob
            for scores in model.score(text.read_text().splitlines())
            for view in (scores.forward, scores.backward)
            for token, log_prob in zip(scores.tokens, view.log_probs)
            if token in shared and log_prob is not None
        ]
        assert math.exp(-np.mean(listed)) == pytest.approx(perplexity, rel=1e-5)
        assert len(listed) == found.num_predictions
        # The same by way of a list of words.
        metrics = model.evaluate(str(text), words_of=sorted(shared))
        assert metrics["listed_perplexity"] == pytest.approx(perplexity, rel=1e-5)
        assert metrics["num_listed_predictions"] == found.num_predictions
    assert found.ratio == pytest.approx(found.perplexities[1] / found.perplexities[0])
    assert found.interval[0] < found.ratio < found.interval[1]
    assert {word.word for word in found.words} <= shared
    total = sum(word.times * word.gain for word in found.words)
    assert math.exp(-total / found.num_predictions) == pytest.approx(found.ratio)
    assert found.num_sentences == 41 and found.num_shared_words == len(shared) + 2


def test_the_command(command, lm_archive, other, text, tmp_path):
    printed = command("compare", lm_archive, lm_archive, text)
    assert "1.000 of A's (95 %: 1.000 to 1.000), so that either" in printed
    assert "Better with" not in printed
    output = tmp_path / "out.json"
    arguments = ["compare", lm_archive, other, text, "--output-file", output, "--top-k", "2"]
    printed = command(*arguments)
    assert "Better with A" in printed and "bits per character" in printed
    found = json.loads(output.read_text())
    assert f"{found['perplexities'][1]:.2f}" in printed and found["words"][0]["times"] > 0
    assert "Give --force" in command(*arguments, status=1)


def test_models_that_read_otherwise(lm_archive, text, make_model, tmp_path):
    config = experiment_config()
    config["dataset_reader"]["tokenizer"] = {"type": "character"}
    archive = write_archive(tmp_path / "by-characters", config, make_model())
    models = [TransformerElmo.open(path) for path in (lm_archive, archive)]
    with pytest.raises(ConfigurationError, match=r"split sentence 1 of .* differently"):
        compare(models[0], models[1], str(text))
    (tmp_path / "none.txt").write_text("unheard-of\n")
    with pytest.raises(ConfigurationError, match="no word that both models know"):
        compare(models[0], models[0], str(tmp_path / "none.txt"))


def test_bits_per_character(lm_archive, other, text):
    """Unknown words are spelled, so that knowing fewer words is no gain."""
    for path in (lm_archive, other):
        model = TransformerElmo.open(path)
        found = model.evaluate(str(text), bits_per_character=True)
        assert found["num_characters"] == len(text.read_text().replace("\n", " "))
        unknown = [word for word in text.read_text().split() if word not in model.vocab]
        bits = found["loss"] * found["num_tokens"] / math.log(2)
        bits += SpellingModel(model.vocab.words).bits(unknown).sum()
        expected = bits / found["num_characters"]
        assert found["bits_per_character"] == pytest.approx(expected, rel=1e-5)


def test_evaluate_under_allennlp(lm_archive, text, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("the\ncat\nnever-seen\n")
    section = {"type": "language_modeling", "words_of": str(words), "bits_per_character": True}
    expected = TransformerElmo.open(lm_archive).evaluate(
        str(text), words_of=str(words), bits_per_character=True
    )
    for batches in ({"max_tokens": 300, "distinct_words": True}, {"max_tokens": 90}):
        overrides = json.dumps({"evaluation": section, "data_loader": batches})
        found = evaluate_from_archive(lm_archive, str(text), cmd_overrides=overrides)
        assert found == pytest.approx(expected, rel=1e-5)


def test_words_that_nobody_knows(lm_archive, text, caplog):
    model = TransformerElmo.open(lm_archive)
    with pytest.raises(ConfigurationError, match="None of the 1 listed words"):
        model.evaluate(str(text), words_of=["never-seen", "@@UNKNOWN@@"])
    model.evaluate(str(text), words_of=["the", "never-seen"])
    assert "1 of the 2 listed words" in caplog.text


def test_spelling():
    """No more than 1, over all strings of up to two letters of its words and some more."""
    letters = "catrdog"
    model = SpellingModel(["ca", "cat", "cart", "dog", "do", "a"])
    short = ["", *letters, *(a + b for a in letters for b in letters)]
    whole = 2.0 ** -model.bits([*short, *(a + b for a in short[8:] for b in letters)])
    assert 0.5 < whole.sum() < 1 and len(whole) == 1 + 7 + 49 + 343
    alike, other = SpellingModel(WORDS).bits(["treehouse", "xqjzkvwpf"])
    assert alike < other / 2
    assert model.bits([]).shape == (0,)
