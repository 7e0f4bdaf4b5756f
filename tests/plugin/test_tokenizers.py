from typing import Any, List

import pytest
from allennlp.common.checks import ConfigurationError
from allennlp.data import Tokenizer
from allennlp.data.token_indexers import ELMoTokenCharactersIndexer, SingleIdTokenIndexer
from allennlp.data.tokenizers import spacy_tokenizer

from transformer_elmo import SimpleLanguageModelingDatasetReader
from transformer_elmo.plugin import tokenizers


@pytest.fixture
def no_models(monkeypatch):
    """spaCy's models can't be downloaded; what AllenNLP has loaded is forgotten."""
    loaded = {}

    def get(*options):
        if options not in loaded:
            raise SystemExit("no network\nat all")
        return loaded[options]

    monkeypatch.setattr(tokenizers, "LOADED_SPACY_MODELS", loaded)
    monkeypatch.setattr(spacy_tokenizer, "get_spacy_model", get)


def spacy(*options):
    return Tokenizer.by_name("spacy")(*options)


@pytest.mark.usefixtures("no_models")
class TestWithoutModels:
    def test_words_take_no_model(self, caplog):
        words = [str(t) for t in spacy("en_core_web_sm", False).tokenize("Don't! It's 3 p.m.")]
        assert words == ["Do", "n't", "!", "It", "'s", "3", "p.m."]
        assert "en_core_web_sm is not installed" in caplog.text
        assert "no network)" in caplog.text

    @pytest.mark.parametrize(
        "options",
        [("en_core_web_sm",), ("en_core_web_sm", False, True), ("xyz_core_news_sm", False)],
    )
    def test_tags_do(self, options):
        with pytest.raises(ConfigurationError, match=f"python -m spacy download {options[0]}"):
            spacy(*options)


def test_a_reader_of_words_asks_for_no_tags(monkeypatch):
    asked = []
    monkeypatch.setattr(spacy_tokenizer, "get_spacy_model", lambda *options: asked.append(options))
    tags = SingleIdTokenIndexer(feature_name="tag_")
    choices: List[Any] = [None, {"a": ELMoTokenCharactersIndexer()}, {"a": tags}]
    for indexers in choices:
        SimpleLanguageModelingDatasetReader(token_indexers=indexers)
    assert [options[1] for options in asked] == [False, False, True]
