"""
The contextualizer: two stacks of transformer layers over the same word vectors, one reading each
sentence from left to right, one from right to left.

Both are causal in their own reading order, so both run without a mask tensor, and everything but
the attention itself works on the tokens alone, without padding. Parameters are named and
shaped as in allennlp-models.
"""

import math
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.batch import DirectionLayout, PackedBatch
from transformer_elmo.nn.caches import Kept
from transformer_elmo.nn.config import NUM_HEADS, ContextualizerConfig, check_choice
from transformer_elmo.nn.forks import one_thread_in_forks
from transformer_elmo.nn.kernels.dropout import Dropout
from transformer_elmo.nn.kernels.layer_norm import cast_norms, layer_norm
from transformer_elmo.nn.kernels.linear import linear, onednn_takes, packed
from transformer_elmo.nn.kernels.weight_casts import Pair, cast_weights, products_dtype


class LayerNorm(torch.nn.Module):
    """Layer normalization with AllenNLP's parameter names."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.gamma = torch.nn.Parameter(torch.ones(dimension))
        self.beta = torch.nn.Parameter(torch.zeros(dimension))

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        return layer_norm(tensor, self.gamma, self.beta)


class MultiHeadedAttention(torch.nn.Module):
    """The weights of causal scaled dot-product attention (Vaswani et al. 2017)."""

    def __init__(self, config: ContextualizerConfig) -> None:
        super().__init__()
        dim = config.input_dim
        # In this order: query, key, value, output.
        self.linears: Any = torch.nn.ModuleList(torch.nn.Linear(dim, dim) for _ in range(4))
        self.dropout = Dropout(config.dropout)


class PositionwiseFeedForward(torch.nn.Module):
    """
    The weights of two linear layers with a ReLU, or its square (So et al. 2021, "Primer"), and
    dropout between them.
    """

    def __init__(self, config: ContextualizerConfig) -> None:
        super().__init__()
        self.is_squared = config.activation == "relu_squared"
        self.w_1 = torch.nn.Linear(config.input_dim, config.hidden_dim)
        self.w_2 = torch.nn.Linear(config.hidden_dim, config.input_dim)
        self.dropout = Dropout(config.dropout)


class ResidualNorm(torch.nn.Module):
    """What surrounds a sublayer: normalization before it, dropout after it."""

    def __init__(self, config: ContextualizerConfig) -> None:
        super().__init__()
        self.norm = LayerNorm(config.input_dim)
        self.dropout = Dropout(config.dropout)


class LayerWeights(NamedTuple):
    """
    A layer's matrices with their biases, in the precision of the products, and the gammas with the
    betas of its normalizations.
    """

    heads: Pair
    output: Pair
    hidden: Pair
    result: Pair
    attention_norm: Pair
    feed_forward_norm: Pair


class TransformerLayer(torch.nn.Module):
    """One layer. Its weights are joined and cast with those of all layers, and handed to it."""

    def __init__(self, config: ContextualizerConfig) -> None:
        super().__init__()
        self.self_attn = MultiHeadedAttention(config)
        self.feed_forward = PositionwiseFeedForward(config)
        self.sublayer: Any = torch.nn.ModuleList(ResidualNorm(config) for _ in range(2))

    def products(self) -> list[list[torch.Tensor]]:
        """The parameters of its products, those in one list to be joined."""
        *heads, output = self.self_attn.linears
        linears = [heads, [output], [self.feed_forward.w_1], [self.feed_forward.w_2]]
        return [[getattr(m, n) for m in joined] for joined in linears for n in ("weight", "bias")]

    def norms(self) -> list[torch.Tensor]:
        """The parameters of its normalizations."""
        return [weight for s in self.sublayer for weight in (s.norm.gamma, s.norm.beta)]

    def forward(
        self, x: torch.Tensor, layout: DirectionLayout, weights: LayerWeights
    ) -> torch.Tensor:
        """Shape `(num_rows, input_dim)`, in and out."""
        h = x + self._attention(layer_norm(x, *weights.attention_norm), layout, weights)
        return h + self._feed_forward(layer_norm(h, *weights.feed_forward_norm), weights)

    def _attention(
        self, x: torch.Tensor, layout: DirectionLayout, weights: LayerWeights
    ) -> torch.Tensor:
        queries_keys_values = _linear(x, weights.heads)
        attended = layout.attended(queries_keys_values, NUM_HEADS, self.self_attn.dropout)
        return self.sublayer[0].dropout(_linear(attended, weights.output))

    def _feed_forward(self, x: torch.Tensor, weights: LayerWeights) -> torch.Tensor:
        hidden, dropout = _linear(x, weights.hidden), self.feed_forward.dropout
        if self.feed_forward.is_squared:
            hidden = dropout(F.relu(hidden).square())
        else:
            hidden = dropout.of_relu(hidden)
        return self.sublayer[1].dropout(_linear(hidden, weights.result))


def _linear(x: torch.Tensor, weights: Pair) -> torch.Tensor:
    return linear(x.to(weights[0].dtype), *weights)


class CausalTransformer(torch.nn.Module):
    """One direction: a stack of layers and a final normalization."""

    def __init__(self, config: ContextualizerConfig) -> None:
        super().__init__()
        self.layers: Any = torch.nn.ModuleList(
            TransformerLayer(config) for _ in range(config.num_layers)
        )
        self.norm = LayerNorm(config.input_dim)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                torch.nn.init.xavier_uniform_(parameter)

    def forward(
        self, tokens: torch.Tensor, layout: DirectionLayout, weights: Sequence[LayerWeights]
    ) -> list[torch.Tensor]:
        """
        From shape `(num_tokens, input_dim)` to every layer's output as rows of that layout, each of
        shape `(num_rows, input_dim)`; the last one is normalized.
        """
        outputs = [layout.rows(tokens)]
        for layer, of_layer in zip(self.layers, weights):
            outputs.append(layer(outputs[-1], layout, of_layer))
        return [*outputs[1:-1], self.norm(outputs[-1])]


def positional_encoding(timesteps: int, dim: int) -> torch.Tensor:
    """Sines and cosines of Vaswani et al. 2017, section 3.5. Shape `(1, timesteps, dim)`."""
    places = torch.arange(timesteps, dtype=torch.float32).unsqueeze(1)
    frequencies = torch.exp(torch.arange(0, dim, 2) * -(math.log(10000.0) / dim))
    angles = places * frequencies
    return torch.stack([torch.sin(angles), torch.cos(angles)], -1).view(1, timesteps, dim)


class PositionalEncoding(torch.nn.Module):
    """Adds each token's position to its vector; sentences may be longer than the stored table."""

    def __init__(self, input_dim: int, max_len: int = 5000) -> None:
        super().__init__()
        self.positional_encoding: torch.Tensor
        # On the meta device torch would import its compiler for this arithmetic, which takes longer
        # than opening a model.
        with torch.device("cpu"):
            table = positional_encoding(max_len, input_dim)
        self.register_buffer("positional_encoding", table.to(torch.get_default_device()))

    def forward(self, tokens: torch.Tensor, packing: PackedBatch) -> torch.Tensor:
        """Shape `(num_tokens, input_dim)`, in and out."""
        table = self.positional_encoding[0]
        if packing.timesteps > table.size(0):
            longer = positional_encoding(packing.timesteps, table.size(1))[0].to(table)
            table = torch.cat([table, longer[table.size(0) :]])
        return tokens + table.index_select(0, packing.tokens % max(packing.timesteps, 1))


