"""
The contextualizer: two stacks of transformer layers over the same word vectors, one reading each
sentence from left to right, one from right to left.

Both are causal in their own reading order, so both run without a mask tensor, and everything but
the attention itself works on the tokens alone, without padding. Parameters are named and
shaped as in allennlp-models.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from numpy.typing import NDArray
from overrides import overrides
from torch.nn import functional as F

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.batch import DirectionLayout, PackedBatch
from transformer_elmo.nn.caches import Kept
from transformer_elmo.nn.config import NUM_HEADS, ContextualizerConfig
from transformer_elmo.nn.forks import one_thread_in_forks
from transformer_elmo.nn.kernels.compiled import compilable, is_wanted
from transformer_elmo.nn.kernels.dropout import Dropout
from transformer_elmo.nn.kernels.int8 import int8_is_wanted, int8_weight
from transformer_elmo.nn.kernels.layer_norm import layer_norm, norms_in_precision
from transformer_elmo.nn.kernels.linear import Weight, can_pack, linear, packed
from transformer_elmo.nn.kernels.weight_casts import cast_weights, products_dtype

ACTIVATIONS = ("relu", "relu_squared")


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
        self.linears = torch.nn.ModuleList(torch.nn.Linear(dim, dim) for _ in range(4))
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
    A layer's matrices and biases in the precision of the products, and the gammas and betas of its
    normalizations.
    """

    heads: Weight
    heads_bias: torch.Tensor
    output: Weight
    output_bias: torch.Tensor
    hidden: Weight
    hidden_bias: torch.Tensor
    result: Weight
    result_bias: torch.Tensor
    attention_gamma: torch.Tensor
    attention_beta: torch.Tensor
    feed_forward_gamma: torch.Tensor
    feed_forward_beta: torch.Tensor


# Those of them that rows are multiplied with.
_PRODUCTS = ("heads", "output", "hidden", "result")


class TransformerLayer(torch.nn.Module):
    """
    Attention, then the feed-forward network: `h = x + dropout(attention(norm(x)))`, and
    `h + dropout(feed_forward(norm(h)))`.
    """

    def __init__(self, config: ContextualizerConfig) -> None:
        super().__init__()
        self.self_attn = MultiHeadedAttention(config)
        self.feed_forward = PositionwiseFeedForward(config)
        self.sublayer = torch.nn.ModuleList(ResidualNorm(config) for _ in range(2))

    def products(self) -> list[list[torch.Tensor]]:
        """The parameters of its products, those in one list to be joined."""
        *heads, output = cast(list[torch.nn.Linear], list(self.self_attn.linears))
        hidden, result = self.feed_forward.w_1, self.feed_forward.w_2
        return [
            [head.weight for head in heads],
            [head.bias for head in heads],
            [output.weight],
            [output.bias],
            [hidden.weight],
            [hidden.bias],
            [result.weight],
            [result.bias],
        ]

    def norms(self) -> list[torch.Tensor]:
        """The parameters of its normalizations."""
        sublayers = cast(list[ResidualNorm], list(self.sublayer))
        return [weight for s in sublayers for weight in (s.norm.gamma, s.norm.beta)]

    @overrides(check_signature=False)
    def forward(
        self, rows: torch.Tensor, order: DirectionLayout, weights: LayerWeights
    ) -> torch.Tensor:
        """Shape `(num_rows, input_dim)`, in and out."""
        attention, feed_forward = cast(list[ResidualNorm], list(self.sublayer))
        heads = _before_attention(rows, weights)
        attended = order.attended(heads, NUM_HEADS, self.self_attn.dropout)
        dropouts = (attention.dropout, self.feed_forward.dropout, feed_forward.dropout)
        return _after_attention(attended, rows, weights, dropouts, self.feed_forward.is_squared)


@compilable("rows")
def _before_attention(rows: torch.Tensor, weights: LayerWeights) -> torch.Tensor:
    """Queries, keys and values, one beside the other. Shape `(num_rows, 3 * input_dim)`."""
    normed = layer_norm(rows, weights.attention_gamma, weights.attention_beta)
    return linear(normed.to(weights.heads.dtype), weights.heads, weights.heads_bias)


@compilable("attended", "rows")
def _after_attention(
    attended: torch.Tensor,
    rows: torch.Tensor,
    weights: LayerWeights,
    dropouts: tuple[Dropout, Dropout, Dropout],
    is_squared: bool,
) -> torch.Tensor:
    """The rest of a layer. Shape `(num_rows, input_dim)`."""
    of_attention, of_hidden, of_result = dropouts
    rows = of_attention(linear(attended, weights.output, weights.output_bias), rows)
    normed = layer_norm(rows, weights.feed_forward_gamma, weights.feed_forward_beta)
    hidden = linear(normed.to(weights.hidden.dtype), weights.hidden, weights.hidden_bias)
    hidden = of_hidden(F.relu(hidden).square()) if is_squared else of_hidden.of_relu(hidden)
    return of_result(linear(hidden, weights.result, weights.result_bias), rows)


