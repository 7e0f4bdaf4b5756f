"""
A language model's vectors as one ONNX graph, `model.onnx`, for onnxruntime and others of its kind.
The softmax is no part of it. `transformer_elmo.integrations.onnx` runs it.

Inputs:

    characters  int64, (batch, words, 50)  each word as `text.words.character_ids` gives it; 0 at
                                           padding
    token_ids   int64, (batch, words)      instead, where a model knows words by their numbers
    lengths     int64, (batch,)            how many words come first in each row; all else is
                                           padding

Output:

    layers      float32, (num_layers, batch, words, dim)
                                           as `TransformerElmo` counts them: the word vectors,
                                           twice, then the contextualizer's layers; 0 at padding

Boundary tokens are words to the graph, as they are in the core's batches: whoever calls it puts
them around each sentence and leaves out their vectors. All is computed in float32, whatever the
model's precision and the type of the folder's weights.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from transformer_elmo.errors import needed
from transformer_elmo.nn.config import CharactersConfig
from transformer_elmo.nn.language_model import LanguageModel
from transformer_elmo.nn.reference import ReferenceModel
from transformer_elmo.pretrained.folder import CARD
from transformer_elmo.text.word_table import (
    BEGIN_WORD,
    BOUNDARY_WORDS,
    END_WORD,
    MAX_WORD_LENGTH,
    WORD_PADDING,
)

MODEL = "model.onnx"

# The first that has layer normalization is 17, and torch's exporter begins at 18.
OPSET = 18

# Up to so many bytes the weights are within the graph's file; protobuf can't read 2 GiB.
MOST_WITHIN = 2**30

PACKAGES = "onnx onnxscript onnxruntime"


class DistinctWords(torch.nn.Module):
    """Each distinct word of a batch once: a third of a text's words; all padding is one more."""

    def __init__(self, words: torch.nn.Module) -> None:
        super().__init__()
        self.words = words

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        """From shape `(batch, words, num_characters)` to `(batch, words, dim)`."""
        distinct, index = torch.unique(characters.flatten(0, 1), dim=0, return_inverse=True)
        vectors = F.embedding(index, self.words(distinct.unsqueeze(0)).squeeze(0))
        return vectors.unflatten(0, characters.shape[:2])


def graph_module(model: LanguageModel) -> ReferenceModel:
    """What is written as a graph: the reference without a softmax, on the CPU and in float32."""
    module = ReferenceModel(model.config.without_softmax())
    weights = model.state_dict()
    module.load_state_dict({k: v for k, v in weights.items() if not k.startswith("softmax.")})
    if not model.embeds_ids:
        module.words = DistinctWords(module.words)
    return module.eval()


def check_packages() -> None:
    """Raises `ConfigurationError` if what writes the graph isn't there."""
    for name in ("onnx", "onnxscript"):
        needed(name, "ONNX", install=PACKAGES)


def write_onnx(model: LanguageModel, folder: Path) -> None:
    """
    Writes `model.onnx` into a model folder, and what it takes and gives into the folder's card.
    Weights of more than 1 GiB are beside it, in `model.onnx.data`.

    `model`: with its config.
    """
    module = graph_module(model)
    batch, words = (torch.export.Dim(name, min=1) for name in ("batch", "words"))
    name = "token_ids" if model.embeds_ids else "characters"
    # Any sizes but 0 and 1, which the exporter would take for constants.
    shape = (2, 3) if model.embeds_ids else (2, 3, MAX_WORD_LENGTH)
    with torch.no_grad(), _quiet():
        program: Any = torch.onnx.export(
            module,
            (torch.zeros(shape, dtype=torch.long), torch.tensor([3, 2])),
            dynamo=True,
            opset_version=OPSET,
            input_names=[name, "lengths"],
            output_names=["layers"],
            dynamic_shapes=({0: batch, 1: words}, {0: batch}),
            verbose=False,
        )
        tensors = module.state_dict().values()
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        program.save(folder / MODEL, external_data=size > MOST_WITHIN)
    with open(folder / CARD, "a", encoding="utf-8") as card:
        card.write(_card(model))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings, of packages that nothing here uses and of its own parts."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _card(model: LanguageModel) -> str:
    """What the folder's card says of the graph, for those without this package, too."""
    words, text = model.config.words, model.config.text
    if isinstance(words, CharactersConfig):
        single: dict[str, int] = {**BOUNDARY_WORDS, **words.own_characters}
        exceptions = ", ".join(f"{number + 1} for `{word}`" for word, number in single.items())
        name, shape = "characters", f"batch, words, {MAX_WORD_LENGTH}"
        meaning = (
            f"of a word: {BEGIN_WORD + 1}, its bytes in UTF-8 plus 1 ({MAX_WORD_LENGTH - 2} at "
            f"most), {END_WORD + 1}, and {WORD_PADDING + 1} to the end; in place of the bytes "
            f"{exceptions}"
        )
    else:
        name, shape = "token_ids", "batch, words"
        meaning = "of a word: its line in vocabulary.txt, counted from 1"
    marks = [
        f"{verb} with " + " ".join(f"`{token}`" for token in tokens)
        for verb, tokens in (("begins", text.start_tokens), ("ends", text.end_tokens))
        if tokens
    ]
    boundaries = f"\nEvery sentence {' and '.join(marks)}, which are words here.\n" if marks else ""
    return f"""
## ONNX

`{MODEL}` (opset {OPSET}, float32) gives the vectors of all layers.

| | | |
| --- | --- | --- |
| `{name}` | int64 ({shape}) | {meaning}; 0 at padding |
| `lengths` | int64 (batch) | how many words come first in each row |
| `layers` | float32 ({model.num_layers}, batch, words, {model.output_dim}) | \
layer 0 is the word vectors, twice; 0 at padding |
{boundaries}
```python
from transformer_elmo.integrations.onnx import OnnxElmo

elmo = OnnxElmo("path/of/this/folder")
vectors = elmo.embed(["It is raining ."])
```

Needs `pip install {PACKAGES}`.
"""
