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

from transformer_elmo.errors import needed

if TYPE_CHECKING:
    from transformer_elmo.integrations._flair import TransformerElmoEmbeddings

__all__ = ["TransformerElmoEmbeddings"]


def __getattr__(name: str) -> Any:
    # AllenNLP's `--include-package` imports this module. flair, which takes seconds, is imported
    # only by who wants it. (Files of taggers name the module `_flair`, which thus keeps its name.)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    needed("flair", __name__)
    from transformer_elmo.integrations import _flair

    globals()[name] = getattr(_flair, name)
    return globals()[name]
