"""spaCy's tokenizer where spaCy's models can't be had."""

import logging
from typing import Any, Optional, Tuple

import spacy
from allennlp.common.util import LOADED_SPACY_MODELS
from allennlp.data.tokenizers import SpacyTokenizer, Tokenizer

from transformer_elmo.errors import ConfigurationError, first_line

logger = logging.getLogger(__name__)


@Tokenizer.register("spacy", exist_ok=True)
class WordSplittingSpacyTokenizer(SpacyTokenizer):
    """
    AllenNLP's `SpacyTokenizer`. If the spaCy model can't be installed and no tags are asked for,
    words are split by rules, which come with spaCy.

    Registered as a `Tokenizer` with name "spacy". Its parameters are those of `SpacyTokenizer`.
    """

    def __init__(
        self,
        language: str = "en_core_web_sm",
        pos_tags: bool = True,
        parse: bool = False,
        ner: bool = False,
        keep_spacy_tokens: bool = False,
        split_on_spaces: bool = False,
        start_tokens: Optional[Any] = None,
        end_tokens: Optional[Any] = None,
    ) -> None:
        options = (keep_spacy_tokens, split_on_spaces, start_tokens, end_tokens)
        try:
            super().__init__(language, pos_tags, parse, ner, *options)
        # Its download ends the program where there is no such model.
        except (Exception, SystemExit) as error:
            _load_rules(language, (pos_tags, parse, ner), error)
            super().__init__(language, pos_tags, parse, ner, *options)


def _load_rules(name: str, wants: Tuple[bool, bool, bool], error: BaseException) -> None:
    """Puts rules where AllenNLP looks for a model that couldn't be loaded."""
    problem = (
        f"spaCy's model {name} is not installed and could not be downloaded "
        f"({type(error).__name__}: {first_line(error)[:80]})"
    )
    language = name.partition("_")[0]
    try:
        if any(wants):
            raise ImportError
        LOADED_SPACY_MODELS[name, wants[0], wants[1], wants[2]] = spacy.blank(language)
    except ImportError:
        raise ConfigurationError(
            f"{problem}. Install it: python -m spacy download {name}. A tokenizer that is to find "
            'words only needs no model: give it "pos_tags": false.'
        ) from None
    logger.warning("%s. Words are split by spaCy's rules for %r alone.", problem, language)
