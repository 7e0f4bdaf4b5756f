"""The contextualizer as AllenNLP's configs name it."""

from typing import List, Optional, Tuple, Union

import torch
from allennlp.modules.seq2seq_encoders import Seq2SeqEncoder
from overrides import overrides

from transformer_elmo.nn.batch import PackedBatch
from transformer_elmo.nn.config import ContextualizerConfig
from transformer_elmo.nn.transformer import BidirectionalTransformer


@Seq2SeqEncoder.register("bidirectional_language_model_transformer", exist_ok=True)
class BidirectionalLanguageModelTransformer(BidirectionalTransformer, Seq2SeqEncoder):
    """
    The contextualizer of Transformer ELMo: see
    :class:`~transformer_elmo.nn.transformer.BidirectionalTransformer`.

    Registered as a `Seq2SeqEncoder` with name "bidirectional_language_model_transformer".

    - `input_dim`: Dimension of the word vectors; a multiple of 8, the number of attention heads.
    - `hidden_dim`: Dimension of the feed-forward networks' hidden layer.
    - `num_layers`: Transformer layers in each direction.
    - `dropout`: Within the transformer layers.
    - `input_dropout`: On the word vectors, once their positions have been added.
    - `activation`: Of the feed-forward networks; or "relu_squared", which stock allennlp-models
      doesn't know.
    - `return_all_layers`: Return a list with every layer's output instead of the last one's alone.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        num_layers: int,
        dropout: float = 0.1,
        input_dropout: Optional[float] = None,
        return_all_layers: bool = False,
        activation: str = "relu",
    ) -> None:
        config = ContextualizerConfig(
            input_dim, hidden_dim, num_layers, dropout, input_dropout or 0.0, activation
        )
        super().__init__(config)
        self.config = config
        self._return_all_layers = return_all_layers

    @overrides(check_signature=False)
    def forward(
        self, token_embeddings: torch.Tensor, mask: torch.Tensor
    ) -> Union[torch.Tensor, List[torch.Tensor]]:
        """
        - `token_embeddings`: Shape `(batch_size, timesteps, input_dim)`.
        - `mask`: Shape `(batch_size, timesteps)`. Positions outside it are neither seen nor
          computed.

        Returns shape `(batch_size, timesteps, 2 * input_dim)`: the forward direction's half, then
        the backward one's. Zero outside the mask.
        """
        packing = PackedBatch(mask)
        layers, _ = self.layers(token_embeddings, packing)
        return layers if self._return_all_layers else layers[0]

    def layers(
        self, token_embeddings: torch.Tensor, packing: PackedBatch
    ) -> Tuple[List[torch.Tensor], Tuple[torch.Tensor, torch.Tensor]]:
        """
        Returns all layers, or the top one alone without `return_all_layers`, as `forward` has them;
        and the top layer of both directions as rows of the packing's orders.
        """
        forward, backward = self.rows(token_embeddings, packing)
        wanted = slice(None) if self._return_all_layers else slice(-1, None)
        layers = [
            packing.unpack(*rows, token_embeddings.dtype)
            for rows in zip(forward[wanted], backward[wanted])
        ]
        return layers, (forward[-1], backward[-1])

    @overrides
    def get_input_dim(self) -> int:
        return self.input_dim

    @overrides
    def get_output_dim(self) -> int:
        return self.output_dim

    @overrides
    def is_bidirectional(self) -> bool:
        return True
