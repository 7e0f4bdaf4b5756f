"""Tokenizers by name, and spaCy's where its models can't be had."""

import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, List, Union

import spacy
from allennlp.common import Params
from allennlp.common.util import LOADED_SPACY_MODELS
from allennlp.data.tokenizers import SpacyTokenizer, Token, Tokenizer
from overrides import overrides

from transformer_elmo.errors import ConfigurationError, first_line

logger = logging.getLogger(__name__)

WITHOUT_MODEL = (
    'Words alone need none: in a config, take the tokenizer {"type": "spacy", "pos_tags": false}, '
    'or "just_spaces" for text that is split already; give a tagger {"words": ["It", "rained", '
    '"."]} a line, or --predictor-args \'{"tokenizer": "just_spaces"}\'.'
)


@Tokenizer.register("lm_spacy", exist_ok=True)
class WordSplittingSpacyTokenizer(SpacyTokenizer):
    """
    AllenNLP's `SpacyTokenizer`. If no tags are asked for and the spaCy model isn't installed, words
    are split by the rules for its language, which come with spaCy.

    Registered as a `Tokenizer` with name "lm_spacy", which configs of language models get for
    "spacy". Its parameters are those of `SpacyTokenizer`; `language` may be a language alone, such
    as "fi", if no tags are asked for.
    """

    def __init__(
        self,
        language: str = "en_core_web_sm",
        pos_tags: bool = True,
        parse: bool = False,
        ner: bool = False,
        **kwargs: Any,
    ) -> None:
        if not (pos_tags or parse or ner):
            _load_rules(language)
        try:
            super().__init__(language, pos_tags, parse, ner, **kwargs)
        # Its download ends the program where there is no such model.
        except (Exception, SystemExit) as error:
            raise ConfigurationError(
                f"spaCy's model {language} is not installed and could not be downloaded "
                f"({type(error).__name__}: {first_line(error)[:80]}). Install it: python -m spacy "
                f"download {language}. {WITHOUT_MODEL}"
            ) from None

    @overrides
    def tokenize(self, text: str) -> List[Token]:
        return super().tokenize(_without_surrogates(text))

    @overrides
    def batch_tokenize(self, texts: List[str]) -> List[List[Token]]:
        return super().batch_tokenize(list(map(_without_surrogates, texts)))


def _without_surrogates(text: str) -> str:
    """spaCy takes no lone ones."""
    return text if text.isascii() else re.sub("[\ud800-\udfff]", "\ufffd", text)


def _load_rules(name: str) -> None:
    """Puts rules where AllenNLP looks for a model for words alone, if it isn't installed."""
    key = (name, False, False, False)
    if key in LOADED_SPACY_MODELS or spacy.util.is_package(name) or Path(name).exists():
        return
    language = name.partition("_")[0]
    # Of a language that spaCy has no rules for, AllenNLP says that there is no such model.
    with suppress(ImportError):
        LOADED_SPACY_MODELS[key] = spacy.blank(language)
        if name != language:
            said = "spaCy's model %s is not installed. Words are split by its rules for %r alone."
            logger.warning(said, name, language)


def tokenizer_named(tokenizer: Union[str, Dict[str, Any]]) -> Tokenizer:
    """
    `tokenizer`: a name that AllenNLP knows, such as "just_spaces", or a config. spaCy's finds words
    alone, unless the config says otherwise. Raises `ConfigurationError` if there is none such.
    """
    if isinstance(tokenizer, str):
        tokenizer = {"type": tokenizer}
    if not isinstance(tokenizer, dict):
        raise ConfigurationError(
            f'A tokenizer is a name or a config, such as "just_spaces": got {tokenizer!r:.80}.'
        )
    name, known = tokenizer.get("type", "spacy"), sorted(Tokenizer.list_available())
    if name not in known:
        raise ConfigurationError(f"There is no tokenizer {name!r}. There are: {', '.join(known)}.")
    if name in ("spacy", "lm_spacy"):
        tokenizer = {"pos_tags": False, **tokenizer, "type": "lm_spacy"}
    return Tokenizer.from_params(Params(dict(tokenizer)))
