from typing import Any, Dict, List

import pytest
from allennlp.common import util as common_util
from allennlp.data import Tokenizer
from allennlp.data.token_indexers import ELMoTokenCharactersIndexer, SingleIdTokenIndexer
from allennlp.data.tokenizers import spacy_tokenizer

from transformer_elmo import SimpleLanguageModelingDatasetReader
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin import tokenizers
from transformer_elmo.plugin.sentences import allennlp_tokenizer


@pytest.fixture
def no_models(monkeypatch):
    """spaCy's models can't be downloaded; what AllenNLP has loaded is forgotten."""
    loaded: Dict[Any, Any] = {}
    monkeypatch.setattr(tokenizers, "LOADED_SPACY_MODELS", loaded)
    monkeypatch.setattr(common_util, "LOADED_SPACY_MODELS", loaded)

    def refuse(name):
        asked.append(name)
        raise SystemExit("no network\nat all")

    asked: List[str] = []
    monkeypatch.setattr(common_util, "spacy_download", refuse)
    return asked


def spacy(*options):
    return Tokenizer.by_name("lm_spacy")(*options)


def texts(tokens):
    return [str(token) for token in tokens]


class TestWithoutModels:
    def test_words_take_no_model(self, no_models, caplog):
        words = texts(spacy("en_core_web_xyz", False).tokenize("Don't! It's 3 p.m."))
        assert words == ["Do", "n't", "!", "It", "'s", "3", "p.m."]
        assert "en_core_web_xyz is not installed" in caplog.text
        assert no_models == [], "a download was tried"

    def test_words_of_a_language(self, no_models, caplog):
        assert texts(spacy("fi", False).tokenize("Don't go.")) == ["Don't", "go", "."]
        # JSON may bring along what is no character.
        assert texts(spacy("fi", False).tokenize("\ud83d go")) == ["\ufffd", "go"]
        assert list(map(texts, spacy("fi", False).batch_tokenize(["a \ud83d"]))) == [
            ["a", "\ufffd"]
        ]
        assert not caplog.text

    @pytest.mark.parametrize(
        "options",
        [("en_core_web_xyz",), ("en_core_web_xyz", False, True), ("xyz_core_news_sm", False)],
    )
    def test_tags_do(self, no_models, options):
        with pytest.raises(ConfigurationError) as raised:
            spacy(*options)
        assert f"python -m spacy download {options[0]}" in raised.value.message
        assert "(SystemExit: no network)" in raised.value.message
        assert "pos_tags" in raised.value.message
        assert no_models == [options[0]]

    def test_splitting_takes_none(self, no_models):
        assert allennlp_tokenizer("spacy")("Don't") == ["Do", "n't"]
        assert allennlp_tokenizer({"type": "spacy"})("Don't") == ["Do", "n't"]
        with pytest.raises(ConfigurationError, match="python -m spacy download"):
            allennlp_tokenizer({"type": "spacy", "language": "en_core_web_xyz", "pos_tags": True})


def test_a_reader_of_words_asks_for_no_tags(monkeypatch):
    asked = []
    monkeypatch.setattr(spacy_tokenizer, "get_spacy_model", lambda *options: asked.append(options))
    tags = SingleIdTokenIndexer(feature_name="tag_")
    choices: List[Any] = [None, {"a": ELMoTokenCharactersIndexer()}, {"a": tags}]
    for indexers in choices:
        SimpleLanguageModelingDatasetReader(token_indexers=indexers)
    assert [options[1] for options in asked] == [False, False, True]