class CausalTransformer(torch.nn.Module):
    """One direction: a stack of layers and a final normalization."""

    def __init__(self, config: ContextualizerConfig) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            TransformerLayer(config) for _ in range(config.num_layers)
        )
        self.norm = LayerNorm(config.input_dim)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                torch.nn.init.xavier_uniform_(parameter)

    @overrides(check_signature=False)
    def forward(
        self, tokens: torch.Tensor, order: DirectionLayout, weights: Sequence[LayerWeights]
    ) -> list[torch.Tensor]:
        """
        From shape `(num_tokens, input_dim)` to every layer's output as rows of that order, each of
        shape `(num_rows, input_dim)`; the last one is normalized.
        """
        rows = order.rows(tokens)
        outputs = []
        for layer, of_layer in zip(self.layers, weights):
            rows = layer(rows, order, of_layer)
            outputs.append(rows)
        outputs[-1] = self.norm(outputs[-1])
        return outputs


def positional_encoding(timesteps: int, dimension: int) -> torch.Tensor:
    """Sines and cosines of Vaswani et al. 2017, section 3.5. Shape `(1, timesteps, dimension)`."""
    position = torch.arange(timesteps, dtype=torch.float32).unsqueeze(1)
    frequency = position_frequencies(dimension)
    encoding = torch.zeros(timesteps, dimension)
    encoding[:, 0::2] = torch.sin(position * frequency)
    encoding[:, 1::2] = torch.cos(position * frequency)
    return encoding.unsqueeze(0)


def position_frequencies(dimension: int) -> torch.Tensor:
    """How far each sine's angle turns from one position to the next. Shape `(dimension / 2,)`."""
    return torch.exp(
        torch.arange(0, dimension, 2, dtype=torch.float32) * -(math.log(10000.0) / dimension)
    )


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

    @overrides(check_signature=False)
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
        if config.activation not in ACTIVATIONS:
            raise ConfigurationError(
                f"activation must be one of {', '.join(ACTIVATIONS)}: got {config.activation!r}."
            )
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

    @overrides
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
        return cast(
            list[TransformerLayer],
            [*self._forward_transformer.layers, *self._backward_transformer.layers],
        )

    def _weights(self, dtype: torch.dtype, rows_dtype: torch.dtype) -> list[LayerWeights]:
        """Those of all layers."""
        layers = self._layers()
        products = cast_weights(dtype, [group for layer in layers for group in layer.products()])
        norms = norms_in_precision(rows_dtype, [w for layer in layers for w in layer.norms()])
        of_products, of_norms = len(products) // len(layers), len(norms) // len(layers)
        return [
            LayerWeights(
                *products[of_products * n : of_products * (n + 1)],
                *norms[of_norms * n : of_norms * (n + 1)],
            )
            for n in range(len(layers))
        ]

    def _weights_for(self, tokens: torch.Tensor, dtype: torch.dtype) -> list[LayerWeights]:
        """
        As `_weights`; where there is nothing to learn, from one batch to the next.

        Raises `ConfigurationError` if there is something to learn, with products of 8-bit integers.
        """
        in_int8 = int8_is_wanted() and tokens.numel() > 0
        learns = torch.is_grad_enabled()
        if in_int8 and learns:
            if tokens.requires_grad or any(p.requires_grad for p in self.parameters()):
                raise ConfigurationError(
                    'precision "int8" has no gradients: it is for models that nothing is learned '
                    'with. Train in "float32" or "bfloat16"; for vectors alone, freeze the '
                    "parameters (requires_grad) or use torch.no_grad()."
                )
            learns = False
        if in_int8 and (dtype != torch.float32 or tokens.dtype != torch.float32):
            raise ConfigurationError(
                'precision "int8" is for models in float32 without autocast, got '
                f"{tokens.dtype if dtype == torch.float32 else dtype}: leave one of the two out."
            )
        # A GPU would have to wait until it is known whether they still are what they were, and is
        # done with making them sooner.
        if (
            learns
            or is_wanted()
            or torch.compiler.is_compiling()
            or tokens.device.type != "cpu"
            or not tokens.numel()
        ):
            self._kept.forget()
            return self._weights(dtype, tokens.dtype)

        def made() -> list[LayerWeights]:
            pack: Callable[[torch.Tensor], Any] = int8_weight if in_int8 else packed
            return [
                weights._replace(**{name: pack(getattr(weights, name)) for name in _PRODUCTS})
                for weights in self._weights(dtype, tokens.dtype)
            ]

        parameters = [
            parameter
            for layer in self._layers()
            for group in (*layer.products(), layer.norms())
            for parameter in group
        ]
        setting = (dtype, tokens.dtype, in_int8, can_pack(parameters[0]))
        return self._kept.get(parameters, setting, made)

    @overrides(check_signature=False)
    def forward(
        self,
        token_embeddings: torch.Tensor,
        mask: torch.Tensor,
        lengths: NDArray | None = None,
    ) -> list[torch.Tensor]:
        """
        `token_embeddings`: shape `(batch_size, timesteps, input_dim)`. `mask`: shape `(batch_size,
        timesteps)`. Positions outside it are neither seen nor computed. `lengths`: see
        `PackedBatch`. Returns for each layer, shape `(batch_size, timesteps, 2 * input_dim)`: the
        forward direction's half, then the backward one's. Zero outside the mask.
        """
        packing = PackedBatch(mask, lengths)
        dtype = token_embeddings.dtype
        forward, backward = self.rows(token_embeddings, packing)
        return [packing.unpack(*rows, dtype) for rows in zip(forward, backward)]
