"""A small model, made without AllenNLP, as a folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from transformer_elmo.pretrained.config import (
    CharactersConfig,
    ContextualizerConfig,
    ModelConfig,
    SoftmaxConfig,
    TextConfig,
    WordIdsConfig,
)
from transformer_elmo.pretrained.folder import reader_of, save_folder
from transformer_elmo.text.vocabulary import UNKNOWN, WordList

WORDS = ["</S>", "<S>", UNKNOWN, *"the a cat dog sat ran in on Berlin Paris Anna Otto . ,".split()]
DIM = 16

CONFIG = ModelConfig(
    words=CharactersConfig(
        num_characters=262,
        character_dim=4,
        filters=[(1, 4), (2, 4), (3, 8)],
        num_highway=1,
        projection_dim=DIM,
        do_layer_norm=True,
    ),
    contextualizer=ContextualizerConfig(input_dim=DIM, hidden_dim=32, num_layers=2),
    text=TextConfig(start_tokens=["<S>"], end_tokens=["</S>"]),
    softmax=SoftmaxConfig(num_words=len(WORDS) + 1),
)

OF_IDS = replace(CONFIG, words=WordIdsConfig(len(WORDS) + 1, DIM), words_name="tokens")


def save_small_model(
    folder: Path, seed: int = 0, config: ModelConfig = CONFIG, **options: Any
) -> Path:
    """
    # Parameters

    folder : `Path`
    seed : `int`, optional (default = `0`)
    config : `ModelConfig`, optional (default = `CONFIG`)
        `OF_IDS` is one that knows words by their numbers.
    options
        `save_folder`'s.
    """
    torch.manual_seed(seed)
    model = config.build().eval()
    model.card = {"corpus": "made up"}
    save_folder(model, reader_of(config, WordList(WORDS)), folder, **options)
    return folder
