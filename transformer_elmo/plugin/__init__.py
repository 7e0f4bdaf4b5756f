"""
AllenNLP around the core: everything that a config can name, and what is done to AllenNLP for it.
Importing this package registers all of it.
"""

from transformer_elmo.plugin import (
    adaptation,
    commands,
    contextualizer,
    data_loader,
    dataset_reader,
    evaluator,
    language_model,
    learning_rate,
    loading,
    muon,
    optimizer,
    patches,
    predictor,
    predictor_names,
    pretrained_vocabulary,
    sentences,
    tagger_predictor,
    token_embedders,
    tokenizers,
    vocabulary,
)
from transformer_elmo.plugin.compat import (
    archived,
    configs,
    peer,
    prediction,
    shown_errors,
    training,
)
from transformer_elmo.plugin.training import trainer

patches.check_version()
peer.claim_names()
for _module in (
    configs,
    archived,
    training,
    prediction,
    shown_errors,
):
    _module.install()


__all__ = [
    "adaptation",
    "commands",
    "contextualizer",
    "data_loader",
    "dataset_reader",
    "evaluator",
    "language_model",
    "learning_rate",
    "loading",
    "muon",
    "optimizer",
    "predictor",
    "predictor_names",
    "pretrained_vocabulary",
    "sentences",
    "tagger_predictor",
    "token_embedders",
    "tokenizers",
    "trainer",
    "vocabulary",
]
