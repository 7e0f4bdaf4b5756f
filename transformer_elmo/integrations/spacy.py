"""
Transformer ELMo as a component of spaCy's pipelines. spaCy finds it by itself, without an import.

```python
import spacy

nlp = spacy.blank("en")
nlp.add_pipe("sentencizer")
nlp.add_pipe("transformer_elmo", config={"path": "elmo"})
print(nlp("The cat sat on the mat.")[1].similarity(nlp("The dog ran home.")[1]))
```

What makes `.vector` and `.similarity` of spaCy's objects those of the rows of `doc.tensor`.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Union

import numpy as np
import srsly
from spacy.language import Language
from spacy.pipeline import Pipe
from spacy.tokens import Doc, Span, Token

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.inference.elmo import TransformerElmo
from transformer_elmo.nn.forks import one_thread_in_forks
from transformer_elmo.pretrained.folder import CONFIG, VOCABULARY, WEIGHTS

Part = Union[Doc, Span, Token]


@dataclass(frozen=True)
class TensorHooks:
    """
    The hooks, which take all they need from the document: they can be pickled with it. `dim`: the
    dimension of a token's vector.
    """

    dim: int

    def vector(self, part: Part) -> np.ndarray:
        """
        Shape `(dim,)`: a token's row, or the mean of a span's or a document's rows, as spaCy has
        it; whitespace counts, with zeros. Zeros if there is no token. Raises `ConfigurationError`
        if the document's tensor is no longer the one that the hooks are for.
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
        spaCy's own similarity. Raises `ValueError` if `other` has another kind of vector.
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
    Makes the vectors of a document, of its spans and of its tokens those of `doc.tensor`, shape
    `(num_tokens, dim)`, and returns it. The pipeline does so; it is to be done again where spaCy
    loses hooks: in `Doc.to_bytes`, and so on the way back from the processes of `nlp.pipe(...,
    n_process=2)`. Raises `ConfigurationError` if the document has no such tensor.
    """
    if doc.tensor.ndim != 2 or len(doc.tensor) != len(doc):
        raise ConfigurationError(
            f"This document has no vector for each of its {len(doc)} tokens: doc.tensor has the "
            f"shape {doc.tensor.shape}. It hasn't been through a pipeline with transformer_elmo."
        )
    hooks = TensorHooks(doc.tensor.shape[1])
    common: dict[str, Any] = {
        name: getattr(hooks, name) for name in ("vector", "has_vector", "similarity")
    }
    doc.user_hooks.update(common, vector_norm=hooks.vector_norm)
    doc.user_token_hooks.update(common, vector_norm=hooks.vector_norm)
    # No norm: where there is a hook for a span's, spaCy calls the one for its vector instead.
    doc.user_span_hooks.update(common)
    return doc


# The folder within what spaCy gives a component for its own.
FOLDER = "model"


@Language.factory(
    "transformer_elmo",
    default_config={"layers": "mix", "max_tokens": 2000, "device": None},
    assigns=["doc.tensor"],
)
class TransformerElmoComponent(Pipe):
    """
    Sets `doc.tensor` to a vector for each token, and with it the vectors and similarities of
    documents, spans and tokens. It is best the last component: `tok2vec` and what listens to it
    keep vectors of their own in `doc.tensor`.

    The model sees a sentence at a time, where something before it in the pipeline finds
    sentences; or else all of a document. Tokens are its words, as they are. Whitespace it doesn't
    see; its vectors are zero.

    `nlp.add_pipe("transformer_elmo", config={"path": "folder"})` opens the model, and says what is
    wrong with it. What spaCy writes of the pipeline has all of it but the softmax, so that nothing
    else is needed to load it. The config's keys:

    - `path`: A model folder, a `model.tar.gz`, the folder of a training run, or a URL. A pipeline
      that was loaded doesn't need it any more; `None` is for one that `from_bytes` fills.
    - `layers`: "mix", the default, is the mean of all layers, "top" the last one, "all" each of
      them, side by side, a number that one: 0 is the word vectors, -1 the top.
    - `max_tokens`: Tokens in a batch, padding included; by default 2000. A longer sentence goes
      alone.
    - `device`: "cpu" or "cuda:1", say, or a GPU's number; by default a GPU if there is one.
    """

    def __init__(
        self,
        nlp: Language,
        name: str,
        path: str | None,
        layers: int | str,
        max_tokens: int,
        device: int | str | None,
    ) -> None:
        self.name, self.path, self.layers = name, path, layers
        self.max_tokens, self.device = max_tokens, device
        self._elmo: TransformerElmo | None = None
        # Each of several processes may open the model for itself.
        one_thread_in_forks()
        # What spaCy has read of a pipeline that was saved names components before they are made.
        if path is not None and name not in nlp._meta.get("pipeline", ()):
            self._open(path)

    @property
    def elmo(self) -> TransformerElmo:
        """
        The model. Raises `ConfigurationError` or `ValueError` if there is none at the path, or it
        has no such layer; if there is no such device.
        """
        return self._elmo or self._open(self.path or "")

    def _open(self, path: str | Path) -> TransformerElmo:
        elmo = TransformerElmo.open(path, self.device, softmax=False, max_tokens=self.max_tokens)
        elmo.checked_layers(self.layers)
        self._elmo = elmo
        return elmo

    def __call__(self, doc: Doc) -> Doc:
        """The document itself, with vectors."""
        (doc,) = self._annotated(deque([doc]))
        return doc

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 128) -> Iterator[Doc]:
        """
        The documents themselves, in order, with vectors. The sentences of `batch_size` documents
        are sorted into batches together.
        """
        docs = iter(stream)
        while waiting := deque(islice(docs, batch_size)):
            try:
                yield from self._annotated(waiting)
            except Exception as error:
                self.get_error_handler()(self.name, self, list(waiting), error)

    def _annotated(self, waiting: "deque[Doc]") -> Iterator[Doc]:
        """Takes documents away as their vectors are there: one by one, they need little memory."""
        found = [_sentences(doc) for doc in waiting]
        words = ([word for _, word in sentence] for of_doc in found for sentence in of_doc)
        vectors = self.elmo.embed_stream(words, self.layers)
        dim = self.elmo.dim * (self.elmo.num_layers if self.layers == "all" else 1)
        for of_doc in found:
            tensor: np.ndarray = np.zeros((len(waiting[0]), dim), dtype=np.float32)
            for sentence in of_doc:
                rows = next(vectors)
                places = [place for place, _ in sentence]
                tensor[places] = np.concatenate(rows, -1) if self.layers == "all" else rows
            doc = waiting.popleft()
            doc.tensor = tensor
            yield add_hooks(doc)

    # Writing and reading

    def to_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> None:
        """
        Writes the model to a folder. `exclude` is spaCy's, for components with parts that can be
        left out. Raises `ConfigurationError` if there is no model, or the folder can't be written.
        """
        self.elmo.save(Path(path) / FOLDER, with_softmax=False, replace=True)

    def from_disk(
        self, path: str | Path, *, exclude: Iterable[str] = ()
    ) -> "TransformerElmoComponent":
        """Reads what `to_disk` has written, or raises `ConfigurationError`."""
        self._open(Path(path) / FOLDER)
        return self

    def to_bytes(self, *, exclude: Iterable[str] = ()) -> bytes:
        """As `to_disk`, as bytes."""
        with TemporaryDirectory() as folder:
            self.to_disk(folder)
            return srsly.msgpack_dumps(
                {name: (Path(folder) / FOLDER / name).read_bytes() for name in _FILES}
            )

    def from_bytes(
        self, bytes_data: bytes, *, exclude: Iterable[str] = ()
    ) -> "TransformerElmoComponent":
        """As `from_disk`, from what `to_bytes` has made."""
        try:
            files = srsly.msgpack_loads(bytes_data)
            contents = {name: bytes(files[name]) for name in _FILES}
        except Exception as error:
            raise ConfigurationError(
                f"These bytes are not what transformer_elmo's to_bytes makes: {error!r:.200}"
            ) from None
        with TemporaryDirectory() as folder:
            (Path(folder) / FOLDER).mkdir()
            for name, content in contents.items():
                (Path(folder) / FOLDER / name).write_bytes(content)
            # The weights are mapped into memory from a file that is gone by its name only.
            return self.from_disk(folder)


_FILES = (CONFIG, VOCABULARY, WEIGHTS)


def _sentences(doc: Doc) -> list[list[tuple[int, str]]]:
    """
    The places and the words of each sentence; whitespace is no word. Tokens would keep documents.
    """
    if not isinstance(doc, Doc):
        raise TypeError(f"Expected a spaCy Doc, got {type(doc).__name__} {doc!r:.80}.")
    spans = doc.sents if doc.has_annotation("SENT_START") else [doc[:]]
    found = ([(token.i, token.text) for token in span if not token.is_space] for span in spans)
    return [sentence for sentence in found if sentence]


# What the package's entry point names.
make_transformer_elmo = TransformerElmoComponent
