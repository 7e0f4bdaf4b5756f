"""Word vectors from a table, for models that know words by their numbers."""

import torch
from overrides import overrides
from torch.nn import functional as F

from transformer_elmo.nn.batch import WordBatch


def random_embedding(num_embeddings: int, embedding_dim: int) -> torch.nn.Embedding:
    """
    `torch.nn.Embedding` with its own initial values, but none on the meta device: torch would first
    import its compiler there, which takes longer than opening a model.
    """
    weight = torch.empty(num_embeddings, embedding_dim)
    if not weight.is_meta:
        torch.nn.init.normal_(weight)
    return torch.nn.Embedding(num_embeddings, embedding_dim, _weight=weight)


class WordEmbedding(torch.nn.Module):
    """
    # Parameters

    num_embeddings : `int`
        The vocabulary's words, and padding.
    embedding_dim : `int`
    """

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.embedding = random_embedding(num_embeddings, embedding_dim)
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
