"""The word vectors of a whole vocabulary, for finding words that are like others."""

import torch
from torch.nn import functional as F

# Words that are encoded together.
WORDS_AT_ONCE = 4096


class Directions:
    """
    In what directions vectors lie from their own mean. Word vectors of a language model have much
    in common, which would make all of them alike.

    `vectors`: shape `(num_vectors, dim)`.
    """

    def __init__(self, vectors: torch.Tensor) -> None:
        vectors = vectors.float()
        self._mean = vectors.mean(0)
        self._units = F.normalize(vectors - self._mean, dim=-1)

    def similarities(self, vector: torch.Tensor) -> torch.Tensor:
        """The cosine of each with that of a vector, shape `(dim,)`. Shape `(num_vectors,)`."""
        return self._units @ F.normalize(vector.float() - self._mean, dim=-1)
