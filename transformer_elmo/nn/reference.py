"""
The model, to be read from top to bottom: all of Transformer ELMo (Peters et al. 2018, "Dissecting
Contextual Word Embeddings") in plain torch.

A convolutional network makes a vector of each word's characters. Two transformers, one reading each
sentence from left to right and one from right to left, put the vectors in context, and a softmax
predicts the next and the previous word.

The modules beside this one compute the same, faster, from the same `state_dict`. Tests compare the
two, and ONNX's graph is exported from this one. It takes every config of `nn.config`. All is in
float32, and the softmax exact. `x` has shape `(batch, timesteps, dim)`.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transformer_elmo.nn.config import (
    NUM_HEADS,
    CharactersConfig,
    ContextualizerConfig,
    SoftmaxConfig,
    WordIdsConfig,
)

NUM_POSITIONS = 5000  # Whose encoding is stored with the weights.


class LayerNorm(nn.Module):
    """Layer normalization (Ba et al. 2016). Its epsilon is for vectors of equal numbers alone."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.beta = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.gamma.shape, self.gamma, self.beta, eps=1e-26)


class WordEmbedding(nn.Module):
    def __init__(self, config: WordIdsConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.num_embeddings, config.embedding_dim)

    def forward(self, token_ids: Tensor) -> Tensor:
        return self.embedding(token_ids)


class CharacterCnn(nn.Module):
    """Word vectors from characters (Kim et al. 2016; Jozefowicz et al. 2016)."""

    def __init__(self, config: CharactersConfig) -> None:
        super().__init__()
        num_filters, dim = sum(n for _, n in config.filters), config.character_dim
        self.projects_first = config.projection_location == "after_cnn"
        size = config.projection_dim if self.projects_first else num_filters
        self.activation = {"relu": torch.relu, "tanh": torch.tanh}[config.activation]
        self.embedding = nn.Embedding(config.num_characters, dim)
        self.convolutions = nn.ModuleList(nn.Conv1d(dim, n, width) for width, n in config.filters)
        self.highways = nn.ModuleList(nn.Linear(size, 2 * size) for _ in range(config.num_highway))
        self.projection = nn.Linear(num_filters, config.projection_dim)
        self.norm = LayerNorm(config.projection_dim) if config.do_layer_norm else nn.Identity()

    def forward(self, characters: Tensor) -> Tensor:
        """From shape `(batch, timesteps, num_characters)`."""
        columns = self.embedding(characters.flatten(0, 1)).transpose(1, 2)
        # The activation falls nowhere: after the maximum it has the same result and less to do.
        x = torch.cat([convolution(columns).amax(-1) for convolution in self.convolutions], -1)
        x = self.activation(x)
        if self.projects_first:
            x = self.projection(x)
        for highway in self.highways:
            new, gate = highway(x).chunk(2, -1)  # Srivastava et al. 2015
            x = torch.lerp(torch.relu(new), x, torch.sigmoid(gate))
        if not self.projects_first:
            x = self.projection(x)
        return self.norm(x).unflatten(0, characters.shape[:2])


