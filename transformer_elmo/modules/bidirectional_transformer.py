"""
The contextualizer: two stacks of transformer layers over the same word vectors, one reading each
sentence from left to right, one from right to left.

Both are causal in their own reading order, so both run without a mask tensor, and everything but
the attention itself works on the tokens alone, without padding. Parameters are named and
shaped as in allennlp-models.
"""

import math
from typing import List, Optional, Tuple, Union, cast

import torch
from allennlp.common.checks import ConfigurationError
from allennlp.modules.seq2seq_encoders import Seq2SeqEncoder
from overrides import overrides
from torch.nn import functional as F

from transformer_elmo.modules.dropout import Dropout
from transformer_elmo.modules.linear import linear
from transformer_elmo.modules.token_layout import ReadingOrder, TokenLayout

# The number of heads isn't configurable in the original either; weights depend on it.
NUM_HEADS = 8

# Without dropout, attention in bfloat16 is written out on a CPU up to so many scores (64 MiB).
SCORES_IN_MEMORY = 2**25


class LayerNorm(torch.nn.Module):
    """
    Layer normalization (Ba et al. 2016) with AllenNLP's parameter names and numbers: it divides by
    the standard deviation itself, guarded only against being exactly zero.

    # Parameters

    dimension : `int`, required.
    """

    # AllenNLP adds 1e-13 to the deviation; added to the variance, its square has the same effect.
    EPSILON = 1e-26

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.gamma = torch.nn.Parameter(torch.ones(dimension))
        self.beta = torch.nn.Parameter(torch.zeros(dimension))

    @overrides(check_signature=False)
    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        gamma: torch.Tensor = self.gamma
        beta: torch.Tensor = self.beta
        if tensor.dtype == gamma.dtype:
            return F.layer_norm(tensor, gamma.shape, gamma, beta, self.EPSILON)
        # Statistics are float32 inside the kernel. Autocast would make the result so, too, only to
        # have the next product round it again.
        with torch.autocast(tensor.device.type, enabled=False):
            if tensor.device.type != "cpu":
                # Only the CPU's kernel takes two types.
                gamma, beta = gamma.to(tensor.dtype), beta.to(tensor.dtype)
            return F.layer_norm(tensor, gamma.shape, gamma, beta, self.EPSILON)


