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

import copy
import logging
import math
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List

import torch
from torch.nn import functional as F

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.model_config import CharactersConfig
from transformer_elmo.model_folder import CARD
from transformer_elmo.nn.language_model import LanguageModel
from transformer_elmo.nn.transformer import (
    NUM_HEADS,
    CausalTransformer,
    TransformerLayer,
    position_frequencies,
)
from transformer_elmo.nn.word_encoder import WordEncoder
from transformer_elmo.text.words import (
    BEGIN_WORD,
    BOUNDARY_WORDS,
    END_WORD,
    MAX_WORD_LENGTH,
    WORD_PADDING,
)

MODEL, DATA = "model.onnx", "model.onnx.data"

# The first that has layer normalization is 17, and torch's exporter begins at 18.
OPSET = 18

# Up to so many bytes the weights are within the graph's file; protobuf can't read 2 GiB.
MOST_WITHIN = 2**30

# The first with `torch.onnx.export(dynamic_shapes=...)`.
_FIRST_TORCH = (2, 6)

INSTALL = "pip install onnx onnxscript onnxruntime"


class CharacterWords(torch.nn.Module):
    """
    What `WordEncoder` computes, by ordinary operations, with the same parameters.

    # Parameters

    encoder : `WordEncoder`
    """

    def __init__(self, encoder: WordEncoder) -> None:
        super().__init__()
        cnn = encoder.cnn()
        self.activation, self.projects_first = cnn.activation, cnn.projects_first
        self.embedding = encoder.embedding
        self.convolutions, self.highways = encoder.convolutions, encoder.highways
        self.projection, self.norm = encoder.projection, encoder.norm
        self.output_dim = encoder.output_dim

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        """From shape `(batch_size, timesteps, num_characters)` to `(..., output_dim)`."""
        # Of a text's words, a third is distinct; all padding is one word more.
        distinct, index = torch.unique(characters.flatten(0, 1), dim=0, return_inverse=True)
        vectors = F.embedding(index, self._encoded(distinct))
        return vectors.view(characters.size(0), characters.size(1), self.output_dim)

    def _encoded(self, words: torch.Tensor) -> torch.Tensor:
        columns = self.embedding(words).transpose(1, 2)
        maxima = [convolution(columns).amax(-1) for convolution in self.convolutions]
        vectors = self.activation(torch.cat(maxima, -1))
        if self.projects_first:
            vectors = self.projection(vectors)
        for highway in self.highways:
            new, gate = highway(vectors).chunk(2, -1)
            vectors = torch.lerp(torch.relu(new), vectors, torch.sigmoid(gate))
        if not self.projects_first:
            vectors = self.projection(vectors)
        return vectors if self.norm is None else self.norm(vectors)


