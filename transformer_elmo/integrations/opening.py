"""Models opened for their vectors alone, and their layers as one vector a word."""

import os
from pathlib import Path
from typing import Union

import torch

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.inference.elmo import EXPECTED
from transformer_elmo.inference.vectors import Layers
from transformer_elmo.pretrained.archive import open_archive
from transformer_elmo.pretrained.folder import Opened, is_model_folder, open_folder
from transformer_elmo.text.corpus import variables_with


def open_for_vectors(path: Union[str, "os.PathLike[str]"]) -> Opened:
    """
    A model on the CPU, without its softmax.

    `path`: a model folder, a `model.tar.gz`, the folder of a training run, or a URL. Raises
    `ConfigurationError` if there is no model, or one that a model folder has no place for: what
    contains the model is to be saved with it.
    """
    name = os.fspath(path)
    if not name:
        raise ConfigurationError(f"The path of the language model is empty. {EXPECTED}")
    if is_model_folder(name):
        return open_folder(name, with_softmax=False)
    opened = open_archive(name, with_softmax=False)
    if opened is None:
        raise ConfigurationError(
            f"There is no language model {name}.{variables_with(name)} {EXPECTED} The current "
            f"directory is {Path.cwd()}."
        )
    return opened


def vector_dim(num_layers: int, dim: int, layers: Layers) -> int:
    """The dimension of a word's vector, of which "all" layers have a part each."""
    return num_layers * dim if layers == "all" else dim


def one_vector_a_word(vectors: torch.Tensor, layers: Layers) -> torch.Tensor:
    """
    `vectors`: of a sentence, as `TransformerElmo.embed_tensors` gives them. Returns shape
    `(num_words, vector_dim)`: with "all", the layers side by side, from the word vectors to the
    top.
    """
    return vectors.transpose(0, 1).flatten(1) if layers == "all" else vectors


__all__ = ["one_vector_a_word", "open_for_vectors", "vector_dim"]
