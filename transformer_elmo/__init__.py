"""
Transformer ELMo: a bidirectional transformer language model over character-CNN word vectors,
trained, evaluated, adapted and served.

With AllenNLP installed, importing this package registers everything that its configs can name.
Without it there is `TransformerElmo`, which opens models and works with them.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from transformer_elmo import archived_models as _archived_models
from transformer_elmo import elmo as _elmo
from transformer_elmo import plugin_import as _plugin_import
from transformer_elmo.elmo import TransformerElmo
from transformer_elmo.entry import is_command as _is_command
from transformer_elmo.errors import ConfigurationError

__version__ = "0.2.0"

_elmo.openers.insert(0, _archived_models.opener)

_PLUGIN = {
    "BidirectionalLanguageModel": "language_model",
    "BidirectionalLanguageModelTokenEmbedder": "token_embedders",
    "BidirectionalLanguageModelTransformer": "contextualizer",
    "CorpusVocabulary": "vocabulary",
    "CrashSafeCheckpointer": "runs.resumption",
    "DenseSparseAdam": "optimizer",
    "LanguageModel": "language_model",
    "LanguageModelPredictor": "predictor",
    "LanguageModelTokenEmbedder": "token_embedders",
    "LanguageModelingDataLoader": "data_loader",
    "LanguageModelingEvaluator": "evaluator",
    "MuonSparseAdam": "muon",
    "ResumeDataCallback": "runs.resumption",
    "SimpleLanguageModelingDatasetReader": "dataset_reader",
}

if TYPE_CHECKING:
    from transformer_elmo.plugin.contextualizer import BidirectionalLanguageModelTransformer
    from transformer_elmo.plugin.data_loader import LanguageModelingDataLoader
    from transformer_elmo.plugin.dataset_reader import SimpleLanguageModelingDatasetReader
    from transformer_elmo.plugin.evaluator import LanguageModelingEvaluator
    from transformer_elmo.plugin.language_model import BidirectionalLanguageModel, LanguageModel
    from transformer_elmo.plugin.muon import MuonSparseAdam
    from transformer_elmo.plugin.optimizer import DenseSparseAdam
    from transformer_elmo.plugin.predictor import LanguageModelPredictor
    from transformer_elmo.plugin.runs.resumption import CrashSafeCheckpointer, ResumeDataCallback
    from transformer_elmo.plugin.token_embedders import (
        BidirectionalLanguageModelTokenEmbedder,
        LanguageModelTokenEmbedder,
    )
    from transformer_elmo.plugin.vocabulary import CorpusVocabulary


def __getattr__(name: str) -> object:
    if name not in _PLUGIN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    why_not = _plugin_import.load()
    if why_not:
        raise ImportError(
            f"{name} is a part of AllenNLP's plugin and needs AllenNLP, {why_not}. Install it, in "
            "a checkout of transformer-elmo:\n"
            "    pip install '.[allennlp]'\n"
            "    pip install --no-deps allennlp==2.10.1\n"
            f"    python -m {_plugin_import.STAND_IN}"
        )
    return getattr(_import_module(f"transformer_elmo.plugin.{_PLUGIN[name]}"), name)


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
    "MuonSparseAdam",
    "ResumeDataCallback",
    "SimpleLanguageModelingDatasetReader",
    "TransformerElmo",
]

if _is_command():
    _plugin_import.load_when_needed()
elif _plugin_import.load():
    # `from transformer_elmo import *` is to work there, too.
    __all__ = ["ConfigurationError", "TransformerElmo"]
