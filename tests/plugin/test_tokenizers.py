from typing import Any, Dict, List

import pytest
from allennlp.common import util as common_util
from allennlp.data.token_indexers import ELMoTokenCharactersIndexer, SingleIdTokenIndexer

from transformer_elmo import SimpleLanguageModelingDatasetReader
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin import tokenizers
from transformer_elmo.plugin.sentences import allennlp_tokenizer
from transformer_elmo.plugin.tokenizers import WordSplittingSpacyTokenizer


@pytest.fixture
def no_models(monkeypatch):
    """spaCy's models can't be downloaded; what AllenNLP has loaded is forgotten."""
    loaded: Dict[Any, Any] = {}
    asked: List[str] = []

    def refuse(name):
        asked.append(name)
        raise SystemExit("no network\nat all")

    for module in (common_util, tokenizers):
        monkeypatch.setattr(module, "LOADED_SPACY_MODELS", loaded)
    monkeypatch.setattr(common_util, "spacy_download", refuse)
    return asked


def test_words_take_no_model(no_models, caplog):
    tokens = WordSplittingSpacyTokenizer("en_core_web_xyz", False).tokenize("Don't! It's 3 p.m.")
    assert list(map(str, tokens)) == ["Do", "n't", "!", "It", "'s", "3", "p.m."]
    # A language alone is one. JSON may bring along what is no character.
    finnish = WordSplittingSpacyTokenizer("fi", False)
    for tokens in (finnish.tokenize("Don't \ud83d"), *finnish.batch_tokenize(["Don't \ud83d"])):
        assert list(map(str, tokens)) == ["Don't", "\ufffd"]
    for tokenizer in ("spacy", {"type": "spacy"}):
        assert allennlp_tokenizer(tokenizer)("Don't") == ["Do", "n't"]
    assert len(caplog.messages) == 2
    assert "en_core_web_xyz is not installed. Words are split by its rules" in caplog.messages[0]
    assert no_models == [], "a download was tried"


@pytest.mark.parametrize(
    "options",
    [("en_core_web_xyz",), ("en_core_web_xyz", False, True), ("xyz_core_news_sm", False)],
)
def test_tags_do(no_models, options):
    message = rf"\(SystemExit: no network\).*python -m spacy download {options[0]}.*pos_tags"
    with pytest.raises(ConfigurationError, match=message):
        WordSplittingSpacyTokenizer(*options)
    assert no_models == [options[0]]


def test_a_reader_asks_for_tags_only_if_an_indexer_does(no_models):
    choices: List[Any] = [None, {"a": ELMoTokenCharactersIndexer()}]
    for indexers in choices:
        SimpleLanguageModelingDatasetReader(token_indexers=indexers)
    with pytest.raises(ConfigurationError, match="could not be downloaded"):
        tags: Any = {"a": SingleIdTokenIndexer(feature_name="tag_")}
        SimpleLanguageModelingDatasetReader(token_indexers=tags)