class BidirectionalTransformer(torch.nn.Module):
    """
    The contextualizer of Transformer ELMo (Peters et al. 2018, "Dissecting Contextual Word
    Embeddings"): a left-to-right and a right-to-left transformer side by side. Neither sees the
    word it has to predict.

    Raises `ConfigurationError` if a value of the config isn't possible.
    """

    def __init__(self, config: ContextualizerConfig) -> None:
        super().__init__()
        one_thread_in_forks()
        check_choice("activation", config.activation, ("relu", "relu_squared"))
        if config.num_layers < 1:
            raise ConfigurationError(f"num_layers must be at least 1, got {config.num_layers}.")
        if config.input_dim % NUM_HEADS:
            raise ConfigurationError(
                f"input_dim must be a multiple of the number of attention heads, {NUM_HEADS}: "
                f"got {config.input_dim}."
            )
        self.num_layers = config.num_layers
        self.input_dim = config.input_dim
        self.output_dim = 2 * config.input_dim
        self._forward_transformer = CausalTransformer(config)
        self._backward_transformer = CausalTransformer(config)
        self._position = PositionalEncoding(config.input_dim)
        self._dropout = Dropout(config.input_dropout or 0.0)
        self._kept = Kept()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        one_thread_in_forks()

    def rows(
        self, token_embeddings: torch.Tensor, packing: PackedBatch
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """
        `token_embeddings`: shape `(batch_size, timesteps, input_dim)`. `packing`: of the batch's
        mask. Returns every layer's output for the forward and for the backward direction, as rows
        of `packing.forward` and `packing.backward`.
        """
        tokens = self._dropout(self._position(packing.pack(token_embeddings), packing))
        dtype = products_dtype(tokens)
        if dtype == torch.bfloat16:
            # It has float32's range, so that all between the layers can be in it as well: half the
            # memory to move, and no casts.
            tokens = tokens.to(dtype)
        with torch.autocast(tokens.device.type, enabled=False):
            weights = self._weights_for(tokens, dtype)
            return (
                self._forward_transformer(tokens, packing.forward, weights[: self.num_layers]),
                self._backward_transformer(tokens, packing.backward, weights[self.num_layers :]),
            )

    def _layers(self) -> list[TransformerLayer]:
        """The forward direction's first."""
        return [*self._forward_transformer.layers, *self._backward_transformer.layers]

    def _weights(
        self, dtype: torch.dtype, rows_dtype: torch.dtype, are_kept: bool = False
    ) -> list[LayerWeights]:
        """Those of all layers, for products in one type and rows in another."""
        layers = self._layers()
        products = cast_weights(dtype, [group for layer in layers for group in layer.products()])
        if are_kept:
            products = [packed(weight) if weight.dim() > 1 else weight for weight in products]
        norms = cast_norms(rows_dtype, [w for layer in layers for w in layer.norms()])
        of_products, of_norms = (zip(made[::2], made[1::2]) for made in (products, norms))
        return [LayerWeights(*islice(of_products, 4), *islice(of_norms, 2)) for _ in layers]

    def _weights_for(self, tokens: torch.Tensor, dtype: torch.dtype) -> list[LayerWeights]:
        """As `_weights`; where there is nothing to learn, from one batch to the next."""
        # A GPU would have to wait until it is known whether they still are what they were, and is
        # done with making them sooner.
        if torch.is_grad_enabled() or tokens.device.type != "cpu" or not tokens.numel():
            self._kept.forget()
            return self._weights(dtype, tokens.dtype)
        parameters = [weight for layer in self._layers() for weight in layer.parameters()]
        setting = (dtype, tokens.dtype, onednn_takes(parameters[0]))
        return self._kept.get(parameters, setting, lambda: self._weights(*setting[:2], True))