class MultiHeadedAttention(torch.nn.Module):
    """
    Causal scaled dot-product attention (Vaswani et al. 2017).

    # Parameters

    num_heads : `int`, required.
    input_dim : `int`, required.
        Must be a multiple of `num_heads`.
    dropout : `float`, optional (default = `0.1`)
        On the attention probabilities.
    """

    def __init__(self, num_heads: int, input_dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        if input_dim % num_heads:
            raise ConfigurationError(
                f"input_dim must be a multiple of the number of attention heads, {num_heads}: "
                f"got {input_dim}."
            )
        self.num_heads = num_heads
        # In this order: query, key, value, output.
        self.linears = torch.nn.ModuleList(torch.nn.Linear(input_dim, input_dim) for _ in range(4))
        self.dropout = Dropout(dropout)

    @overrides(check_signature=False)
    def forward(self, rows: torch.Tensor, order: ReadingOrder) -> torch.Tensor:
        """
        # Parameters

        rows : `torch.Tensor`
            Shape `(num_rows, input_dim)`.
        order : `ReadingOrder`

        # Returns

        `torch.Tensor`
            Shape `(num_rows, input_dim)`.
        """
        query, key, value, output = cast(List[torch.nn.Linear], list(self.linears))
        weight = torch.cat([query.weight, key.weight, value.weight])
        bias = torch.cat([query.bias, key.bias, value.bias])
        sentences = order.sentences(linear(rows, weight, bias))
        heads = sentences.view(*order.shape, 3, self.num_heads, -1)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        if self._better_written_out(q):
            attended = self._written_out(q, k, v)
        else:
            attended = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, dropout_p=self.dropout.p if self.training else 0.0
            )
        rows = order.rows_of_sentences(attended.transpose(1, 2))
        return linear(rows, output.weight, output.bias)

    def _better_written_out(self, query: torch.Tensor) -> bool:
        """
        PyTorch has no fused CPU kernel with dropout, and what it does instead passes over the
        matrix of scores more often. Without dropout, its fused one takes twice as long as separate
        products in bfloat16, as long as their scores don't ask for much memory.
        """
        if query.device.type != "cpu":
            return False
        if self.training and self.dropout.p:
            return True
        num_scores = query.size(0) * query.size(1) * query.size(2) ** 2
        return query.dtype == torch.bfloat16 and num_scores <= SCORES_IN_MEMORY

    def _written_out(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Attention in separate steps. Shapes `(batch_size, num_heads, timesteps, dim)`."""
        timesteps, dim = query.shape[-2:]
        # Shape `(timesteps, timesteps)`
        future = query.new_full((timesteps, timesteps), -math.inf).triu_(1)
        scores = torch.baddbmm(
            future,
            query.flatten(0, 1),
            key.flatten(0, 1).transpose(1, 2),
            alpha=1.0 / math.sqrt(dim),
        )
        probabilities = self.dropout(scores.softmax(-1))
        return torch.bmm(probabilities, value.flatten(0, 1)).view_as(query)


class PositionwiseFeedForward(torch.nn.Module):
    """Two linear layers with a ReLU and dropout between them."""

    def __init__(self, input_dim: int, hidden_dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.w_1 = torch.nn.Linear(input_dim, hidden_dim)
        self.w_2 = torch.nn.Linear(hidden_dim, input_dim)
        self.dropout = Dropout(dropout)

    @overrides(check_signature=False)
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.dropout.of_relu(linear(tokens, self.w_1.weight, self.w_1.bias))
        return linear(hidden, self.w_2.weight, self.w_2.bias)


class ResidualNorm(torch.nn.Module):
    """What surrounds a sublayer: normalization before it, dropout after it."""

    def __init__(self, dimension: int, dropout: float) -> None:
        super().__init__()
        self.norm = LayerNorm(dimension)
        self.dropout = Dropout(dropout)


class TransformerLayer(torch.nn.Module):
    """One layer: attention, then the feed-forward network, each behind a `ResidualNorm`."""

    def __init__(self, input_dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = MultiHeadedAttention(NUM_HEADS, input_dim, dropout)
        self.feed_forward = PositionwiseFeedForward(input_dim, hidden_dim, dropout)
        self.sublayer = torch.nn.ModuleList(ResidualNorm(input_dim, dropout) for _ in range(2))

    @overrides(check_signature=False)
    def forward(self, rows: torch.Tensor, order: ReadingOrder) -> torch.Tensor:
        attention, feed_forward = cast(List[ResidualNorm], list(self.sublayer))
        rows = attention.dropout(self.self_attn(attention.norm(rows), order), rows)
        return feed_forward.dropout(self.feed_forward(feed_forward.norm(rows)), rows)


class CausalTransformer(torch.nn.Module):
    """One direction: a stack of layers and a final normalization."""

    def __init__(self, input_dim: int, hidden_dim: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            TransformerLayer(input_dim, hidden_dim, dropout) for _ in range(num_layers)
        )
        self.norm = LayerNorm(input_dim)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                torch.nn.init.xavier_uniform_(parameter)

    @overrides(check_signature=False)
    def forward(self, tokens: torch.Tensor, order: ReadingOrder) -> List[torch.Tensor]:
        """
        # Parameters

        tokens : `torch.Tensor`
            Shape `(num_tokens, input_dim)`.
        order : `ReadingOrder`

        # Returns

        `List[torch.Tensor]`
            Every layer's output as rows of that order, each of shape `(num_rows, input_dim)`; the
            last one is normalized.
        """
        rows = order.rows(tokens)
        outputs = []
        for layer in self.layers:
            rows = layer(rows, order)
            outputs.append(rows)
        outputs[-1] = self.norm(outputs[-1])
        return outputs


def positional_encoding(timesteps: int, dimension: int) -> torch.Tensor:
    """Sines and cosines of Vaswani et al. 2017, section 3.5. Shape `(1, timesteps, dimension)`."""
    position = torch.arange(timesteps, dtype=torch.float32).unsqueeze(1)
    frequency = torch.exp(
        torch.arange(0, dimension, 2, dtype=torch.float32) * -(math.log(10000.0) / dimension)
    )
    encoding = torch.zeros(timesteps, dimension)
    encoding[:, 0::2] = torch.sin(position * frequency)
    encoding[:, 1::2] = torch.cos(position * frequency)
    return encoding.unsqueeze(0)


class PositionalEncoding(torch.nn.Module):
    """Adds each token's position to its vector; sentences may be longer than the stored table."""

    def __init__(self, input_dim: int, max_len: int = 5000) -> None:
        super().__init__()
        self.positional_encoding: torch.Tensor
        self.register_buffer("positional_encoding", positional_encoding(max_len, input_dim))

    @overrides(check_signature=False)
    def forward(self, tokens: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
        """Shape `(num_tokens, input_dim)`, in and out."""
        table = self.positional_encoding[0]
        if layout.timesteps > table.size(0):
            longer = positional_encoding(layout.timesteps, table.size(1))[0].to(table)
            table = torch.cat([table, longer[table.size(0) :]])
        return tokens + table.index_select(0, layout.tokens % max(layout.timesteps, 1))


@Seq2SeqEncoder.register("bidirectional_language_model_transformer", exist_ok=True)
class BidirectionalLanguageModelTransformer(Seq2SeqEncoder):
    """
    The contextualizer of Transformer ELMo (Peters et al. 2018, "Dissecting Contextual Word
    Embeddings"): a left-to-right and a right-to-left transformer side by side. Neither sees the
    word it has to predict.

    Registered as a `Seq2SeqEncoder` with name "bidirectional_language_model_transformer".

    # Parameters

    input_dim : `int`, required.
        Dimension of the word vectors; a multiple of 8, the number of attention heads.
    hidden_dim : `int`, required.
        Dimension of the feed-forward networks' hidden layer.
    num_layers : `int`, required.
        Transformer layers in each direction.
    dropout : `float`, optional (default = `0.1`)
        Within the transformer layers.
    input_dropout : `float`, optional (default = `None`)
        On the word vectors, once their positions have been added.
    return_all_layers : `bool`, optional (default = `False`)
        Return a list with every layer's output instead of the last one's alone.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        num_layers: int,
        dropout: float = 0.1,
        input_dropout: Optional[float] = None,
        return_all_layers: bool = False,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ConfigurationError(f"num_layers must be at least 1, got {num_layers}.")
        self._return_all_layers = return_all_layers
        # Read by LanguageModel.num_layers and by token embedders over this model.
        self.num_layers = num_layers
        self.input_dim = input_dim
        self.output_dim = 2 * input_dim
        self._forward_transformer = CausalTransformer(input_dim, hidden_dim, num_layers, dropout)
        self._backward_transformer = CausalTransformer(input_dim, hidden_dim, num_layers, dropout)
        self._position = PositionalEncoding(input_dim)
        self._dropout = Dropout(input_dropout or 0.0)

    def get_attention_masks(self, mask: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """
        Who may look at whom, for inspection and for code written against allennlp-models. `forward`
        computes what these masks say without ever making them.

        # Parameters

        mask : `torch.BoolTensor`
            Shape `(batch_size, timesteps)`.

        # Returns

        `Tuple[torch.BoolTensor, torch.BoolTensor]`
            Shape `(batch_size, timesteps, timesteps)`, for the forward and the backward direction:
            whether the position of the second dimension looks at that of the third.
        """
        timesteps = mask.size(1)
        earlier = torch.ones(timesteps, timesteps, dtype=torch.bool, device=mask.device).tril()
        forward = mask.unsqueeze(-1) & earlier
        return forward, forward.transpose(1, 2)

    @overrides(check_signature=False)
    def forward(
        self, token_embeddings: torch.Tensor, mask: torch.Tensor
    ) -> Union[torch.Tensor, List[torch.Tensor]]:
        """
        # Parameters

        token_embeddings : `torch.Tensor`
            Shape `(batch_size, timesteps, input_dim)`.
        mask : `torch.BoolTensor`
            Shape `(batch_size, timesteps)`. Positions outside it are neither seen nor computed.

        # Returns

        `torch.Tensor` or, with `return_all_layers`, a `List[torch.Tensor]` with an entry a layer
            Shape `(batch_size, timesteps, 2 * input_dim)`: the forward direction's half, then the
            backward one's. Zero outside the mask.
        """
        layout = TokenLayout(mask)
        tokens = self._dropout(self._position(layout.pack(token_embeddings), layout))
        dtype, device_type = tokens.dtype, tokens.device.type
        if torch.is_autocast_enabled(device_type):
            if torch.get_autocast_dtype(device_type) == torch.bfloat16:
                # It has float32's range, so that all between the layers can be in it as well: half
                # the memory to move, and no casts.
                tokens = tokens.to(torch.bfloat16)
        forward = self._forward_transformer(tokens, layout.forward)
        backward = self._backward_transformer(tokens, layout.backward)
        if not self._return_all_layers:
            forward, backward = forward[-1:], backward[-1:]
        layers = [layout.unpack(*rows, dtype) for rows in zip(forward, backward)]
        return layers if self._return_all_layers else layers[0]

    @overrides
    def get_input_dim(self) -> int:
        return self.input_dim

    @overrides
    def get_output_dim(self) -> int:
        return self.output_dim

    @overrides
    def is_bidirectional(self) -> bool:
        return True
