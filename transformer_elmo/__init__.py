"""
Transformer ELMo: a bidirectional transformer language model over character-CNN word vectors,
trained, evaluated, adapted and served.

`TransformerElmo` opens models and works with them; it needs no AllenNLP. Whatever AllenNLP's
configs can name is registered once both this package and `allennlp` are imported, in any order.
"""

from importlib.util import find_spec as _find_spec
from typing import TYPE_CHECKING

from transformer_elmo import with_allennlp as _with_allennlp
from transformer_elmo.errors import ConfigurationError
from transformer_elmo.inference.elmo import TransformerElmo

__version__ = "0.2.0"

_PLUGIN = {
    "BidirectionalLanguageModel": "language_model",
    "BidirectionalLanguageModelTokenEmbedder": "token_embedders",
    "BidirectionalLanguageModelTransformer": "contextualizer",
    "CorpusVocabulary": "vocabulary",
    "CrashSafeCheckpointer": "training.checkpointer",
    "DenseSparseAdam": "optimizer",
    "LanguageModel": "language_model",
    "LanguageModelPredictor": "predictor",
    "LanguageModelTrainer": "training.trainer",
    "LanguageModelTokenEmbedder": "token_embedders",
    "LanguageModelingDataLoader": "data_loader",
    "LanguageModelingEvaluator": "evaluator",
    "MuonSparseAdam": "muon",
    "ResumeDataCallback": "training.resuming",
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
    from transformer_elmo.plugin.token_embedders import (
        BidirectionalLanguageModelTokenEmbedder,
        LanguageModelTokenEmbedder,
    )
    from transformer_elmo.plugin.training.checkpointer import CrashSafeCheckpointer
    from transformer_elmo.plugin.training.resuming import ResumeDataCallback
    from transformer_elmo.plugin.training.trainer import LanguageModelTrainer
    from transformer_elmo.plugin.vocabulary import CorpusVocabulary


def __getattr__(name: str) -> object:
    if name not in _PLUGIN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Found at once from now on, also by what reads `__dict__`, as pdoc does.
    globals()[name] = getattr(_with_allennlp.plugin(_PLUGIN[name], name), name)
    return globals()[name]


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
    "LanguageModelTrainer",
    "LanguageModelingDataLoader",
    "LanguageModelingEvaluator",
    "MuonSparseAdam",
    "ResumeDataCallback",
    "SimpleLanguageModelingDatasetReader",
    "TransformerElmo",
]

if _find_spec("allennlp") is None:
    # `from transformer_elmo import *` is to work there, too.
    __all__ = ["ConfigurationError", "TransformerElmo"]

_with_allennlp.follow_allennlp()
