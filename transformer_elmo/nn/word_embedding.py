"""Word vectors from a table, for models that know words by their numbers."""

import torch
from overrides import overrides
from torch.nn import functional as F

from transformer_elmo.nn.batch import WordBatch


class WordEmbedding(torch.nn.Module):
    """
    # Parameters

    num_embeddings : `int`
        The vocabulary's words, and padding.
    embedding_dim : `int`
    """

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(num_embeddings, embedding_dim)
        self.output_dim = embedding_dim

    @overrides(check_signature=False)
    def forward(self, batch: WordBatch) -> torch.Tensor:
        """
        # Returns

        `torch.Tensor`
            Shape `(batch_size, timesteps, embedding_dim)`.
        """
        assert batch.token_ids is not None
        return F.embedding(batch.token_ids, self.embedding.weight)
