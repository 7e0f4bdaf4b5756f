"""
A model folder's `model.onnx` at work: vectors of sentences by onnxruntime.

```python
from transformer_elmo import TransformerElmo
from transformer_elmo.integrations.onnx import OnnxElmo

TransformerElmo.open("elmo").save("elmo_onnx", onnx=True)
(vectors,) = OnnxElmo("elmo_onnx").embed(["The cat sat on the mat ."])
print(vectors.shape)
```

What is computed, onnxruntime and NumPy compute. The package as a whole imports torch, so torch must
be there; a program without it makes the inputs as the folder's README.md says.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray

from transformer_elmo.errors import ConfigurationError, becoming_a_model, first_line
from transformer_elmo.files import check_can_read
from transformer_elmo.inference.vectors import SEGMENT_LENGTH, Job, Layers, jobs_of, layer_number
from transformer_elmo.pretrained.config import WordIdsConfig
from transformer_elmo.pretrained.folder import (
    VOCABULARY,
    check_vocabulary,
    read_config,
    reader_of,
    tokenizer_of,
)
from transformer_elmo.pretrained.onnx import INSTALL, MODEL
from transformer_elmo.text.corpus import Sentence
from transformer_elmo.text.reader import checked_sentences, in_batches
from transformer_elmo.text.vocabulary import WordList


class OnnxElmo:
    """
    `TransformerElmo` for vectors, without a model of torch. It may be used by several threads at
    once, and can be pickled as long as the folder stays where it is.

    # Parameters

    folder : `str` or `PathLike`
        A model folder with a `model.onnx`.
    tokenizer : `str` or `Callable[[str], List[str]]`, optional (default = the model's)
        For sentences that are strings. "just_spaces" splits at spaces.
    max_tokens : `int`, optional (default = `2000`)
        Tokens in a batch, padding included. A longer sentence goes alone.
    segment_length : `int`, optional (default = `5000`)
        A sentence of more tokens is embedded in segments of so many, which overlap (see
        `transformer_elmo.inference.vectors`). `None` never cuts.
    options
        Those of `onnxruntime.InferenceSession`: `providers`, `sess_options`, ...

    # Raises

    `ConfigurationError`
        If the folder has no such model, or a damaged one; if onnxruntime isn't installed.
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
        folder = Path(folder).absolute()
        with becoming_a_model(str(folder)):
            config, _ = read_config(folder)
            vocabulary = WordList([])
            self._by_ids = isinstance(config.words, WordIdsConfig)
            if self._by_ids:
                vocabulary = WordList.read(folder / VOCABULARY)
                check_vocabulary(config, vocabulary, str(folder))
            self._reader = reader_of(config, vocabulary)
            self._session = _session(folder / MODEL, options)
            self.num_layers, _, _, self.dim = self._session.get_outputs()[0].shape
        if tokenizer is not None:
            self._reader.split = tokenizer_of(tokenizer)
        self.max_tokens = max_tokens
        self.segment_length = segment_length
        self._folder, self._options = folder, options

    def __getstate__(self) -> dict[str, Any]:
        # onnxruntime's sessions can't be pickled.
        return {name: value for name, value in vars(self).items() if name != "_session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _session=_session(state["_folder"] / MODEL, state["_options"]))

    def embed(
        self,
        sentences: Iterable[Sentence],
        layers: Layers = "mix",
        *,
        weights: Sequence[float] | None = None,
    ) -> list[np.ndarray]:
        """
        What `TransformerElmo.embed` gives.

        # Parameters

        sentences : `Iterable[Sentence]`
        layers : `str` or `int`, optional (default = `"mix"`)
            "mix" is the weighted sum of all layers, "top" the last one, "all" each of them, a
            number that one: 0 is the word vectors (twice, once for each direction), -1 the top.
        weights : `Sequence[float]`, optional (default = `None`)
            One for each layer of a mix, taken as they are. By default the mix is the mean.

        # Returns

        `List[np.ndarray]`
            For each sentence, shape `(num_words, dim)`; with "all" `(num_layers, num_words, dim)`.
            Boundary tokens have no vector here.

        # Raises

        `ConfigurationError` or `ValueError`
            If there is no such layer, or `weights` don't fit.
        `TypeError`
            If a sentence isn't one.
        """
        number = layer_number(layers, self.num_layers, ("mix", "all"))
        if weights is not None and (layers != "mix" or len(weights) != self.num_layers):
            raise ValueError(
                f'weights are for layers = "mix", {self.num_layers} numbers, one for each layer: '
                f"got {len(weights)} for {layers!r}."
            )
        shares = [1 / self.num_layers] * self.num_layers if weights is None else weights

        def chosen(found: NDArray[np.float32]) -> NDArray[np.float32]:
            if layers == "mix":
                return np.tensordot(np.asarray(shares, dtype=np.float32), found, 1)
            # A copy, so that the padded batch can go.
            return (found if number is None else found[number]).copy()

        def run(jobs: list[Job]) -> list[tuple[NDArray[np.float32], bool]]:
            filled = [job.tokens for job in jobs if job.tokens]
            embedded = iter(self._layers(filled).swapaxes(0, 1) if filled else ())
            nothing = np.zeros((self.num_layers, 0, self.dim), dtype=np.float32)
            return [
                (
                    chosen(next(embedded)[:, job.keep] if job.tokens else nothing),
                    job.ends_sentence,
                )
                for job in jobs
            ]

        jobs = jobs_of(
            map(self._reader.words, checked_sentences(sentences)),
            self._reader.start_tokens,
            self._reader.end_tokens,
            self.segment_length,
        )
        results: list[np.ndarray] = []
        parts: list[np.ndarray] = []
        for part, ends_sentence in in_batches(
            jobs, lambda job: len(job.tokens), run, self.max_tokens
        ):
            parts.append(part)
            if ends_sentence:
                results.append(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-2))
                parts = []
        return results

    def inputs(self, sentences: Sequence[Sentence]) -> dict[str, NDArray[np.int64]]:
        """
        A batch as `model.onnx` takes it, with boundary tokens around each sentence, for a session
        of one's own.

        # Returns

        `Dict[str, NDArray[int64]]`
            `characters`, shape `(batch_size, timesteps, 50)`, or `token_ids`, shape `(batch_size,
            timesteps)`; and `lengths`, shape `(batch_size,)`.
        """
        read = self._reader
        words = map(read.words, checked_sentences(sentences))
        return self._inputs([read.with_boundaries(sentence) for sentence in words])

    def _inputs(self, tokens: Sequence[Sequence[str]]) -> dict[str, NDArray[np.int64]]:
        arrays = self._reader.arrays(tokens, with_ids=self._by_ids)
        if self._by_ids:
            return {"token_ids": arrays["token_ids"], "lengths": arrays["lengths"]}
        characters = arrays["characters"][arrays["word_index"]]
        return {"characters": characters, "lengths": arrays["lengths"]}

    def _layers(self, tokens: Sequence[Sequence[str]]) -> NDArray[np.float32]:
        """Shape `(num_layers, batch_size, timesteps, dim)`."""
        (layers,) = self._session.run(["layers"], self._inputs(tokens))
        return layers


def _session(path: Path, options: dict[str, Any]) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigurationError(
            f"OnnxElmo needs the package onnxruntime ({error}): {INSTALL}"
        ) from None
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


__all__ = ["OnnxElmo"]
