"""The word vectors of a whole vocabulary, for finding words that are like others."""

import threading
from typing import Callable, Iterable, Optional, Tuple, Type

import torch
from torch.nn import functional as F

# Words that are encoded together.
WORDS_AT_ONCE = 4096


class Directions:
    """
    In what directions vectors lie from their own mean. Word vectors of a language model have much
    in common, which would make all of them alike.

    # Parameters

    vectors : `torch.Tensor`
        Shape `(num_vectors, dim)`.
    """

    def __init__(self, vectors: torch.Tensor) -> None:
        vectors = vectors.float()
        self._mean = vectors.mean(0)
        self._units = F.normalize(vectors - self._mean, dim=-1)

    def similarities(self, vector: torch.Tensor) -> torch.Tensor:
        """The cosine of each with that of a vector, shape `(dim,)`. Shape `(num_vectors,)`."""
        return self._units @ F.normalize(vector.float() - self._mean, dim=-1)


class WordTable:
    """
    Keeps what is known of the vectors of all words, for as long as a model's weights stay as they
    are and where they are. For 793,471 words of 512 dimensions it takes 1.6 GB.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._weights: Optional[Tuple] = None
        self._directions: Optional[Directions] = None

    def __reduce__(self) -> Tuple[Type["WordTable"], Tuple[()]]:
        # Copies and pickles begin with an empty one; a lock can't be copied.
        return type(self), ()

    def directions(
        self, model: torch.nn.Module, make: Callable[[], Iterable[torch.Tensor]]
    ) -> Directions:
        """
        # Parameters

        model : `torch.nn.Module`
            Whose weights and precision the vectors depend on.
        make : `Callable[[], Iterable[torch.Tensor]]`
            Makes them, in parts of shape `(some_words, dim)`.
        """
        weights: Tuple = tuple((w.data_ptr(), w._version) for w in model.parameters())
        weights += (getattr(model, "precision", None),)
        with self._lock:
            if self._directions is None or self._weights != weights:
                self._directions = Directions(torch.cat(list(make())))
                self._weights = weights
            return self._directions
