"""`allennlp predict` with models on top of a language model, none of which needs spaCy's models."""

import copy
import io
import json
import sys

import pytest
from allennlp.commands import main
from allennlp.commands.train import train_model
from allennlp.common import Params
from allennlp.data import Instance, Vocabulary
from allennlp.models import Model, load_archive
from allennlp.models.simple_tagger import SimpleTagger
from allennlp.predictors import Predictor

from tests.plugin.test_tokenizers import no_models  # noqa: F401
from tests.pretrained.test_standing_alone import tagger_config
from tests.small_lm import DIM, write_archive
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin.tagger_predictor import TaggerPredictor

pytestmark = pytest.mark.usefixtures("no_models")

WORDS = ["don't", "käse", "."]


@pytest.fixture(scope="module")
def tagger(lm_archive, tmp_path_factory):
    vocab = Vocabulary(counter={"labels": {"D": 1, "N": 1, "V": 1}})
    config = tagger_config(lm_archive)
    model = Model.from_params(vocab=vocab, params=Params(copy.deepcopy(config["model"])))
    return write_archive(tmp_path_factory.mktemp("tagger"), config, model)


def predictor_of(archive, **arguments):
    return Predictor.from_archive(load_archive(archive), extra_args=arguments)


def words(predictor, line):
    return predictor.predict_json(predictor.load_line(line + "\n"))["words"]


@pytest.mark.parametrize("name", [None, SimpleTagger.default_predictor])
def test_words_stay_what_they_are(tagger, name):
    predictor = Predictor.from_archive(load_archive(tagger), name)
    assert isinstance(predictor, TaggerPredictor)
    for line in ({"words": WORDS}, {"tokens": WORDS}, WORDS):
        assert words(predictor, json.dumps(line)) == WORDS
    assert words(predictor, " ".join(WORDS)) == WORDS


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        ("just_spaces", ["Don't", "go."]),
        ("spacy", ["Do", "n't", "go", "."]),
        # Another language has other rules.
        ({"type": "spacy", "language": "fi"}, ["Don't", "go", "."]),
    ],
)
def test_texts_are_split_as_one_says(tagger, tokenizer, expected):
    predictor = predictor_of(tagger, tokenizer=tokenizer)
    for line in ('{"sentence": "Don\'t go."}', "Don't go."):
        assert words(predictor, line) == expected


def test_batches_with_a_sentence_of_no_words(tagger):
    predictor = predictor_of(tagger)
    inputs = [*map(predictor.load_line, ("the dog", "[]", '["birds", "flew", "."]'))]
    outputs = predictor.predict_batch_json(inputs)
    assert [len(output["tags"]) for output in outputs] == [2, 0, 3]
    assert [output["words"] for output in outputs] == [json["words"] for json in inputs]
    assert predictor.predict_batch_json(inputs[1:2]) == [{"words": [], "tags": []}]
    alone = predictor.predict(["birds", "flew", "."])
    assert predictor.predict({"tokens": ("birds", "flew", ".")}) == alone
    assert alone["tags"] == outputs[2]["tags"]
    # Nor does a shorter sentence get any from the padding behind it.
    assert [len(outputs[0][key]) for key in ("logits", "class_probabilities")] == [2, 2]
    # What AllenNLP's interpretation takes from this predictor.
    instances = predictor.json_to_labeled_instances({"words": ["the", "dog"]})
    assert all(isinstance(instance, Instance) for instance in instances)


@pytest.mark.parametrize(
    "arguments, line, message",
    [
        ({"tokeniser": "x"}, "", "tokeniser: there is no such key. Is it tokenizer?"),
        ({"tokenizer": "none"}, "", "no tokenizer 'none'"),
        ({"tokenizer": 3}, "", "A tokenizer is a name or a config"),
        ({"input_format": "csv"}, "the dog", "input_format must be one of"),
        ({}, '{"words": "the dog"}', 'not an object with "tokens" or "words"'),
        # How to do without spaCy's model.
        ({}, '{"sentence": "the dog"}', r'download en_core.*"words": .*just_spaces'),
    ],
)
def test_what_cannot_be_predicted(tagger, arguments, line, message):
    with pytest.raises(ConfigurationError, match=message):
        words(predictor_of(tagger, **arguments), line)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_command_writes_letters_where_it_can(tagger, tmp_path, monkeypatch, encoding):
    """`allennlp predict`, but for its search for plugins."""
    text, output = tmp_path / "in.txt", tmp_path / "out.jsonl"
    text.write_text("the käse 東京\n", encoding="utf-8")
    monkeypatch.setattr("allennlp.commands.import_plugins", lambda: None)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    arguments = ["predict", str(tagger), str(text), "--output-file", str(output)]
    monkeypatch.setattr(sys, "argv", ["allennlp", *arguments])
    main()
    written = output.read_text(encoding="utf-8")
    assert json.loads(written)["words"] == ["the", "käse", "東京"]
    assert ("東京" in written) == (encoding == "utf-8")


def test_a_classifier_names_the_tokens_that_it_knows_by_characters_alone(lm_archive, tmp_path):
    config = tagger_config(lm_archive)
    config["dataset_reader"].update(type="text_classification_json", tokenizer="just_spaces")
    del config["model"]["encoder"]
    encoder = {"type": "boe", "embedding_dim": 2 * DIM}
    config["model"].update(type="basic_classifier", seq2vec_encoder=encoder)
    data = tmp_path / "data"
    data.write_text('{"text": "the dog", "label": "a"}\n')
    config.update(train_data_path=str(data), validation_data_path=None)
    train_model(Params(config), tmp_path / "run")
    predictor = predictor_of(tmp_path / "run" / "model.tar.gz")
    assert predictor.predict_json({"sentence": "the dog"})["tokens"] == ["the", "dog"]
