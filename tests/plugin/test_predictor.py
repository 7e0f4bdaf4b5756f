import json
from typing import Any

import pytest
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


def test_json_and_instances(archive):
    elmo = TransformerElmo(archive.model, archive.dataset_reader)
    predictor = Predictor.from_archive(archive, extra_args={"top_k": 3})
    assert isinstance(predictor, LanguageModelPredictor)
    inputs = [predictor.load_line(sentence + "\n") for sentence in SENTENCES]
    inputs[1] = predictor.load_line(json.dumps({"tokens": SENTENCES[1].split()}) + "\n")
    instances = [archive.dataset_reader.text_to_instance(sentence) for sentence in SENTENCES]
    expected = [scores.to_json() for scores in elmo.score(SENTENCES, top_k=3)]
    assert predictor.predict_batch_json(inputs) == expected
    assert predictor.predict_batch_instance(instances) == expected
    (alone,) = elmo.score(SENTENCES[1:2], top_k=3)
    assert predictor.predict_json(inputs[1]) == alone.to_json()
    assert predictor.predict_instance(instances[1]) == alone.to_json()
    plain: Any = Predictor.from_archive(archive)
    assert "forward_top" not in plain.predict("the cat")


def test_what_cannot_be_predicted(archive):
    for arguments, message in (
        ({"top_k": -1}, "top_k must be 0 or more"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"topk": 3}, "topk: there is no such key. Is it top_k?"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            Predictor.from_archive(archive, extra_args=arguments)
    with pytest.raises(TypeError, match='"sentence" or "text"'):
        Predictor.from_archive(archive).predict_json({"txt": "the cat"})

    class Other(Model):
        pass

    with pytest.raises(ConfigurationError, match="this is a Other"):
        LanguageModelPredictor(Other(Vocabulary()), DatasetReader())


def test_old_names(lm_archive, caplog):
    with caplog.at_level("INFO", logger="transformer_elmo"):
        predictor = Predictor.from_path(lm_archive, "sentence-tagger")
    assert type(predictor).__name__ == "TaggerPredictor"
    assert "sentence-tagger of AllenNLP 0.x is sentence_tagger now" in caplog.text


def test_settings_of_a_model_that_allennlp_opens(lm_archive):
    options: Any = {"precision": "bfloat16", "compile": True, "device": "cpu"}
    model = TransformerElmo.open(lm_archive, overrides={}, **options).model.language_model
    assert (model.precision, model.compiles) == ("bfloat16", True)