class CausalAttention(nn.Module):
    """Every position looks at itself and those before it (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, config: ContextualizerConfig) -> None:
        super().__init__()
        dim = config.input_dim
        self.linears = nn.ModuleList(nn.Linear(dim, dim) for _ in ("query", "key", "value", "out"))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        size = x.size(-1) // NUM_HEADS
        q, k, v = (f(x).unflatten(-1, (NUM_HEADS, size)).transpose(1, 2) for f in self.linears[:3])
        scores = q @ k.transpose(-1, -2) / math.sqrt(size)
        places = torch.arange(x.size(1), device=x.device)
        scores = torch.where(places <= places.unsqueeze(1), scores, -math.inf)
        attended = self.dropout(scores.softmax(-1)) @ v
        return self.linears[3](attended.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them, or its square (So et al. 2021, "Primer")."""

    def __init__(self, config: ContextualizerConfig) -> None:
        super().__init__()
        activations = {"relu": torch.relu, "relu_squared": lambda x: torch.relu(x).square()}
        self.activation = activations[config.activation]
        self.w_1 = nn.Linear(config.input_dim, config.hidden_dim)
        self.w_2 = nn.Linear(config.hidden_dim, config.input_dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_2(self.dropout(self.activation(self.w_1(x))))


class Sublayer(nn.Module):
    """What surrounds attention and feed-forward network."""

    def __init__(self, config: ContextualizerConfig) -> None:
        super().__init__()
        self.norm = LayerNorm(config.input_dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, function: nn.Module) -> Tensor:
        return x + self.dropout(function(self.norm(x)))


class TransformerLayer(nn.Module):
    def __init__(self, config: ContextualizerConfig) -> None:
        super().__init__()
        self.self_attn = CausalAttention(config)
        self.feed_forward = FeedForward(config)
        self.sublayer = nn.ModuleList(Sublayer(config) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.sublayer[0](x, self.self_attn)
        return self.sublayer[1](x, self.feed_forward)


class CausalTransformer(nn.Module):
    """One direction: every layer's output, the last one normalized."""

    def __init__(self, config: ContextualizerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_layers))
        self.norm = LayerNorm(config.input_dim)

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = [x]
        for layer in self.layers:
            outputs.append(layer(outputs[-1]))
        return [*outputs[1:-1], self.norm(outputs[-1])]


class PositionalEncoding(nn.Module):
    """Sines and cosines of Vaswani et al. 2017, section 3.5. Shape `(timesteps, dim)`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        frequencies = torch.exp(torch.arange(0, dim, 2) * -(math.log(10000.0) / dim))
        self.frequencies = nn.Buffer(frequencies, persistent=False)
        table = self.computed(torch.arange(NUM_POSITIONS))
        self.positional_encoding = nn.Buffer(table.unsqueeze(0))

    def computed(self, places: Tensor) -> Tensor:
        angles = places.unsqueeze(1) * self.frequencies
        return torch.stack([torch.sin(angles), torch.cos(angles)], -1).flatten(1)

    def forward(self, places: Tensor) -> Tensor:
        # A sentence may be longer than what is stored.
        stored = self.positional_encoding[0, places.clamp(max=NUM_POSITIONS - 1)]
        return torch.where((places < NUM_POSITIONS).unsqueeze(1), stored, self.computed(places))


class BidirectionalTransformer(nn.Module):
    """The contextualizer: neither direction sees the word that it has to predict."""

    def __init__(self, config: ContextualizerConfig) -> None:
        super().__init__()
        self._forward_transformer = CausalTransformer(config)
        self._backward_transformer = CausalTransformer(config)
        self._position = PositionalEncoding(config.input_dim)
        self._dropout = nn.Dropout(config.input_dropout or 0.0)

    def forward(self, x: Tensor, lengths: Tensor) -> list[Tensor]:
        """Each layer's output, shape `(batch, timesteps, 2 * dim)`."""
        places = torch.arange(x.size(1), device=x.device)
        x = self._dropout(x + self._position(places))
        # The backward direction reads each sentence reversed within its own length: either way
        # padding comes behind, where no word looks.
        last = lengths.unsqueeze(1) - 1
        mirror = torch.where(places <= last, last - places, places)
        rows = torch.arange(x.size(0), device=x.device).unsqueeze(1)
        forward = self._forward_transformer(x)
        backward = self._backward_transformer(x[rows, mirror])
        return [torch.cat([f, b[rows, mirror]], -1) for f, b in zip(forward, backward)]


class Softmax(nn.Module):
    """A weight row and a bias for each word, laid out as the training wants them."""

    def __init__(self, config: SoftmaxConfig, dim: int) -> None:
        super().__init__()
        self.is_transposed = config.num_samples is None
        if config.sparse and not self.is_transposed:
            self.softmax_w: Any = nn.Embedding(config.num_words, dim)
            self.softmax_b: Any = nn.Embedding(config.num_words, 1)
        else:
            shape = (dim, config.num_words) if self.is_transposed else (config.num_words, dim)
            self.softmax_w = nn.Parameter(torch.randn(shape) / math.sqrt(dim))
            self.softmax_b = nn.Parameter(torch.zeros(config.num_words))

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        """The negative log-likelihoods, from shapes `(num_targets, dim)` and `(num_targets,)`."""
        weight, bias = self.parameters()
        logits = F.linear(x, weight.t() if self.is_transposed else weight, bias.flatten())
        return F.cross_entropy(logits, targets, reduction="none")


class ReferenceModel(nn.Module):
    """
    All of a `ModelConfig`. Words are characters, shape `(batch, timesteps, num_characters)`, or
    numbers, shape `(batch, timesteps)`; of each row, the first `lengths` are words.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        by_ids, dim = isinstance(config.words, WordIdsConfig), config.contextualizer.input_dim
        self.words: nn.Module = (WordEmbedding if by_ids else CharacterCnn)(config.words)
        self.contextualizer = BidirectionalTransformer(config.contextualizer)
        self.softmax: Any = config.softmax and Softmax(config.softmax, dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        """All layers, `(1 + num_layers, batch, timesteps, 2 * dim)`, words first. 0 at padding."""
        x = self.words(words)
        layers = torch.stack([torch.cat([x, x], -1), *self.contextualizer(x, lengths)])
        present = torch.arange(x.size(1), device=x.device) < lengths.unsqueeze(1)
        return torch.where(present.unsqueeze(-1), layers, 0.0)

    def losses(self, words: Tensor, lengths: Tensor, token_ids: Tensor) -> list[Tensor]:
        """Of each next word, and of each previous one. 0 in `token_ids` is padding, no word."""
        forward, backward = self.dropout(self(words, lengths)[-1]).chunk(2, -1)
        pairs = (torch.arange(words.size(1), device=words.device) < lengths.unsqueeze(1))[:, 1:]
        return [
            self.softmax(forward[:, :-1][pairs], token_ids[:, 1:][pairs] - 1),
            self.softmax(backward[:, 1:][pairs], token_ids[:, :-1][pairs] - 1),
        ]
