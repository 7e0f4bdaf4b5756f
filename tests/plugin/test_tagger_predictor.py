"""`allennlp predict` with models on top of a language model, none of which needs spaCy's models."""

import io
import json
import shutil
import sys
from typing import Any, Dict

import pytest
from allennlp.commands import main
from allennlp.commands.evaluate import evaluate_from_archive
from allennlp.commands.train import train_model
from allennlp.common import Params
from allennlp.common import util as common_util
from allennlp.data import Instance
from allennlp.models import load_archive
from allennlp.models.simple_tagger import SimpleTagger
from allennlp.predictors import Predictor
from allennlp.predictors.sentence_tagger import SentenceTaggerPredictor

from tests.small_lm import DIM
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin import tokenizers
from transformer_elmo.plugin.tagger_predictor import TaggerPredictor

TAGGED = "the###D dog###N ran###V .###.\na###D käse###N sat###V\nbirds###Nä flew###V\n"


def embedder(lm_archive):
    return {"type": "bidirectional_lm_token_embedder", "archive_file": str(lm_archive)}


def train(folder, **parts):
    config = {
        "data_loader": {"batch_size": 2},
        "trainer": {"num_epochs": 1, "optimizer": {"type": "adam", "lr": 0.01}},
        **parts,
    }
    train_model(Params(config), folder / "run")
    shutil.move(folder / "run" / "model.tar.gz", folder / "moved.tar.gz")
    shutil.rmtree(folder / "run")
    return folder / "moved.tar.gz"


