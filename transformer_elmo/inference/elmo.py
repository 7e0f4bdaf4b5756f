"""A trained language model at work: vectors, probabilities and perplexities of sentences."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar, Union, cast

import numpy as np
import torch

from transformer_elmo import with_allennlp
from transformer_elmo.errors import ConfigurationError, becoming_a_model
from transformer_elmo.inference.evaluation import Totals, WholeText, listed_rows
from transformer_elmo.inference.neighbors import WORDS_AT_ONCE, Directions
from transformer_elmo.inference.scores import SentenceScores, score_encoded
from transformer_elmo.inference.vectors import (
    SEGMENT_LENGTH,
    Job,
    Layers,
    all_layers,
    jobs_of,
    layer_number,
    mixed,
)
from transformer_elmo.memory import BatchSplitter
from transformer_elmo.nn.caches import Kept, weights_unshared
from transformer_elmo.nn.forks import one_thread_in_forks
from transformer_elmo.nn.language_model import predicted
from transformer_elmo.nn.precision import checked_precision
from transformer_elmo.nn.softmax import Softmax
from transformer_elmo.pretrained import archive as archived_models
from transformer_elmo.pretrained import folder as model_folder
from transformer_elmo.pretrained import hub
from transformer_elmo.pretrained.allennlp_config import NotStandardError
from transformer_elmo.text.corpus import Sentence, find_shards, read_sentences, variables_with
from transformer_elmo.text.reader import checked_sentence, checked_sentences, in_batches
from transformer_elmo.text.vocabulary import WordList

Corpus = Union[str, "os.PathLike[str]", Iterable[Sentence]]

T = TypeVar("T")
ResultT = TypeVar("ResultT")

# How a gap is written.
GAP = "___"

# Words that may be like one in a sentence, by the language model and by their own vectors each.
CANDIDATES = 100

EXPECTED = "Expected a model folder, a model.tar.gz, the folder of a training run, or a URL."

WHOLE = (
    "Probabilities need the whole sentence: take a device with more memory (the CPU may have it), "
    "or shorter sentences."
)


class Candidate(NamedTuple):
    """A word for a gap."""

    word: str
    probability: float


class Neighbor(NamedTuple):
    """A word that is like another, and the cosine of their vectors."""

    word: str
    similarity: float


class TransformerElmo:
    """
    A language model with the rules by which it reads sentences.

    A sentence is a list of tokens, a string for the tokenizer, or a mapping with either as JSON
    lines have it (`tokens` or `words`, `sentence` or `text`); all else is a `TypeError`. Sentences
    may come in any number and order; they are run in batches of similar length, and results have
    their order. The same sentence has the same vectors (to 1e-5, in float32) alone or in any
    company. The object may be used by several threads at once, and can be pickled. With `progress`,
    its methods draw a bar.

    - `model`: A `LanguageModel`, which is put in evaluation mode.
    - `reader`: A `transformer_elmo.nn.batch.BatchReader`: what words, characters and boundary
      tokens are. Under AllenNLP, `model` and `reader` may be AllenNLP's.
    - `tokenizer`: For sentences that are strings: a name, a function from a string to its words, or
      AllenNLP's `Tokenizer`; by default the model's. "just_spaces" splits at spaces.
    - `max_tokens`: Tokens in a batch, padding included. A longer sentence goes alone. A batch for
      which memory runs out is run in parts, with a warning.
    - `segment_length`: A sentence of more tokens is embedded in segments of so many, which overlap
      (see `transformer_elmo.inference.vectors`). `None` never cuts. Scores are never made in
      segments.
    """

    name: str = ""
    """What it was opened from."""

    def __init__(
        self,
        model: Any,
        reader: Any,
        *,
        tokenizer: Any = None,
        max_tokens: int = 2000,
        segment_length: int | None = SEGMENT_LENGTH,
    ) -> None:
        if max_tokens < 1:
            raise ConfigurationError(f"max_tokens must be at least 1, got {max_tokens}.")
        adapted = with_allennlp.adapted(model, reader, tokenizer)
        if adapted is not None:
            (model, reader), tokenizer = adapted, None
        one_thread_in_forks()
        self._model = model.eval()
        # Whether anyone but this object may hold the model, and so change its weights.
        self._is_shared = True
        self.max_tokens = max_tokens
        self.segment_length = segment_length
        self._reader = reader
        self._directions = Kept()
        self._splitter = BatchSplitter()
        if tokenizer is not None:
            reader.split = model_folder.tokenizer_of(tokenizer)

    @classmethod
    def open(
        cls,
        path: Union[str, "os.PathLike[str]"],
        device: str | int | torch.device | None = None,
        precision: str | None = None,
        *,
        softmax: bool = True,
        compile: bool | None = None,
        overrides: str | dict[str, Any] | None = None,
        weights_file: str | None = None,
        **options: Any,
    ) -> "TransformerElmo":
        """
        - `path`: A model folder, a `model.tar.gz`, the folder of a training run, a URL, or a
          repository of the Hugging Face Hub as `hf://user/model` or `hf://user/model@revision`.
          Archives written by AllenNLP 0.7 to 2.x work; so does the language model in an archive of
          a model on top of one.
        - `device`: "cpu", "cuda:1", or AllenNLP's numbers: -1 is the CPU, 1 the second GPU. By
          default a GPU if there is one.
        - `precision`: "float32" or "bfloat16" for the matrix products; by default the model's.
        - `softmax`: `False` leaves the softmax out: vectors alone, a quarter of the memory for the
          billion-word model.
        - `compile`: Whether `torch.compile` makes the exact softmax, on a GPU: its first batch
          takes some seconds more. On a CPU it changes nothing. By default as the model has it.
        - `overrides`, `weights_file`: As for `allennlp.models.load_archive`, which must be
          installed for them.
        - `options`: The constructor's.

        Raises `ConfigurationError` if there is no model, or another kind of model; if there is no
        such device.
        """
        where = device_of(device)
        if precision is not None:
            checked_precision(precision)
        name = os.fspath(path)
        if not name:
            raise ConfigurationError(
                f"The path of the language model is empty.{variables_with(name)} {EXPECTED}"
            )
        with becoming_a_model(name):
            model, reader = _opened(name, softmax, overrides, weights_file)
        if precision is not None:
            model.precision = precision
        if compile is not None:
            model.compiles = compile
        if where.type != "cpu":
            # All of it is about to be read anyway.
            _check_softmax(model)
        elmo = cls(model.to(where), reader, **options)
        elmo.name = name
        elmo._is_shared = False
        return elmo

    from_archive = open

    @classmethod
    def from_pretrained(
        cls,
        path: Union[str, "os.PathLike[str]"],
        *args: Any,
        revision: str | None = None,
        token: str | None = None,
        **options: Any,
    ) -> "TransformerElmo":
        """
        As `open`, where `user/model` is a repository of the Hub if nothing lies at such a path.

        - `revision`: A branch, a tag or a commit of the repository; by default its main branch.
        - `token`: For a private repository; by default that of `HF_TOKEN` or `hf auth login`.
        """
        name = hub.name_of(os.fspath(path), revision)
        local = hub.local(name, token)
        try:
            elmo = cls.open(local, *args, **options)
        except ConfigurationError as error:
            raise type(error)(str(error).replace(local, name)) from None
        elmo.name = name
        return elmo

    def save(
        self,
        folder: Union[str, "os.PathLike[str]"],
        *,
        with_softmax: bool = True,
        dtype: str = "float32",
        onnx: bool = False,
        replace: bool = False,
        card: dict[str, Any] | None = None,
    ) -> None:
        """
        Writes a model folder, which :meth:`open` opens without AllenNLP.

        - `with_softmax`: Without it the folder is for vectors alone, and an eighth as large for the
          billion-word model.
        - `dtype`: "float32", "float16" or "bfloat16": how weights are written.
        - `onnx`: Whether to write `model.onnx`, too: see `transformer_elmo.pretrained.onnx`.
        - `replace`: Whether a folder that isn't empty may give way.
        - `card`: What else the model card is to say: `license`, `language` and `tags` as the Hub
          knows them ("apache-2.0", "en"), and facts for its table by any other names.

        Raises `ConfigurationError` if the folder is taken or can't be written, or the model has
        parts that a folder has no place for; if ONNX's packages aren't there.
        """
        if with_softmax:
            _check_softmax(self._model)
        model, reader = self._model, self._reader
        if hasattr(model, "as_core"):
            # AllenNLP's: what it was built from can be read from its modules.
            model, reader = model.as_core(reader)
        if model.config is None:
            raise ConfigurationError("This model was put together by hand, and has no config.")
        model.card.update(card or {})
        more = None
        if onnx:
            # Nobody else needs its packages.
            from transformer_elmo.pretrained.onnx import check_packages, write_onnx

            check_packages()
            more = partial(write_onnx, model)
        options: Any = {"with_softmax": with_softmax, "dtype": dtype, "replace_existing": replace}
        model_folder.save_folder(model, reader, folder, more=more, **options)

    save_pretrained = save

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        message: str = "Upload a model folder of transformer-elmo",
        **options: Any,
    ) -> str:
        """
        Saves a model folder, by the options of `save`, as the repository `user/model` of the Hub,
        which is made if it isn't there. Returns its address.

        - `private`: Whether a new repository is private; by default as the user's account has it.
        - `token`: Of a user who may write there; by default that of `HF_TOKEN` or `hf auth login`.

        Raises `ConfigurationError` as `save` does, and if the Hub can't be reached, or refuses.
        """
        with TemporaryDirectory() as folder:
            self.save(folder, **options)
            return hub.upload(Path(folder), name, private, token, message)

    def __repr__(self) -> str:
        layers = f"{self.num_layers - 1} and words" if self.has_all_layers else "the top one"
        softmax = "" if self._model.softmax is not None else " (their vectors, no probabilities)"
        return (
            f"TransformerElmo(model: {self.name or type(self._model).__name__}, layers: {layers}, "
            f"dimensions: {self.dim:,}, words: {len(self.vocab):,}{softmax}, device: {self.device})"
        )

    @property
    def model(self) -> Any:
        """
        The model. What is kept of its weights follows each change of them, however it is made; to
        be sure, they are read at each call once somebody has asked for the model.
        """
        self._is_shared = True
        return self._model

    @property
    def device(self) -> torch.device:
        return next(self._model.parameters()).device

    @property
    def dim(self) -> int:
        """The dimension of a word's vector."""
        return self._model.output_dim

    @property
    def num_layers(self) -> int:
        """How many layers there are to choose from, that of the word vectors included."""
        return self._model.num_layers

    @property
    def has_all_layers(self) -> bool:
        """Whether the contextualizer gives all its layers, or its top one only."""
        return self._model.has_all_layers

    @property
    def vocab(self) -> WordList:
        """The words that the model predicts."""
        return self._reader.vocabulary

    @property
    def num_boundaries(self) -> tuple[int, int]:
        """How many boundary tokens there are before and after a sentence's words."""
        return len(self._reader.start_tokens), len(self._reader.end_tokens)

    def words(self, sentence: Sentence) -> list[str]:
        """A sentence's words, without boundary tokens."""
        return self._reader.words(sentence)

    # Vectors

    def embed(
        self,
        sentences: Iterable[Sentence],
        layers: Layers = "mix",
        *,
        weights: Sequence[float] | None = None,
        progress: bool = False,
    ) -> list[np.ndarray]:
        """
        - `layers`: "mix" is the weighted sum of all layers, "top" the last one, "all" each of them,
          a number that one: 0 is the word vectors (twice, once for each direction), -1 the top.
        - `weights`: One for each layer of a mix, taken as they are. By default all are the same and
          add up to one, as in a token embedder that nothing has been learned with.

        Returns for each sentence shape `(num_words, dim)`; with "all" `(num_layers, num_words,
        dim)`. Boundary tokens have no vector here. Raises `ValueError` if there is no such layer,
        or `weights` don't fit.
        """
        return list(self.embed_stream(sentences, layers, weights=weights, progress=progress))

    def embed_padded(
        self,
        sentences: Iterable[Sentence],
        layers: Layers = "mix",
        *,
        weights: Sequence[float] | None = None,
        track_gradients: bool = False,
        progress: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        As `embed_tensors`, in one tensor: shape `(num_sentences, max_words, dim)`, or with "all"
        `(num_sentences, num_layers, max_words, dim)`, zero at padding; and the mask, shape
        `(num_sentences, max_words)`, boolean.
        """
        options = {"track_gradients": track_gradients, "progress": progress}
        vectors = self.embed_tensors(sentences, layers, weights=weights, **options)
        lengths = [v.size(-2) for v in vectors]
        # On the host, which would have to wait for its device to say how long the longest is.
        longest = max(lengths, default=0)
        mask = torch.arange(longest) < torch.tensor(lengths, dtype=torch.long).unsqueeze(-1)
        shape = (0, self.num_layers, 0, self.dim) if layers == "all" else (0, 0, self.dim)
        padded = [torch.nn.functional.pad(v, (0, 0, 0, longest - v.size(-2))) for v in vectors]
        found = torch.stack(padded) if padded else torch.zeros(shape, device=self.device)
        return found, mask.to(self.device)

    def embed_tensors(
        self,
        sentences: Iterable[Sentence],
        layers: Layers = "mix",
        *,
        weights: Sequence[float] | None = None,
        track_gradients: bool = False,
        progress: bool = False,
    ) -> list[torch.Tensor]:
        """
        As `embed`, with tensors on the model's device instead of arrays. With `track_gradients`,
        gradients flow through them to the model's parameters.
        """
        with torch.set_grad_enabled(track_gradients):
            words = self._words_of(sentences, "embedding", progress)
            return list(self._embedded(words, layers, weights))

    def embed_stream(
        self,
        sentences: Iterable[Sentence],
        layers: Layers = "mix",
        *,
        weights: Sequence[float] | None = None,
        progress: bool = False,
        skip: int | None = None,
    ) -> Iterator[np.ndarray]:
        """
        As `embed`, for any number of sentences: arrays come one by one, in order, and only some
        batches' worth of them are in memory. With `skip`, the first so many sentences are left
        out, and on the CPU the others' arrays are to the bit what they are with `skip=0`.
        """
        words = self._words_of(sentences, "embedding", progress)
        iterator = self._embedded(words, layers, weights, skip)
        while True:
            # Not around the `yield`: the caller's own computations are none of our business.
            with torch.no_grad():
                vectors = next(iterator, None)
            if vectors is None:
                return
            yield vectors.cpu().numpy()

    def _words_of(
        self, sentences: Iterable[Sentence], what: str, progress: bool
    ) -> Iterator[list[str]]:
        """Each sentence's words, with a bar that says what is done if wanted."""
        return map(self._reader.words, _tracked(checked_sentences(sentences), what, progress))

    def _embedded(
        self,
        sentences: Iterable[list[str]],
        layers: Layers,
        weights: Sequence[float] | None,
        skip: int | None = None,
    ) -> Iterator[torch.Tensor]:
        layers = self.checked_layers(layers, weights)
        segments = (
            f"Lower segment_length (now {self.segment_length}): longer texts are embedded in "
            "segments of so many tokens."
        )
        reader, parts = self._reader, []
        vectors_of = partial(self._vectors_of, layers=layers, weights=weights)
        boundaries = (reader.start_tokens, reader.end_tokens)
        for vectors, ends_sentence in in_batches(
            jobs_of(sentences, *boundaries, self.segment_length),
            len,
            partial(self._in_parts, vectors_of, alone=segments),
            self.max_tokens,
            lambda job: job.sentence >= (skip or 0),
            # Which words were met before decides which are encoded together, and so the last bit.
            (lambda: None) if skip is None else self._model.forget_words,
        ):
            parts.append(vectors)
            if ends_sentence:
                yield parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)
                parts = []

    def _in_parts(
        self, function: Callable[[list[T]], list[ResultT]], items: list[T], alone: str = WHOLE
    ) -> list[ResultT]:
        """The function's results for a batch; in parts where memory isn't enough."""
        key, forget = f"max_tokens (now {self.max_tokens})", self._model.forget_words
        return list(chain(*self._splitter.run(function, items, len, key, alone, forget)))

    def _encode(self, tokens: list[list[str]], with_ids: bool = True) -> tuple[Any, Any]:
        """Sentences' layers, an `EncoderOutput`, and their words' numbers."""
        batch = self._reader.batch(tokens, self.device, with_ids)
        with weights_unshared(not self._is_shared):
            return self._model.encode(batch), batch.token_ids

    def checked_layers(self, layers: Layers, weights: Sequence[float] | None = None) -> Layers:
        """
        `layers` as `embed` understands it, with one name for each layer. Errors are `embed`'s.
        """
        if weights is not None and layers != "mix":
            raise ValueError(f'weights are for layers = "mix", but layers is {layers!r}.')
        if layers in ("top", -1):
            # A contextualizer of another kind may not say how many it has.
            return "top"
        if not self.has_all_layers:
            raise ConfigurationError(
                "This language model's contextualizer returns its top layer only: use "
                'layers = "top".'
            )
        number = layer_number(layers, self.num_layers, ("mix", "all"))
        if number == self.num_layers - 1:
            return "top"
        if weights is not None and len(weights) != self.num_layers:
            raise ValueError(
                f"weights must be {self.num_layers} numbers, one a layer: got {len(weights)}."
            )
        return layers if number is None else number

    def _vectors_of(
        self, jobs: list[Job], layers: Layers, weights: Sequence[float] | None
    ) -> list[tuple[torch.Tensor, bool]]:
        """Shape `(num_words, dim)`, or `(num_layers, num_words, dim)`, and `Job.ends_sentence`."""
        filled = [job.tokens for job in jobs if job.tokens]
        embedded = iter(self._layers(filled, layers, weights) if filled else ())
        shape = (self.num_layers, 0, self.dim) if layers == "all" else (0, self.dim)
        results = []
        for job in jobs:
            vectors = torch.zeros(shape, device=self.device)
            if job.tokens:
                vectors = next(embedded)[..., job.keep, :]
                if not torch.is_grad_enabled():
                    # A copy, so that the padded batch can go.
                    vectors = vectors.clone()
            results.append((vectors, job.ends_sentence))
        return results

    def _layers(
        self, tokens: list[list[str]], layers: Layers, weights: Sequence[float] | None
    ) -> torch.Tensor:
        """Shape `(batch_size, timesteps, dim)`, or `(batch_size, num_layers, timesteps, dim)`."""
        encoded, _ = self._encode(tokens, with_ids=self._model.embeds_ids)
        if layers == "top":
            return encoded.layers[-1].float()
        found = [layer.float() for layer in all_layers(encoded.word_vectors, encoded.layers)]
        if layers == "all":
            return torch.stack(found, dim=1)
        return mixed(found, weights) if layers == "mix" else found[int(layers)]

    # Probabilities

    def score(
        self, sentences: Iterable[Sentence], top_k: int = 0, *, progress: bool = False
    ) -> list[SentenceScores]:
        """
        The exact probability of every word, over the whole vocabulary: see `SentenceScores`. With
        `top_k`, the likeliest words in each place are named, too. Raises `ConfigurationError` if
        the model has no softmax.
        """
        return list(self.score_stream(sentences, top_k, progress=progress))

    def score_stream(
        self, sentences: Iterable[Sentence], top_k: int = 0, *, progress: bool = False
    ) -> Iterator[SentenceScores]:
        """As `score`, for any number of sentences: results come one by one, in order."""
        words = self._words_of(sentences, "scoring", progress)
        return self.score_tokens(map(self._reader.with_boundaries, words), top_k)

    def score_tokens(
        self, sentences: Iterable[Sentence], top_k: int = 0
    ) -> Iterator[SentenceScores]:
        """As `score_stream`, for sentences that have their boundary tokens already."""
        if top_k < 0:
            raise ValueError(f"top_k must not be negative, got {top_k}.")
        softmax, bidirectional = self._softmax(), self._model.is_bidirectional

        @torch.no_grad()
        def scores(batch: list[list[str]]) -> list[SentenceScores]:
            encoded, ids = self._encode(batch)
            return score_encoded(encoded, softmax, ids, self.vocab, bidirectional, top_k, batch)

        tokens = self._words_of(sentences, "", False)
        return in_batches(tokens, len, partial(self._in_parts, scores), self.max_tokens)

    def _softmax(self) -> Softmax:
        softmax = self._model.softmax
        if softmax is None:
            raise ConfigurationError(
                "This language model has no softmax (it was saved or opened for vectors alone), so "
                "it can't say how probable a word is. Open the archive that was trained, or a "
                "model folder with its softmax."
            )
        _check_softmax(self._model)
        return softmax

    def evaluate(
        self,
        corpus: Corpus,
        *,
        words_of: Union[str, "os.PathLike[str]", Sequence[str], None] = None,
        bits_per_character: bool = False,
        progress: bool = False,
        is_part: bool = False,
    ) -> dict[str, Any]:
        """
        What `allennlp evaluate` reports, with the same numbers.

        - `corpus`: A file, directory, glob or URL of text, one sentence a line; or sentences. Those
          without a word are skipped, as blank lines are.
        - `words_of`: A file of words, one a line, or the words, whose perplexity is wanted by
          itself: see `transformer_elmo.inference.evaluation.listed_rows`.
        - `bits_per_character`: Whether to say what the text costs, its unknown words spelled out:
          see `transformer_elmo.inference.evaluation`.
        - `is_part`: Whether other parts of the text are evaluated elsewhere. It may be empty then.

        Returns `loss`, `perplexity`, `forward_perplexity`, `backward_perplexity` (if
        bidirectional), `num_sentences`, `num_tokens`, `num_out_of_vocabulary`; with `words_of`
        `listed_perplexity` and `num_listed_predictions`, with `bits_per_character` that and
        `num_characters`. Raises `ConfigurationError` if there is nothing to predict.
        """
        name, sentences = "these sentences", cast(Any, corpus)
        if isinstance(corpus, (str, os.PathLike)):
            name = repr(os.fspath(corpus))
            try:
                shards = find_shards(corpus)
            except ConfigurationError as error:
                raise ConfigurationError(
                    f"{error} If that is a sentence and no path, put it in a list."
                ) from None
            sentences = chain.from_iterable(map(read_sentences, shards))
        words = self._words_of(sentences, "evaluating", progress)
        self._softmax()
        if isinstance(words_of, (str, os.PathLike)):
            words_of = WordList.read(words_of).words
        totals = Totals(None if words_of is None else listed_rows(words_of, self.vocab))
        whole = WholeText(self._reader, self.vocab) if bits_per_character else None

        @torch.no_grad()
        def found(batch: list[list[str]]) -> list[Any]:
            encoded, ids = self._encode(batch)
            losses, unknown = self._model.losses(encoded, ids), self.vocab.unknown
            outside = 0 if unknown is None else int((ids[:, 1:] == unknown).sum())
            rows = predicted(encoded.packing, ids, self._model.is_bidirectional)
            return [(losses, len(batch), outside, rows)]

        def run(batch: list[list[str]]) -> list[int]:
            for part in self._in_parts(found, batch):
                totals.add(*part)
            if whole is not None:
                whole.add(batch)
            return [1] * len(batch)

        tokens = map(self._reader.with_boundaries, filter(None, words))
        for _ in in_batches(tokens, len, run, self.max_tokens):
            pass
        if not (totals.num_tokens or is_part):
            raise ConfigurationError(
                f"There is no word to predict in {name}: {totals.num_sentences} sentences."
            )
        metrics = totals.metrics()
        if whole is not None:
            metrics.update(whole.metrics(totals))
        return metrics

    def perplexity(self, corpus: Corpus, *, progress: bool = False) -> float:
        """`evaluate(corpus)["perplexity"]`."""
        return self.evaluate(corpus, progress=progress)["perplexity"]

    def fill(self, sentence: Sentence, top_k: int = 5, gap: str = GAP) -> list[Candidate]:
        """
        The likeliest words for a gap, given what is to its left and to its right: `combined` in
        `SentenceScores`. One of the words of `sentence` is `gap`; in a text, it may stand anywhere.

        Returns words and their probabilities, likeliest first. Boundary tokens and the entry for
        unknown words are left out. Raises `ValueError` if there isn't exactly one gap, or nothing
        around it.
        """
        gaps = self.fill_all(sentence, top_k, gap)
        if len(gaps) != 1:
            raise ValueError(
                f"Expected one sentence with one gap, a word {gap!r}: got {len(gaps)} of them in "
                f"{sentence!r:.200}."
            )
        return gaps[0]

    def fill_all(self, sentence: Sentence, top_k: int = 5, gap: str = GAP) -> list[list[Candidate]]:
        """
        As `fill`, for a sentence with any number of gaps, in their order. Each is filled by itself:
        the others are unknown words to it.
        """
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}.")
        words = self._words_with_gaps(sentence, gap)
        no_words = self._no_words()
        tokens = self._reader.with_boundaries(words)
        (scores,) = self.score_tokens([tokens], top_k + len(no_words))
        view = scores.forward if scores.combined is None else scores.combined
        filled = []
        for place, word in enumerate(words, start=len(self._reader.start_tokens)):
            if word != gap:
                continue
            top = view.top[place]
            if top is None:
                raise ValueError("There is nothing around the gap to fill it from.")
            found = [Candidate(*pair) for pair in top if pair[0] not in no_words]
            filled.append(found[:top_k])
        return filled

    # Words that are alike

    def nearest(
        self,
        word: str,
        top_k: int = 10,
        *,
        sentence: Sentence | None = None,
        progress: bool = False,
    ) -> list[Neighbor]:
        """
        Words of the vocabulary that are like a word, by the cosine of their vectors, from which
        the mean of all has been taken away.

        By itself, a word's vector is made of its characters. In a sentence it is the mean of all
        layers, and others are like it if they get a vector like its own when they stand in its
        place. Tried are those that are likely there, and those that are like the word by itself.
        The first call encodes the vocabulary, 793,471 words in some minutes of a CPU.

        - `word`: Needn't be in the vocabulary, if the model knows words by their characters.
        - `sentence`: One of its words is `word`; of several, the first one is meant.

        Returns the most similar first, without the word itself, boundary tokens, and the entry for
        unknown words. Raises `ValueError` if `word` isn't in `sentence`.
        """
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}.")
        if not isinstance(word, str) or not word:
            raise ValueError(f"Expected a word, got {word!r:.80}.")
        if sentence is None:
            return self._nearest_by_itself(word, top_k, progress)
        words = self._reader.words(sentence)
        if word not in words:
            raise ValueError(f"There is no word {word!r:.80} in {words!r:.200}.")
        place = words.index(word)
        before, after = words[:place], words[place + 1 :]
        number = max(CANDIDATES, top_k)
        likely: list[Candidate] = []
        if self._model.softmax is not None and len(words) > 1:
            likely = self.fill([*before, GAP, *after], number, GAP)
        similar = self._nearest_by_itself(word, number, progress)
        found = {word: None, **dict.fromkeys(pair[0] for pair in [*similar, *likely])}
        swapped = ([*before, candidate, *after] for candidate in found)
        vectors = self.embed_tensors(swapped, "mix" if self.has_all_layers else "top")
        here = torch.stack([rows[place] for rows in vectors])
        similarities = Directions(here).similarities(here[0]).tolist()
        neighbors = [pair for pair in map(Neighbor, found, similarities) if pair.word != word]
        return sorted(neighbors, key=lambda neighbor: -neighbor.similarity)[:top_k]

    def _nearest_by_itself(self, word: str, top_k: int, progress: bool) -> list[Neighbor]:
        vocabulary = [self.vocab[number] for number in range(1, len(self.vocab) + 1)]

        def made() -> Directions:
            starts = range(0, len(vocabulary), WORDS_AT_ONCE)
            tracked = _tracked(starts, "encoding the vocabulary", progress)
            parts = (vocabulary[start : start + WORDS_AT_ONCE] for start in tracked)
            return Directions(torch.cat(list(map(self._word_vectors, parts))))

        weights = [p for n, p in self._model.named_parameters() if "softmax" not in n]
        setting = (getattr(self._model, "precision", None),)
        with torch.no_grad(), weights_unshared(not self._is_shared):
            directions = self._directions.get(weights, setting, made)
            similarities = directions.similarities(self._word_vectors([word])[0])
        left_out = self._no_words() | {word}
        best = similarities.topk(min(len(vocabulary), top_k + len(left_out)))
        words = map(vocabulary.__getitem__, best.indices.tolist())
        found = map(Neighbor, words, best.values.tolist())
        return [neighbor for neighbor in found if neighbor.word not in left_out][:top_k]

    def _word_vectors(self, words: list[str]) -> torch.Tensor:
        """Without context. Shape `(num_words, word_dim)`."""
        batch = self._reader.batch([words], self.device, with_ids=self._model.embeds_ids)
        return self._model.word_vectors(batch)[0]

    def _no_words(self) -> set[str]:
        """What the vocabulary has beside words."""
        boundaries = [*self._reader.start_tokens, *self._reader.end_tokens]
        return {*boundaries, self.vocab.unknown_word}

    def _words_with_gaps(self, sentence: Sentence, gap: str) -> list[str]:
        sentence = checked_sentence(sentence)
        words = self._reader.words(sentence)
        if any(gap != word and gap in word.split() for word in words):
            raise ValueError(
                f"Expected one sentence, a text or its words: got sentences, {sentence!r:.200}. "
                "Fill them one by one."
            )
        if not isinstance(sentence, str) or words.count(gap) == sentence.count(gap):
            return words
        # Something is written right beside a gap, or the tokenizer takes it apart.
        first, *rest = map(self._reader.words, sentence.split(gap))
        return [*first, *(word for part in rest for word in (gap, *part))]


