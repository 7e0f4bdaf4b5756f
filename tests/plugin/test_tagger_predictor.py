"""`allennlp predict` with models on top of a language model, none of which needs spaCy's models."""

import io
import json
import shutil
import sys

import pytest
from allennlp.commands import main
from allennlp.commands.evaluate import evaluate_from_archive
from allennlp.commands.train import train_model
from allennlp.common import Params
from allennlp.data import Instance
from allennlp.models import load_archive
from allennlp.models.simple_tagger import SimpleTagger
from allennlp.predictors import Predictor

from tests.plugin.test_tokenizers import no_models  # noqa: F401
from tests.small_lm import DIM
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin.tagger_predictor import TaggerPredictor

TAGGED = "the###D dog###N ran###V .###.\na###D käse###N sat###V\nbirds###Nä flew###V\n"
LABELED = [{"text": "the dog ran", "label": "a"}, {"text": "birds flew ä .", "label": "b"}]
WORDS = ["don't", "käse", "."]


@pytest.fixture(scope="module")
def trained(lm_archive, tmp_path_factory):
    """Trains a model on top of the language model; its archive, moved, and its data."""

    def train(data, reader, model):
        folder = tmp_path_factory.mktemp(model["type"])
        (folder / "data").write_text(data, encoding="utf-8")
        embedder = {"type": "bidirectional_lm_token_embedder", "archive_file": str(lm_archive)}
        indexers = {"token_indexers": {"elmo": {"type": "elmo_characters"}}}
        config = {
            "dataset_reader": {**reader, **indexers},
            "train_data_path": str(folder / "data"),
            "model": {**model, "text_field_embedder": {"token_embedders": {"elmo": embedder}}},
            "data_loader": {"batch_size": 2},
            "trainer": {"num_epochs": 1, "optimizer": {"type": "adam", "lr": 0.01}},
        }
        train_model(Params(config), folder / "run")
        shutil.move(folder / "run" / "model.tar.gz", folder / "moved.tar.gz")
        shutil.rmtree(folder / "run")
        return folder / "moved.tar.gz", folder / "data"

    return train


@pytest.fixture(scope="module")
def tagger(trained):
    encoder = {"type": "pass_through", "input_dim": 2 * DIM}
    model = {"type": "simple_tagger", "encoder": encoder}
    return trained(TAGGED, {"type": "sequence_tagging"}, model)[0]


def predictor_of(archive, **arguments):
    return Predictor.from_archive(load_archive(archive), extra_args=arguments)


def words(predictor, line):
    return predictor.predict_json(predictor.load_line(line + "\n"))["words"]


@pytest.mark.usefixtures("no_models")
class TestWithoutSpacy:
    @pytest.mark.parametrize("name", [None, SimpleTagger.default_predictor])
    def test_words_stay_what_they_are(self, tagger, name):
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
    def test_texts_are_split_as_one_says(self, tagger, tokenizer, expected):
        predictor = predictor_of(tagger, tokenizer=tokenizer)
        for line in ('{"sentence": "Don\'t go."}', "Don't go."):
            assert words(predictor, line) == expected

    def test_the_message_says_how_to_do_without(self, tagger):
        with pytest.raises(ConfigurationError, match=r'download en_core.*"words": .*just_spaces'):
            words(predictor_of(tagger), '{"sentence": "Don\'t go."}')

    def test_batches_with_a_sentence_of_no_words(self, tagger):
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


def test_what_cannot_be_predicted(tagger):
    for arguments, message in (
        ({"tokeniser": "x"}, "tokeniser: there is no such key. Is it tokenizer?"),
        ({"tokenizer": "none"}, "no tokenizer 'none'"),
        ({"tokenizer": 3}, "A tokenizer is a name or a config"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            predictor_of(tagger, **arguments)
    with pytest.raises(ConfigurationError, match='not an object with "tokens" or "words"'):
        predictor_of(tagger).load_line('{"words": "the dog"}')
    with pytest.raises(ConfigurationError, match="input_format must be one of"):
        predictor_of(tagger, input_format="csv").load_line("the dog")
    with pytest.raises(TypeError, match='"tokens" or "words"'):
        predictor_of(tagger).predict_json({"txt": "the dog"})


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


def test_a_classifier_of_characters_alone(trained):
    reader = {"type": "text_classification_json", "tokenizer": "just_spaces"}
    encoder = {"type": "boe", "embedding_dim": 2 * DIM}
    model = {"type": "basic_classifier", "seq2vec_encoder": encoder}
    archive, data = trained("\n".join(map(json.dumps, LABELED)), reader, model)
    metrics = evaluate_from_archive(str(archive), str(data), cuda_device=-1)
    assert 0 <= metrics["accuracy"] <= 1
    output = predictor_of(archive).predict_batch_json([{"sentence": "the dog"}])
    assert output[0]["label"] in ("a", "b")
    # The tokens that it names by their ids.
    assert output[0]["tokens"] == ["the", "dog"]
