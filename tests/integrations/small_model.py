"""A small model, made without AllenNLP, as a folder; and what the reference makes of sentences."""

from dataclasses import replace
from pathlib import Path
from typing import Any, List, Sequence

import numpy as np
import torch

from transformer_elmo.pretrained.config import (
    CharactersConfig,
    ContextualizerConfig,
    ModelConfig,
    SoftmaxConfig,
    TextConfig,
    WordIdsConfig,
)
from transformer_elmo.pretrained.folder import Opened, open_folder, reader_of, save_folder
from transformer_elmo.pretrained.onnx import graph_module
from transformer_elmo.text.vocabulary import UNKNOWN, WordList

WORDS = ["</S>", "<S>", UNKNOWN, *"the a cat dog sat ran in on Berlin Paris Anna Otto . ,".split()]
DIM = 16

CHARACTERS = CharactersConfig(
    num_characters=262,
    character_dim=4,
    filters=[(1, 4), (2, 4), (3, 8)],
    num_highway=1,
    projection_dim=DIM,
    do_layer_norm=True,
    own_characters={"<P>": 200},
)
CONFIG = ModelConfig(
    words=CHARACTERS,
    contextualizer=ContextualizerConfig(input_dim=DIM, hidden_dim=32, num_layers=2),
    text=TextConfig(start_tokens=["<S>"], end_tokens=["</S>"]),
    softmax=SoftmaxConfig(num_words=len(WORDS) + 1),
)
OF_IDS = replace(CONFIG, words=WordIdsConfig(len(WORDS) + 1, DIM), words_name="tokens")
OTHER = replace(
    CONFIG,
    words=replace(
        CHARACTERS, activation="tanh", projection_location="after_cnn", do_layer_norm=False
    ),
    contextualizer=ContextualizerConfig(DIM, 48, 1, activation="relu_squared"),
)


def small_model(config: ModelConfig = CONFIG, seed: int = 0) -> Opened:
    torch.manual_seed(seed)
    model = config.build().eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            # Biases and gains that say nothing would hide that they are left out.
            torch.nn.init.normal_(parameter, mean=0.5, std=0.2)
    model.card = {"corpus": "made up"}
    return Opened(model, reader_of(config, WordList(WORDS)))


def save_small_model(
    folder: Path, seed: int = 0, config: ModelConfig = CONFIG, **options: Any
) -> Path:
    """`options`: `save_folder`'s."""
    save_folder(*small_model(config, seed), folder, **options)
    return folder


def reference_vectors(folder: Path, sentences: Sequence[Sequence[str]]) -> List[np.ndarray]:
    """By `nn.reference`, one sentence at a time. Shapes `(num_layers, num_words, dim)`."""
    opened = open_folder(folder)
    module, by_ids = graph_module(opened.model), opened.model.embeds_ids
    found = []
    for words in sentences:
        tokens = opened.reader.with_boundaries(words)
        batch = opened.reader.batch([tokens], torch.device("cpu"))
        ids: Any = batch.token_ids if by_ids else batch.characters[batch.word_index]
        with torch.no_grad():
            layers = module(ids, torch.tensor([len(tokens)]))
        found.append(layers[:, 0, 1:-1].numpy())
    return found


def assert_close(
    found: Sequence[np.ndarray], expected: Sequence[np.ndarray], tolerance: float = 1e-5
) -> None:
    """The same shapes and numbers; a sum of float32 as large as 10 has an error of some 1e-6."""
    assert [rows.shape for rows in found] == [rows.shape for rows in expected]
    for one, two in zip(found, expected):
        assert np.abs(one - two).max(initial=0) <= tolerance
