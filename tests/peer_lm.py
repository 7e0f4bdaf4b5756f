"""allennlp-models' own language model, built from a config that names ours."""

import copy

import pytest
from allennlp.common import Params
from allennlp.data import Vocabulary
from allennlp.models import Model


def peer_model(vocabulary: Vocabulary, config) -> Model:
    """allennlp-models' own model from the same config."""
    theirs = pytest.importorskip("allennlp_models.lm.models.language_model")
    config = copy.deepcopy(config)
    config["bidirectional"] = config.pop("type") != "language_model"
    contextualizer = config["contextualizer"]
    if contextualizer["type"] == "bidirectional_language_model_transformer":
        # By that name it would be ours.
        module = "allennlp_models.lm.modules.seq2seq_encoders.bidirectional_lm_transformer"
        contextualizer["type"] = f"{module}.BidirectionalLanguageModelTransformer"
    return theirs.LanguageModel.from_params(Params(config), vocab=vocabulary)
