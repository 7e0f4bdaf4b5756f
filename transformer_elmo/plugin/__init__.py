"""
AllenNLP around the core: everything that a config can name, and what is done to AllenNLP for it.
Importing this package registers all of it.
"""

from transformer_elmo.plugin import (  # noqa: F401
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
    predictor,
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
    shown_errors,
    training,
)
from transformer_elmo.plugin.training import trainer  # noqa: F401

peer.claim_names()
for _module in (configs, archived, training, shown_errors):
    _module.install()
