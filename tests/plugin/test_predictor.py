import json
import sys

import pytest
from allennlp.commands import main
from allennlp.data import DatasetReader, Vocabulary
from allennlp.models import Model, load_archive
from allennlp.predictors import Predictor

from tests.small_lm import random_sentences
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.inference.elmo import TransformerElmo
from transformer_elmo.plugin.predictor import LanguageModelPredictor

SENTENCES = [*random_sentences(12, seed=21), "unheard-of words 東京"]


@pytest.fixture(scope="module")
def archive(lm_archive):
    return load_archive(lm_archive)


@pytest.fixture(scope="module")
def expected(lm_archive):
    elmo = TransformerElmo.from_archive(lm_archive, device="cpu")
    return [scores.to_json() for scores in elmo.score(SENTENCES, top_k=3)]


def close(one, other):
    """JSON that is the same but for the last digits of numbers."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(close(a, b) for a, b in zip(one, other))
    if isinstance(one, float):
        return one == pytest.approx(other, rel=1e-4)
    return one == other


def test_is_the_default_of_language_models(archive):
    predictor = Predictor.from_archive(archive)
    assert isinstance(predictor, LanguageModelPredictor)
    assert "forward_top" not in predictor.predict("the cat")


def test_json_and_instances(archive, expected):
    predictor = Predictor.from_archive(archive, extra_args={"top_k": 3})
    inputs = [predictor.load_line(sentence + "\n") for sentence in SENTENCES]
    inputs[1] = predictor.load_line(json.dumps({"tokens": SENTENCES[1].split()}) + "\n")
    assert close(predictor.predict_batch_json(inputs), expected)
    assert close(predictor.predict_json(inputs[1]), expected[1])
    reader = predictor._dataset_reader
    instances = [reader.text_to_instance(sentence) for sentence in SENTENCES]
    assert close(predictor.predict_batch_instance(instances), expected)
    assert close(predictor.predict_instance(instances[2]), expected[2])


def test_command(lm_archive, expected, tmp_path, monkeypatch, capsys):
    """`allennlp predict`, but for its search for plugins."""
    text, output = tmp_path / "text.txt", tmp_path / "scores.jsonl"
    lines = [*SENTENCES[:4], "", json.dumps({"tokens": SENTENCES[4].split()}), *SENTENCES[5:]]
    text.write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setattr("allennlp.commands.import_plugins", lambda: None)
    arguments = ["predict", str(lm_archive), str(text), "--output-file", str(output)]
    arguments += ["--batch-size", "5", "--predictor-args", '{"top_k": 3}', "--silent"]
    monkeypatch.setattr(sys, "argv", ["allennlp", *arguments])
    main()
    assert close([json.loads(line) for line in output.read_text().splitlines()], expected)


def test_what_cannot_be_predicted(archive, vocabulary):
    for arguments, message in (
        ({"top_k": -1}, "top_k must be 0 or more"),
        ({"top_k": "3"}, "top_k must be 0 or more"),
        ({"tokenizer": "none"}, "no tokenizer 'none'"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"topk": 3}, "topk: there is no such key. Is it top_k"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            Predictor.from_archive(archive, extra_args=arguments)
    predictor = Predictor.from_archive(archive)
    with pytest.raises(TypeError, match='"sentence" or "text"'):
        predictor.predict_json({"txt": "the cat"})

    class Other(Model):
        pass

    with pytest.raises(ConfigurationError, match="this is a Other"):
        LanguageModelPredictor(Other(Vocabulary()), DatasetReader())
