"""
Transformer ELMo for AllenNLP 2: a bidirectional transformer language model over character-CNN word
vectors.

Importing this package registers everything that a config can name.
"""

from importlib import util as _importlib_util

if _importlib_util.find_spec("allennlp") is None:
    raise ImportError(
        "transformer_elmo is a plugin for AllenNLP 2.10.1, which isn't installed. Its own pins "
        "don't resolve on a current Python, so install it without them:\n"
        "    pip install --no-deps allennlp==2.10.1 fairscale\n"
        "or run ./scripts/setup.sh, which does it and checks the result."
    )

from transformer_elmo import coexistence as _coexistence
from transformer_elmo import seam as _seam

with _coexistence.our_names_win():
    from transformer_elmo.commands import embed as _embed  # noqa: F401
    from transformer_elmo.commands import errors as _errors
    from transformer_elmo.commands import lm_report as _lm_report  # noqa: F401
    from transformer_elmo.data.data_loader import LanguageModelingDataLoader
    from transformer_elmo.data.dataset_reader import SimpleLanguageModelingDatasetReader
    from transformer_elmo.data.vocabulary import CorpusVocabulary
    from transformer_elmo.embedding import TransformerElmo
    from transformer_elmo.models.language_model import BidirectionalLanguageModel, LanguageModel
    from transformer_elmo.models.token_embedders import (
        BidirectionalLanguageModelTokenEmbedder,
        LanguageModelTokenEmbedder,
    )
    from transformer_elmo.modules.bidirectional_transformer import (
        BidirectionalLanguageModelTransformer,
    )
    from transformer_elmo.predictors.language_model import LanguageModelPredictor
    from transformer_elmo.training.evaluator import LanguageModelingEvaluator
    from transformer_elmo.training.optimizer import DenseSparseAdam
    from transformer_elmo.training.resumption import CrashSafeCheckpointer, ResumeDataCallback

_seam.install()
_errors.install()

__all__ = [
    "BidirectionalLanguageModel",
    "BidirectionalLanguageModelTokenEmbedder",
    "BidirectionalLanguageModelTransformer",
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
