"""What makes `.vector` and `.similarity` of spaCy's objects those of the rows of `doc.tensor`."""

from dataclasses import dataclass
from typing import Any, Callable, Dict, Union

import numpy as np
from spacy.tokens import Doc, Span, Token

from transformer_elmo.errors import ConfigurationError

Part = Union[Doc, Span, Token]


@dataclass(frozen=True)
class TensorHooks:
    """
    The hooks, which take all they need from the document: they can be pickled with it.

    # Parameters

    dim : `int`
        The dimension of a token's vector.
    """

    dim: int

    def vector(self, part: Part) -> np.ndarray:
        """
        # Returns

        `np.ndarray`
            Shape `(dim,)`: a token's row, or the mean of a span's or a document's rows, as spaCy
            has it; whitespace counts, with zeros. Zeros if there is no token.

        # Raises

        `ConfigurationError`
            If the document's tensor is no longer the one that the hooks are for.
        """
        doc = part if isinstance(part, Doc) else part.doc
        if doc.tensor.shape != (len(doc), self.dim):
            raise ConfigurationError(
                f"doc.tensor should be {len(doc)} vectors of {self.dim} dimensions, and has the "
                f"shape {doc.tensor.shape}. A component after transformer_elmo has replaced it, as "
                "tok2vec does: put transformer_elmo last."
            )
        if isinstance(part, Token):
            return doc.tensor[part.i]
        rows = doc.tensor if isinstance(part, Doc) else doc.tensor[part.start : part.end]
        return rows.mean(axis=0) if len(rows) else np.zeros(self.dim, dtype=np.float32)

    def has_vector(self, part: Part) -> bool:
        """Whether there is more than whitespace."""
        return bool(self.vector(part).any())

    def vector_norm(self, part: Part) -> float:
        return float(np.linalg.norm(self.vector(part)))

    def similarity(self, part: Part, other: Any) -> float:
        """
        The cosine of two vectors, 0 if one is zero. A word in two places is not the same, unlike
        spaCy's own similarity.

        # Raises

        `ValueError`
            If `other` has another kind of vector.
        """
        one, two = self.vector(part), np.asarray(other.vector)
        if one.shape != two.shape:
            raise ValueError(
                f"Only vectors of the same dimension can be compared: this {type(part).__name__} "
                f"has {one.size}, the {type(other).__name__} {two.size}. Both must come from a "
                "pipeline with the same transformer_elmo."
            )
        norms = np.linalg.norm(one) * np.linalg.norm(two)
        return float(one @ two / norms) if norms else 0.0


def add_hooks(doc: Doc) -> Doc:
    """
    Makes the vectors of a document, of its spans and of its tokens those of `doc.tensor`. The
    pipeline does so; it is to be done again where spaCy loses hooks: in `Doc.to_bytes`, and so on
    the way back from the processes of `nlp.pipe(..., n_process=2)`.

    # Parameters

    doc : `Doc`
        With a tensor of shape `(num_tokens, dim)`.

    # Returns

    `Doc`
        The same.

    # Raises

    `ConfigurationError`
        If it has no such tensor.
    """
    if doc.tensor.ndim != 2 or len(doc.tensor) != len(doc):
        raise ConfigurationError(
            f"This document has no vector for each of its {len(doc)} tokens: doc.tensor has the "
            f"shape {doc.tensor.shape}. It hasn't been through a pipeline with transformer_elmo."
        )
    hooks = TensorHooks(doc.tensor.shape[1])
    common: Dict[str, Callable[..., Any]] = {
        "vector": hooks.vector,
        "has_vector": hooks.has_vector,
        "similarity": hooks.similarity,
    }
    doc.user_hooks.update(common, vector_norm=hooks.vector_norm)
    doc.user_token_hooks.update(common, vector_norm=hooks.vector_norm)
    # No norm: where there is a hook for a span's, spaCy calls the one for its vector instead.
    doc.user_span_hooks.update(common)
    return doc


__all__ = ["TensorHooks", "add_hooks"]
