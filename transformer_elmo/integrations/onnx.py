"""
A model folder's `model.onnx` at work: vectors of sentences by onnxruntime.

```python
from transformer_elmo import TransformerElmo
from transformer_elmo.integrations.onnx import OnnxElmo

TransformerElmo.open("elmo").save("elmo_onnx", onnx=True)
(vectors,) = OnnxElmo("elmo_onnx").embed(["The cat sat on the mat ."])
print(vectors.shape)
```

onnxruntime computes the vectors, and torch what becomes of them. A program without torch makes the
inputs as the folder's README.md says.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Union

import numpy as np
import torch
from numpy.typing import NDArray

from transformer_elmo.errors import ConfigurationError, becoming_a_model, first_line, needed
from transformer_elmo.files import check_can_read
from transformer_elmo.inference.elmo import TransformerElmo
from transformer_elmo.inference.vectors import SEGMENT_LENGTH, Layers
from transformer_elmo.pretrained import hub
from transformer_elmo.pretrained.config import WordIdsConfig
from transformer_elmo.pretrained.folder import (
    VOCABULARY,
    check_vocabulary,
    read_config,
    reader_of,
)
from transformer_elmo.pretrained.onnx import MODEL, PACKAGES
from transformer_elmo.text.corpus import Sentence
from transformer_elmo.text.reader import checked_sentences
from transformer_elmo.text.vocabulary import WordList


class OnnxElmo:
    """
    `TransformerElmo` for vectors, without a model of torch. It may be used by several threads at
    once, and can be pickled as long as the folder stays where it is.

    - `folder`: A model folder with a `model.onnx`, or the name of one on the Hub.
    - `tokenizer`, `max_tokens`, `segment_length`: As for `TransformerElmo`.
    - `options`: Those of `onnxruntime.InferenceSession`: `providers`, `sess_options`, ...

    Raises `ConfigurationError` if the folder has no such model, or a damaged one; if onnxruntime
    isn't installed.
    """

    def __init__(
        self,
        folder: Union[str, "os.PathLike[str]"],
        *,
        tokenizer: str | Callable[[str], list[str]] | None = None,
        max_tokens: int = 2000,
        segment_length: int | None = SEGMENT_LENGTH,
        **options: Any,
    ) -> None:
        folder = Path(hub.local(os.fspath(folder), more=[hub.GRAPH])).absolute()
        with becoming_a_model(str(folder)):
            config, _ = read_config(folder)
            by_ids = isinstance(config.words, WordIdsConfig)
            vocabulary = WordList.read(folder / VOCABULARY) if by_ids else WordList([])
            if by_ids:
                check_vocabulary(config, vocabulary, str(folder))
            self._reader = reader_of(config, vocabulary)
            graph = _Graph(folder / MODEL, by_ids, options)
        self._elmo = TransformerElmo(
            graph,
            self._reader,
            tokenizer=tokenizer,
            max_tokens=max_tokens,
            segment_length=segment_length,
        )
        self.num_layers, self.dim = graph.num_layers, graph.output_dim
        self.max_tokens, self.segment_length = max_tokens, segment_length

    def embed(
        self,
        sentences: Iterable[Sentence],
        layers: Layers = "mix",
        *,
        weights: Sequence[float] | None = None,
    ) -> list[np.ndarray]:
        """As `TransformerElmo.embed`."""
        return self._elmo.embed(sentences, layers, weights=weights)

    def inputs(self, sentences: Iterable[Sentence]) -> dict[str, NDArray[np.int64]]:
        """
        A batch as `model.onnx` takes it, with boundary tokens around each sentence, for a session
        of one's own: `characters`, shape `(batch_size, timesteps, 50)`, or `token_ids`, shape
        `(batch_size, timesteps)`; and `lengths`, shape `(batch_size,)`.
        """
        read = self._reader
        words = map(read.words, checked_sentences(sentences))
        by_ids = self._elmo.model.embeds_ids
        arrays = [read.with_boundaries(sentence) for sentence in words]
        return self._elmo.model.inputs(read.batch(arrays, torch.device("cpu"), by_ids))


class _Graph(torch.nn.Module):
    """The graph with the face of a `LanguageModel`."""

    softmax = None
    has_all_layers = True

    def __init__(self, path: Path, embeds_ids: bool, options: dict[str, Any]) -> None:
        super().__init__()
        self.path, self.embeds_ids, self.options = path, embeds_ids, options
        self.session = _session(path, options)
        self.num_layers, _, _, self.output_dim = self.session.get_outputs()[0].shape
        # It says that this is a model on the CPU.
        self.register_parameter("nothing", torch.nn.Parameter(torch.zeros(0), False))

    def __getstate__(self) -> dict[str, Any]:
        # onnxruntime's sessions can't be pickled.
        return {name: value for name, value in vars(self).items() if name != "session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "session": _session(state["path"], state["options"])})

    def inputs(self, batch: Any) -> dict[str, NDArray[np.int64]]:
        """A `WordBatch` as the graph takes it."""
        if self.embeds_ids:
            words, name = batch.token_ids, "token_ids"
        else:
            words, name = batch.characters[batch.word_index], "characters"
        return {name: words.numpy(), "lengths": batch.facts.lengths}

    def encode(self, batch: Any) -> SimpleNamespace:
        (layers,) = self.session.run(["layers"], self.inputs(batch))
        word_vectors, *others = torch.from_numpy(layers)
        return SimpleNamespace(word_vectors=word_vectors, layers=others)

    def forget_words(self) -> None:
        pass


def _session(path: Path, options: dict[str, Any]) -> Any:
    onnxruntime = needed("onnxruntime", "OnnxElmo", install=PACKAGES)
    if not path.is_file():
        raise ConfigurationError(
            f"{path.parent} has no {path.name}. Write the folder with it: "
            "transformer-elmo export MODEL FOLDER --onnx"
        )
    check_can_read(path)
    try:
        return onnxruntime.InferenceSession(path, **options)
    except Exception as error:  # Its own exceptions have no base but this.
        raise ConfigurationError(f"{path} can't be opened: {first_line(error)}") from None
