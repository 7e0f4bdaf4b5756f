"""
AllenNLP around the core: everything that a config can name, and what is done to AllenNLP for it.
Importing this package registers all of it.
"""

from allennlp.common import Registrable
from allennlp.common.file_utils import cached_path
from allennlp.common.tqdm import Tqdm

from transformer_elmo import elmo, model_folder, progress
from transformer_elmo.legacy import registered
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
    optional_packages,
    peer,
    prediction,
    shown_errors,
    training,
    wrong_values,
)
from transformer_elmo.plugin.runs import resumption
from transformer_elmo.text import corpus

patches.check_version()
peer.claim_names()
for _module in (
    configs,
    archived,
    training,
    prediction,
    optional_packages,
    wrong_values,
    shown_errors,
):
    _module.install()


def _is_registered(name: str) -> bool:
    return any(name in names for names in Registrable._registry.values())


# What the core leaves to others where it is alone.
corpus.download = lambda url: str(cached_path(url))
progress.make = lambda **options: Tqdm.tqdm(**options)
model_folder.other_tokenizer = sentences.allennlp_tokenizer
elmo.openers.append(loading.opener)
elmo.adapters.append(sentences.adapted)
registered.is_registered = _is_registered

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
    "resumption",
    "sentences",
    "tagger_predictor",
    "token_embedders",
    "tokenizers",
    "vocabulary",
]