class AllLayers(torch.nn.Module):
    """
    What a language model's batch is in all layers, by ordinary operations on the padded batch, with
    the same parameters: what can be written as a graph.

    # Parameters

    model : `LanguageModel`
    """

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        contextualizer = model.contextualizer
        words: Any = model.words
        self.words = CharacterWords(words) if isinstance(words, WordEncoder) else words.embedding
        self.forward_transformer = contextualizer._forward_transformer
        self.backward_transformer = contextualizer._backward_transformer
        self.position_table: torch.Tensor
        self.register_buffer("position_table", contextualizer._position.positional_encoding[0])
        # As torch computes them: a runtime's last digit in one is the first one of a far angle.
        self.frequencies: torch.Tensor
        self.register_buffer("frequencies", position_frequencies(contextualizer.input_dim))

    def forward(self, words: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """
        # Parameters

        words : `torch.Tensor`
            Characters, shape `(batch_size, timesteps, num_characters)`, or numbers, shape
            `(batch_size, timesteps)`.
        lengths : `torch.Tensor`
            Shape `(batch_size,)`.

        # Returns

        `torch.Tensor`
            Shape `(num_layers, batch_size, timesteps, 2 * word_dim)`.
        """
        places = torch.arange(words.size(1), device=words.device)
        present = places < lengths.unsqueeze(1)
        # Of each place in its row: which others are seen.
        before = (places <= places.unsqueeze(1)).unsqueeze(0)
        # What is at padding sees padding: a row of scores with nothing in it would be NaN.
        after = (places >= places.unsqueeze(1)) & (present.unsqueeze(1) | ~present.unsqueeze(2))

        vectors = self.words(words)
        placed = vectors + self._positions(places)
        layers = [
            torch.cat([vectors, vectors], -1),
            *(
                torch.cat(halves, -1)
                for halves in zip(
                    _stack(self.forward_transformer, placed, before),
                    _stack(self.backward_transformer, placed, after),
                )
            ),
        ]
        return torch.where(present.unsqueeze(-1), torch.stack(layers), 0.0)

    def _positions(self, places: torch.Tensor) -> torch.Tensor:
        """Those of `transformer_elmo.nn.transformer.PositionalEncoding`, beyond its table too."""
        angles = places.to(torch.float32).unsqueeze(1) * self.frequencies
        computed = torch.stack([torch.sin(angles), torch.cos(angles)], -1).flatten(1)
        num_stored = self.position_table.size(0)
        stored = F.embedding(places.clamp(max=num_stored - 1), self.position_table)
        return torch.where((places < num_stored).unsqueeze(1), stored, computed)


def _stack(
    transformer: CausalTransformer, rows: torch.Tensor, seen: torch.Tensor
) -> List[torch.Tensor]:
    """
    # Parameters

    transformer : `CausalTransformer`
    rows : `torch.Tensor`
        Shape `(batch_size, timesteps, dim)`.
    seen : `torch.Tensor`
        Shape `(batch_size or 1, timesteps, timesteps)`, boolean.

    # Returns

    `List[torch.Tensor]`
        Every layer's output, shapes `(batch_size, timesteps, dim)`.
    """
    outputs = []
    layer: Any
    for layer in transformer.layers:
        attention, feed_forward = layer.sublayer
        rows = rows + _attention(layer, attention.norm(rows), seen)
        hidden = torch.relu(layer.feed_forward.w_1(feed_forward.norm(rows)))
        if layer.feed_forward.is_squared:
            hidden = hidden * hidden
        rows = rows + layer.feed_forward.w_2(hidden)
        outputs.append(rows)
    outputs[-1] = transformer.norm(outputs[-1])
    return outputs


def _attention(layer: TransformerLayer, rows: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2)."""
    *projections, output = layer.self_attn.linears
    size = rows.size(-1) // NUM_HEADS
    query, key, value = (
        projection(rows).unflatten(-1, (NUM_HEADS, size)).transpose(1, 2)
        for projection in projections
    )
    scores = query @ key.transpose(-1, -2) / math.sqrt(size)
    scores = torch.where(seen.unsqueeze(1), scores, -math.inf)
    return output((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


def check_packages() -> None:
    """
    # Raises

    `ConfigurationError`
        If what writes the graph isn't there.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            f"ONNX needs the packages onnx and onnxscript ({error}): {INSTALL}"
        ) from None
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < _FIRST_TORCH:
        raise ConfigurationError(
            f"ONNX needs torch {'.'.join(map(str, _FIRST_TORCH))} or later; this is "
            f"{torch.__version__}."
        )


def write_onnx(model: LanguageModel, folder: Path) -> None:
    """
    Writes `model.onnx` into a model folder, and what it takes and gives into the folder's card.
    Weights of more than 1 GiB are beside it, in `model.onnx.data`.

    # Parameters

    model : `LanguageModel`
        With its config.
    folder : `Path`
    """
    # The exporter traces with the module's parameters exchanged for others; nobody else is to see.
    module = copy.deepcopy(AllLayers(model)).cpu().eval()
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
        single: Dict[str, int] = {**BOUNDARY_WORDS, **words.own_characters}
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

Needs `{INSTALL}`.
"""


__all__ = [
    "DATA",
    "INSTALL",
    "MODEL",
    "OPSET",
    "AllLayers",
    "CharacterWords",
    "check_packages",
    "write_onnx",
]
