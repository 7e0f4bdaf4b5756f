"""
The language model: what a sentence's words say about the word after, and the word before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from transformer_elmo.nn.batch import PackedBatch, WordBatch
from transformer_elmo.nn.kernels.dropout import Dropout
from transformer_elmo.nn.kernels.gather_rows import gather_rows
from transformer_elmo.nn.precision import checked_precision, computing
from transformer_elmo.nn.softmax import Softmax
from transformer_elmo.nn.transformer import BidirectionalTransformer
from transformer_elmo.nn.word_encoder import WordEmbedding, WordEncoder


@dataclass(frozen=True)
class EncoderOutput:
    """
    What a model makes of a batch.

    `word_vectors`: shape `(batch_size, timesteps, word_dim)`, without context. `layers`: shapes
    `(batch_size, timesteps, dim)`: the contextualizer's layers, the last one on top; or that one
    alone. `mask`: shape `(batch_size, timesteps)`, boolean. `top_rows`: the top layer of both
    directions as rows of the packing's orders, if the contextualizer has them.
    """

    word_vectors: torch.Tensor
    layers: list[torch.Tensor]
    mask: torch.Tensor
    packing: PackedBatch
    top_rows: tuple[torch.Tensor, torch.Tensor] | None = None

    def predicting(self, bidirectional: bool) -> list[torch.Tensor]:
        """
        The vectors that predict a word, in each direction. Shapes `(num_pairs, dim)`: of the tokens
        with one after them, and of those with one before them.
        """
        packing = self.packing
        if self.top_rows is not None:
            forward, backward = self.top_rows
            return [
                packing.forward.tokens_of_rows(forward, packing.with_next),
                packing.backward.tokens_of_rows(backward, packing.with_previous),
            ]
        tokens = packing.pack(self.layers[-1])
        halves = tokens.chunk(2, dim=-1) if bidirectional else [tokens]
        numbers = (packing.with_next, packing.with_previous)
        return [gather_rows(half, index) for half, index in zip(halves, numbers)]


def predicted(
    packing: PackedBatch, token_ids: torch.Tensor, bidirectional: bool
) -> list[torch.Tensor]:
    """
    What there is to predict, in the order of `EncoderOutput.predicting`. Only words predict.
    allennlp-models lets the padding behind a sentence predict the sentence's last word, too, so
    that its backward loss depends on what else is in the batch.

    `token_ids`: shape `(batch_size, timesteps)`. Returns shapes `(num_pairs,)`: rows of the
    softmax, which knows no padding.
    """
    # The vocabulary's number 0 is padding.
    rows = token_ids.reshape(-1).index_select(0, packing.tokens) - 1
    targets = [rows.index_select(0, packing.with_next + 1)]
    if bidirectional:
        targets.append(rows.index_select(0, packing.with_previous - 1))
    return targets


def losses_of_directions(
    softmax: Softmax, embeddings: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """
    The loss of each prediction, of all directions at once: one draw and one product serve them all.

    `embeddings`: shapes `(num_pairs, embedding_dim)`. `targets`: shapes `(num_pairs,)`. Returns
    shapes `(num_pairs,)`, float32, in nats.
    """
    losses = softmax.token_losses(torch.cat(list(embeddings)), torch.cat(list(targets)))
    return list(losses.split([ids.numel() for ids in targets]))


class LanguageModel(torch.nn.Module):
    """
    A bidirectional language model: words, context, and what both directions predict.

    `words`: from a batch to vectors of shape `(batch_size, timesteps, word_dim)`, and with an
    attribute `output_dim`: a `WordEncoder`, say. `softmax`: without it there are vectors and no
    probabilities. `dropout`: on the vectors as the softmax sees them. `precision`: "bfloat16" runs
    the matrix products in bfloat16. Parameters, statistics and losses stay in float32.
    """

    is_bidirectional = True
    has_all_layers = True

    def __init__(
        self,
        words: torch.nn.Module,
        contextualizer: BidirectionalTransformer,
        softmax: Softmax | None = None,
        dropout: float = 0.0,
        precision: str = "float32",
    ) -> None:
        super().__init__()
        self.precision = checked_precision(precision)
        # Whether the exact softmax is compiled on a GPU.
        self.compiles = False
        self.words = words
        self.contextualizer = contextualizer
        self.softmax = softmax
        self.dropout = Dropout(dropout)
        # What it was built from, and what is known of it: `transformer_elmo.pretrained.config`.
        self.config: Any = None
        self.card: dict[str, Any] = {}
        # What of its weights nobody has looked at yet: `transformer_elmo.pretrained.weights`.
        self.unchecked: Any = None

    def check_softmax(self) -> None:
        """At the first time. Raises `ConfigurationError` if its weights are damaged."""
        if self.unchecked is not None:
            self.unchecked.check()

    def forget_words(self) -> None:
        """Forgets the vectors of words met before, if it has kept any."""
        if isinstance(self.words, WordEncoder):
            self.words.cache.forget()

    @property
    def embeds_ids(self) -> bool:
        """Whether words are known by their numbers, and not by their characters."""
        return isinstance(self.words, WordEmbedding)

    @property
    def word_dim(self) -> int:
        """The dimension of a word's vector without context."""
        return self.words.output_dim  # type: ignore[return-value]

    @property
    def output_dim(self) -> int:
        """The dimension of a word's vector in context: both directions' halves."""
        return self.contextualizer.output_dim

    @property
    def num_layers(self) -> int:
        """The contextualizer's layers, and one more for the word vectors beneath them."""
        return self.contextualizer.num_layers + 1

    def word_vectors(self, batch: WordBatch) -> torch.Tensor:
        """What `encode` gives of words alone. Shape `(batch_size, timesteps, word_dim)`."""
        with computing(self.precision, self.compiles, batch.word_index.device):
            return self.words(batch)

    def encode(self, batch: WordBatch) -> EncoderOutput:
        """All layers of a batch, without the softmax. Threads may share the model."""
        mask = batch.mask
        packing = PackedBatch(mask, batch.facts.lengths)
        with computing(self.precision, self.compiles, mask.device):
            vectors = self.words(batch)
            forward, backward = self.contextualizer.rows(vectors, packing)
        layers = [packing.unpack(*rows, vectors.dtype) for rows in zip(forward, backward)]
        return EncoderOutput(vectors, layers, mask, packing, (forward[-1], backward[-1]))

    def forward(self, batch: WordBatch) -> list[torch.Tensor]:
        """
        The loss of each prediction.

        Returns for the forward and for the backward direction, shape `(num_pairs,)`, float32, in
        nats.
        """
        assert self.softmax is not None and batch.token_ids is not None
        return self.losses(self.encode(batch), batch.token_ids)

    def losses(self, encoded: EncoderOutput, token_ids: torch.Tensor) -> list[torch.Tensor]:
        """As `forward`, for a batch that is encoded already."""
        assert self.softmax is not None
        embeddings: list[Any] = [self.dropout(rows) for rows in encoded.predicting(True)]
        targets = predicted(encoded.packing, token_ids, True)
        with computing(self.precision, self.compiles, token_ids.device):
            return losses_of_directions(self.softmax, embeddings, targets)
