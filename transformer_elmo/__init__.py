"""
Transformer ELMo: a bidirectional transformer language model over character-CNN word vectors,
trained, evaluated, adapted and served.

With AllenNLP installed, importing this package registers everything that its configs can name.
Without it there is `TransformerElmo`, which opens models and works with them.
"""

import sys as _sys
import warnings as _warnings
from typing import TYPE_CHECKING

from transformer_elmo import archived_models as _archived_models
from transformer_elmo import elmo as _elmo
from transformer_elmo.elmo import TransformerElmo
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.errors import first_line as _first_line

__version__ = "0.2.0"

_elmo.openers.insert(0, _archived_models.opener)

_PLUGIN = {
    "BidirectionalLanguageModel": "language_model",
    "BidirectionalLanguageModelTokenEmbedder": "token_embedders",
    "BidirectionalLanguageModelTransformer": "contextualizer",
    "CorpusVocabulary": "vocabulary",
    "CrashSafeCheckpointer": "resumption",
    "DenseSparseAdam": "optimizer",
    "LanguageModel": "language_model",
    "LanguageModelPredictor": "predictor",
    "LanguageModelTokenEmbedder": "token_embedders",
    "LanguageModelingDataLoader": "data_loader",
    "LanguageModelingEvaluator": "evaluator",
    "ResumeDataCallback": "resumption",
    "SimpleLanguageModelingDatasetReader": "dataset_reader",
}

_STAND_IN = "transformer_elmo.torchvision_stand_in"

if any(_argument.endswith(_STAND_IN) for _argument in _sys.orig_argv):
    # This is `python -m` of what makes AllenNLP importable: no use in trying before it has run.
    _why_not = "which isn't imported here"
else:
    try:
        from transformer_elmo import plugin as _plugin
    except (ImportError, RuntimeError, AttributeError, OSError) as _error:
        # Of the four, all but the first are how a torchvision for another torch fails.
        _why_not = "which isn't installed"
        if getattr(_error, "name", None) != "allennlp":
            # Or a transformers of today, say, which AllenNLP can't be imported with.
            _why_not = f"which can't be imported: {_first_line(_error)}"
            _hint = f" Try python -m {_STAND_IN}." if "torchvision" in _why_not else ""
            _warnings.warn(
                f"AllenNLP is installed, but can't be imported ({_first_line(_error)}): its "
                f"configs won't know transformer_elmo. TransformerElmo works.{_hint}",
                stacklevel=2,
            )
    else:
        _why_not = ""
        for _name, _module in _PLUGIN.items():
            globals()[_name] = getattr(getattr(_plugin, _module), _name)

if TYPE_CHECKING:
    from transformer_elmo.plugin.contextualizer import BidirectionalLanguageModelTransformer
    from transformer_elmo.plugin.data_loader import LanguageModelingDataLoader
    from transformer_elmo.plugin.dataset_reader import SimpleLanguageModelingDatasetReader
    from transformer_elmo.plugin.evaluator import LanguageModelingEvaluator
    from transformer_elmo.plugin.language_model import BidirectionalLanguageModel, LanguageModel
    from transformer_elmo.plugin.optimizer import DenseSparseAdam
    from transformer_elmo.plugin.predictor import LanguageModelPredictor
    from transformer_elmo.plugin.resumption import CrashSafeCheckpointer, ResumeDataCallback
    from transformer_elmo.plugin.token_embedders import (
        BidirectionalLanguageModelTokenEmbedder,
        LanguageModelTokenEmbedder,
    )
    from transformer_elmo.plugin.vocabulary import CorpusVocabulary


def __getattr__(name: str) -> object:
    if name in _PLUGIN:
        raise ImportError(
            f"{name} is a part of AllenNLP's plugin and needs AllenNLP, {_why_not}. Install it:\n"
            "    pip install 'transformer-elmo[allennlp]'\n"
            "    pip install --no-deps allennlp==2.10.1\n"
            f"    python -m {_STAND_IN}"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "BidirectionalLanguageModel",
    "BidirectionalLanguageModelTokenEmbedder",
    "BidirectionalLanguageModelTransformer",
    "ConfigurationError",
    "CorpusVocabulary",
    "CrashSafeCheckpointer",
    "DenseSparseAdam",
    "LanguageModel",
    "LanguageModelPredictor",
    "LanguageModelTokenEmbedder",
    "LanguageModelingDataLoader",
    "LanguageModelingEvaluator",
    "ResumeDataCallback",
    "SimpleLanguageModelingDatasetReader",
    "TransformerElmo",
]

if _why_not:
    # `from transformer_elmo import *` is to work there, too.
    __all__ = ["ConfigurationError", "TransformerElmo"]