@pytest.fixture(scope="module")
def tagger(lm_archive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tagger")
    (folder / "tagged.txt").write_text(TAGGED, encoding="utf-8")
    return train(
        folder,
        dataset_reader={
            "type": "sequence_tagging",
            "token_indexers": {"elmo": {"type": "elmo_characters"}},
        },
        train_data_path=str(folder / "tagged.txt"),
        model={
            "type": "simple_tagger",
            "text_field_embedder": {"token_embedders": {"elmo": embedder(lm_archive)}},
            "encoder": {"type": "pass_through", "input_dim": 2 * DIM},
        },
    )


@pytest.fixture
def no_spacy_model(monkeypatch):
    """Nothing can be downloaded, and no model is there."""

    loaded: Dict[Any, Any] = {}

    def refuse(name):
        raise SystemExit("no network\nat all")

    monkeypatch.setattr(common_util, "spacy_download", refuse)
    for module in (common_util, tokenizers):
        monkeypatch.setattr(module, "LOADED_SPACY_MODELS", loaded)


def predictor_of(archive, **arguments):
    return Predictor.from_archive(load_archive(archive), extra_args=arguments)


def words(predictor, line):
    return predictor.predict_json(predictor.load_line(line + "\n"))["words"]


def test_is_the_default_of_taggers(tagger):
    predictor = predictor_of(tagger)
    assert isinstance(predictor, TaggerPredictor)
    assert isinstance(predictor, SentenceTaggerPredictor)
    named = Predictor.from_archive(load_archive(tagger), SimpleTagger.default_predictor)
    assert isinstance(named, TaggerPredictor)


@pytest.mark.usefixtures("no_spacy_model")
class TestWithoutSpacy:
    @pytest.mark.parametrize(
        "line",
        [
            '{"words": ["don\'t", "käse", "."]}',
            '{"tokens": ["don\'t", "käse", "."]}',
            '["don\'t", "käse", "."]',
            "don't käse .",
        ],
    )
    def test_words_stay_what_they_are(self, tagger, line):
        assert words(predictor_of(tagger), line) == ["don't", "käse", "."]

    def test_texts_are_split_as_one_says(self, tagger):
        text = '{"sentence": "Don\'t go."}'
        for tokenizer, expected in (
            ("just_spaces", ["Don't", "go."]),
            ("spacy", ["Do", "n't", "go", "."]),
            # Another language has other rules.
            ({"type": "spacy", "language": "fi"}, ["Don't", "go", "."]),
        ):
            predictor = predictor_of(tagger, tokenizer=tokenizer)
            assert words(predictor, text) == expected
            assert words(predictor, "Don't go.") == expected

    def test_the_message_says_how_to_do_without(self, tagger):
        predictor = predictor_of(tagger)
        with pytest.raises(ConfigurationError) as raised:
            words(predictor, '{"sentence": "Don\'t go."}')
        message = raised.value.message
        assert "spaCy's model en_core_web_sm is not installed" in message
        assert "(SystemExit: no network)" in message
        for way in ("spacy download en_core_web_sm", '{"words": [', "just_spaces"):
            assert way in message
        assert '"pos_tags": false' in message

    def test_batches_with_a_sentence_of_no_words(self, tagger):
        predictor = predictor_of(tagger)
        lines = ["the dog", "[]", '["birds", "flew", "."]']
        inputs = [predictor.load_line(line) for line in lines]
        outputs = predictor.predict_batch_json(inputs)
        assert [len(output["tags"]) for output in outputs] == [2, 0, 3]
        assert [output["words"] for output in outputs] == [json["words"] for json in inputs]
        assert predictor.predict_batch_json(inputs[1:2]) == [{"words": [], "tags": []}]
        alone = predictor.predict(["birds", "flew", "."])
        assert predictor.predict({"tokens": ("birds", "flew", ".")}) == alone
        assert alone["tags"] == outputs[2]["tags"]
        # Nor does a shorter sentence get any from the padding behind it.
        assert [len(outputs[0][key]) for key in ("logits", "class_probabilities")] == [2, 2]

    def test_labeled_instances(self, tagger):
        """What AllenNLP's interpretation takes from this predictor still works."""
        predictor = predictor_of(tagger)
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
    predictor = predictor_of(tagger)
    for line, message in (
        ('{"words": "the dog"}', 'not an object with "tokens" or "words"'),
        ('{"words": [1]}', 'not an object with "tokens" or "words"'),
        ('{"words": ["a"', "begins like JSON"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            predictor.load_line(line)
    with pytest.raises(TypeError, match='"tokens" or "words"'):
        predictor.predict_json({"txt": "the dog"})


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_command_writes_letters_where_it_can(tagger, tmp_path, monkeypatch, encoding):
    """`allennlp predict`, but for its search for plugins."""
    (tmp_path / "in.txt").write_text("the käse 東京\n", encoding="utf-8")
    output = tmp_path / "out.jsonl"
    monkeypatch.setattr("allennlp.commands.import_plugins", lambda: None)
    shown = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", shown)
    arguments = ["predict", str(tagger), str(tmp_path / "in.txt"), "--output-file", str(output)]
    monkeypatch.setattr(sys, "argv", ["allennlp", *arguments])
    main()
    written = output.read_text(encoding="utf-8")
    assert json.loads(written)["words"] == ["the", "käse", "東京"]
    assert ("東京" in written) == (encoding == "utf-8")


def test_language_models_are_predicted_in_utf_8(lm_archive, tmp_path, monkeypatch, capsys):
    (tmp_path / "in.txt").write_text("the naïve 東京\n", encoding="utf-8")
    monkeypatch.setattr("allennlp.commands.import_plugins", lambda: None)
    monkeypatch.setattr(
        sys, "argv", ["allennlp", "predict", str(lm_archive), str(tmp_path / "in.txt")]
    )
    main()
    assert '"naïve", "東京"' in capsys.readouterr().out


class TestClassifier:
    @pytest.fixture(scope="class")
    def classifier(self, lm_archive, tmp_path_factory):
        folder = tmp_path_factory.mktemp("classifier")
        lines = [{"text": "the dog ran", "label": "a"}, {"text": "birds flew ä .", "label": "b"}]
        (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
        archive = train(
            folder,
            dataset_reader={
                "type": "text_classification_json",
                "tokenizer": "just_spaces",
                "token_indexers": {"elmo": {"type": "elmo_characters"}},
            },
            train_data_path=str(folder / "data.jsonl"),
            model={
                "type": "basic_classifier",
                "text_field_embedder": {"token_embedders": {"elmo": embedder(lm_archive)}},
                "seq2vec_encoder": {"type": "boe", "embedding_dim": 2 * DIM},
            },
        )
        return archive, folder / "data.jsonl"

    def test_of_characters_alone(self, classifier):
        archive, data = classifier
        metrics = evaluate_from_archive(str(archive), str(data), cuda_device=-1)
        assert 0 <= metrics["accuracy"] <= 1
        output = predictor_of(archive).predict_batch_json(
            [{"sentence": "the dog"}, {"sentence": "birds"}]
        )
        assert [item["label"] in ("a", "b") for item in output] == [True, True]
        # The tokens that it names by their ids.
        assert output[0]["tokens"] == ["the", "dog"]