def _check_softmax(model: Any) -> None:
    # AllenNLP's has none that nobody has looked at.
    getattr(model, "check_softmax", lambda: None)()


def _opened(path: str, softmax: bool, overrides: Any, weights_file: str | None) -> tuple[Any, Any]:
    special = overrides is not None or weights_file is not None
    refusal: NotStandardError | None = None
    if not special:
        try:
            archive = archived_models.open_archive(path, softmax)
            if archive is not None:
                return archive
        except NotStandardError as error:
            refusal = error
    if "://" not in path and not archived_models.in_place_of_archive(Path(path)).exists():
        raise ConfigurationError(
            f"There is no archive {path}.{variables_with(path)} {EXPECTED} The current "
            f"directory is {os.getcwd()}."
        )
    found = with_allennlp.opened(path, softmax, overrides, weights_file)
    if found is not None:
        return found
    raise refusal or ConfigurationError(
        f"Nothing here opens {path}. {EXPECTED}"
        + (" Overrides and weights_file need AllenNLP." if special else "")
    )


def _tracked(items: Iterable[T], desc: str, progress: bool) -> Iterable[T]:
    if not progress:
        return items
    return with_allennlp.tracked(items, desc, len(items) if hasattr(items, "__len__") else None)  # type: ignore[arg-type]


def device_of(device: str | int | torch.device | None) -> torch.device:
    """What `TransformerElmo.open` takes `device` for; a `ConfigurationError` if it isn't there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(device, int):
        device = "cpu" if device < 0 else f"cuda:{device}"
    try:
        result = torch.device(device)
    except RuntimeError as error:
        raise ConfigurationError(f"There is no device {device!r}: {error}") from None
    if result.type == "cuda" and (result.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"There is no device {str(result)!r}: torch sees {torch.cuda.device_count()} GPUs. The "
            "CPU is 'cpu', or -1."
        )
    return result
