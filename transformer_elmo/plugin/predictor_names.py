"""The names that predictors had in AllenNLP 0.x, for command lines that still have them."""

import logging
from functools import partial
from typing import Any

from allennlp.predictors import Predictor

logger = logging.getLogger(__name__)

RENAMED = {
    "machine-comprehension": "reading_comprehension",
    "simple_seq2seq": "seq2seq",
    **{
        name: name.replace("-", "_")
        for name in (
            "constituency-parser",
            "biaffine-dependency-parser",
            "coreference-resolution",
            "next-token-lm",
            "masked-language-model",
            "open-information-extraction",
            "sentence-tagger",
            "semantic-role-labeling",
            "text-classifier",
            "textual-entailment",
        )
    },
}


class OldNames(Predictor):
    """
    The home of constructors that make a predictor under its old name. The modern class is looked up
    when it is asked for: whoever has it may not be imported yet.
    """


def _make(name: str, *args: Any, **kwargs: Any) -> Predictor:
    modern = RENAMED[name]
    logger.info("The predictor %s of AllenNLP 0.x is %s now.", name, modern)
    return Predictor.by_name(modern)(*args, **kwargs)


for _name in RENAMED:
    if _name not in Predictor.list_available():
        _constructor = _name.replace("-", "_") + "_of_old"
        setattr(OldNames, _constructor, staticmethod(partial(_make, _name)))
        Predictor.register(_name, constructor=_constructor)(OldNames)
