"""allennlp-models' own language model, built from a config that names ours."""

import copy

import pytest
from allennlp.common import Params
from allennlp.data import Vocabulary
from allennlp.models import Model


def peer_model(vocabulary: Vocabulary, config) -> Model:
    """allennlp-models' own model from the same config."""
    pytest.importorskip("allennlp_models")
    from allennlp.modules.seq2seq_encoders import Seq2SeqEncoder
    from allennlp.modules.text_field_embedders import TextFieldEmbedder
    from allennlp_models.lm.models import language_model
    from allennlp_models.lm.modules.seq2seq_encoders import bidirectional_lm_transformer

    config = copy.deepcopy(config)
    kind = config.pop("type")
    embedder = TextFieldEmbedder.from_params(
        Params(config.pop("text_field_embedder")), vocab=vocabulary
    )
    contextualizer = config.pop("contextualizer")
    if contextualizer["type"] == "bidirectional_language_model_transformer":
        del contextualizer["type"]
        encoder = bidirectional_lm_transformer.BidirectionalLanguageModelTransformer(
            **contextualizer
        )
    else:
        encoder = Seq2SeqEncoder.from_params(Params(contextualizer))
    return language_model.LanguageModel(
        vocab=vocabulary,
        text_field_embedder=embedder,
        contextualizer=encoder,
        bidirectional=kind != "language_model",
        **config,
    )
