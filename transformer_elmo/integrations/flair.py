"""
Transformer ELMo as word embeddings of flair, for its taggers and classifiers.

```python
from flair.data import Sentence
from transformer_elmo.integrations.flair import TransformerElmoEmbeddings

embeddings = TransformerElmoEmbeddings("elmo")  # a SequenceTagger takes them
(sentence,) = embeddings.embed(Sentence("The cat sat on the mat ."))
print([token.embedding.shape for token in sentence])
```
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformer_elmo.integrations._flair import TransformerElmoEmbeddings


def __getattr__(name: str) -> Any:
    # AllenNLP's `--include-package` imports this module. flair, which takes seconds, is imported
    # only by who wants it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from transformer_elmo.integrations import _flair
    except ImportError as error:
        raise ImportError(
            f"{__name__} can't import flair ({error}). Install it: pip install flair"
        ) from error
    return getattr(_flair, name)


__all__ = ["TransformerElmoEmbeddings"]
