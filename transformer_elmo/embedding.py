"""
A trained language model as an object to work with: vectors, probabilities and perplexities of
sentences.
"""

import os
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import (
    Any,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import numpy as np
import torch
from allennlp.common.checks import ConfigurationError
from allennlp.common.params import parse_overrides
from allennlp.data import DatasetReader, Tokenizer
from allennlp.nn import util

from transformer_elmo.data.corpus import find_shards, read_sentences
from transformer_elmo.models.language_model import LanguageModel
from transformer_elmo.models.loading import load_language_model
from transformer_elmo.models.scoring import (
    NO_WORD_IDS,
    SentenceScores,
    oov_index,
    perplexity,
    score_batch,
    softmax_of,
)
from transformer_elmo.modules.segments import segments
from transformer_elmo.sentences import Sentence, SentenceIndexer, in_batches

Layers = Union[str, int]
"""`"mix"`, `"all"`, `"top"`, or a layer's number; 0 is the layer of word vectors."""

Corpus = Union[str, "os.PathLike[str]", Iterable[Sentence]]

# The longest sentence that the embeddings' positions were made for. Vectors of longer ones are made
# in windows of this many tokens: attention costs the square of the length.
SEGMENT_LENGTH = 5000


class Candidate(NamedTuple):
    """A word for a gap."""

    word: str
    probability: float


@dataclass(frozen=True)
class _Job:
    """Tokens to be embedded together, and which of their vectors are wanted."""

    tokens: List[str]
    keep: slice
    ends_sentence: bool


class TransformerElmo:
    """
    A language model with the rules by which it reads sentences.

    A sentence is a list of tokens, or a string for the tokenizer. Sentences may come in any number
    and order; they are run in batches of similar length, and results have their order. The same
    sentence has the same vectors (to 1e-5, in float32) alone or in any company. The object may be
    used by several threads at once.

    # Parameters

    model : `LanguageModel`, required.
        It is put in evaluation mode.
    reader : `DatasetReader`, required.
        The one it was trained with: it says what words, characters and boundary tokens are.
    tokenizer : `str` or `Tokenizer`, optional (default = the reader's)
        For sentences that are strings. "just_spaces" splits at spaces.
    max_tokens : `int`, optional (default = `2000`)
        Tokens in a batch, padding included. A longer sentence goes alone.
    segment_length : `int`, optional (default = `5000`)
        A sentence of more tokens is embedded in windows of so many, which overlap (see
        `transformer_elmo.modules.segments`). `None` never cuts. Scores are never made in
        windows.
    """

    def __init__(
        self,
        model: LanguageModel,
        reader: DatasetReader,
        *,
        tokenizer: Union[str, Tokenizer, None] = None,
        max_tokens: int = 2000,
        segment_length: Optional[int] = SEGMENT_LENGTH,
    ) -> None:
        if max_tokens < 1:
            raise ConfigurationError(f"max_tokens must be at least 1, got {max_tokens}.")
        self.model = model.eval()
        self.max_tokens = max_tokens
        self.segment_length = segment_length
        self._indexer = SentenceIndexer(reader, model.vocab, tokenizer)
        word_dim = model._text_field_embedder.get_output_dim()
        self._word_copies = max(1, self.dim // word_dim)

    @classmethod
    def from_archive(
        cls,
        archive_file: Union[str, "os.PathLike[str]"],
        device: Union[str, int, torch.device, None] = None,
        precision: Optional[str] = None,
        *,
        overrides: Union[str, Dict[str, Any], None] = None,
        weights_file: Optional[str] = None,
        **options: Any,
    ) -> "TransformerElmo":
        """
        # Parameters

        archive_file : `str` or `PathLike`, required.
            A `model.tar.gz`, the folder of a training run, or a URL. Archives written by AllenNLP
            0.x, 1 and 2 work.
        device : `str`, `int` or `torch.device`, optional (default = a GPU if there is one)
            "cpu", "cuda:1", or AllenNLP's numbers: -1 is the CPU, 1 the second GPU.
        precision : `str`, optional (default = the archive's)
            "float32" or "bfloat16" for the matrix products.
        overrides, weights_file : optional
            As for `allennlp.models.load_archive`.
        options
            The constructor's.

        # Raises

        `ConfigurationError`
            If there is no archive, or it holds another kind of model; if there is no such
            device.
        """
        changes: Dict[str, Any] = {} if precision is None else {"model.precision": precision}
        if isinstance(overrides, str):
            overrides = _parsed(overrides)
        changes = {**(overrides or {}), **changes}
        archive, _ = load_language_model(archive_file, "TransformerElmo", changes, weights_file)
        model = archive.model
        assert isinstance(model, LanguageModel)
        return cls(model.to(_device(device)), archive.validation_dataset_reader, **options)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dim(self) -> int:
        """The dimension of a word's vector."""
        return self.model._contextualizer.get_output_dim()

    @property
    def num_layers(self) -> int:
        """How many layers there are to choose from, that of the word vectors included."""
        return self.model.num_layers()

    @property
    def has_all_layers(self) -> bool:
        """Whether the contextualizer gives all its layers, or its top one only."""
        return bool(getattr(self.model._contextualizer, "_return_all_layers", False))

    def words(self, sentence: Sentence) -> List[str]:
        """A sentence's words, without boundary tokens."""
        return self._indexer.words(sentence)

    # Vectors

    def embed(
        self,
        sentences: Iterable[Sentence],
        layers: Layers = "mix",
        *,
        weights: Optional[Sequence[float]] = None,
        padded: bool = False,
        track_gradients: bool = False,
    ) -> Union[List[np.ndarray], List[torch.Tensor], Tuple[torch.Tensor, torch.Tensor]]:
        """
        # Parameters

        sentences : `Iterable[Sentence]`
        layers : `str` or `int`, optional (default = `"mix"`)
            "mix" is the weighted sum of all layers, "top" the last one, "all" each of them, a
            number that one: 0 is the word vectors (twice, once for each direction), -1 the top.
        weights : `Sequence[float]`, optional (default = `None`)
            One for each layer of a mix, taken as they are. By default all are the same and add
            up to one, as in a token embedder that nothing has been learned with.
        padded : `bool`, optional (default = `False`)
            Return one tensor and a mask.
        track_gradients : `bool`, optional (default = `False`)
            Return tensors through which gradients flow to the model's parameters.

        # Returns

        `List[np.ndarray]`
            For each sentence, shape `(num_words, dim)`; with "all" `(num_layers, num_words, dim)`.
            Boundary tokens have no vector here. With `track_gradients`, a list of tensors.
        `Tuple[torch.Tensor, torch.Tensor]`
            With `padded`: shape `(num_sentences, max_words, dim)`, or `(num_sentences, num_layers,
            max_words, dim)`, and the mask, shape `(num_sentences, max_words)`, boolean.

        # Raises

        `ValueError`
            If there is no such layer, or `weights` don't fit.
        `TypeError`
            If a sentence isn't one.
        """
        with torch.set_grad_enabled(track_gradients):
            vectors = list(self._embedded(_sentences(sentences), layers, weights))
            if not padded:
                return vectors if track_gradients else [v.cpu().numpy() for v in vectors]
            return self._pad(vectors, layers)

    def embed_stream(
        self,
        sentences: Iterable[Sentence],
        layers: Layers = "mix",
        *,
        weights: Optional[Sequence[float]] = None,
    ) -> Iterator[np.ndarray]:
        """
        As `embed`, for any number of sentences: arrays come one by one, in order, and only some
        batches' worth of them are in memory.
        """
        iterator = self._embedded(_sentences(sentences), layers, weights)
        while True:
            # Not around the `yield`: the caller's own computations are none of our business.
            with torch.no_grad():
                vectors = next(iterator, None)
            if vectors is None:
                return
            yield vectors.cpu().numpy()

    def _embedded(
        self, sentences: Iterable[Sentence], layers: Layers, weights: Optional[Sequence[float]]
    ) -> Iterator[torch.Tensor]:
        layers = self.checked_layers(layers, weights)
        run = partial(self._run, layers=layers, weights=weights)
        parts: List[torch.Tensor] = []
        jobs = self._jobs(sentences)
        for vectors, ends_sentence in in_batches(
            jobs, lambda job: len(job.tokens), run, self.max_tokens
        ):
            parts.append(vectors)
            if ends_sentence:
                yield parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)
                parts = []

    def checked_layers(self, layers: Layers, weights: Optional[Sequence[float]] = None) -> Layers:
        """
        `layers` as `embed` understands it, with one name for each layer.

        # Raises

        `ValueError` or `ConfigurationError`
            If this model has no such layer, or `weights` don't fit.
        """
        if weights is not None and layers != "mix":
            raise ValueError(f'weights are for layers = "mix", but layers is {layers!r}.')
        if layers == "top" or layers == -1:
            return "top"
        if not self.has_all_layers:
            raise ConfigurationError(
                "This language model's contextualizer, a "
                f"{type(self.model._contextualizer).__name__}, returns its top layer only: use "
                'layers = "top".'
            )
        if weights is not None and len(weights) != self.num_layers:
            raise ValueError(
                f"weights must be {self.num_layers} numbers, one for each layer: got "
                f"{len(weights)}."
            )
        if layers in ("mix", "all"):
            return layers
        is_number = isinstance(layers, Integral) and not isinstance(layers, bool)
        if not (is_number and -self.num_layers <= int(layers) < self.num_layers):
            raise ValueError(
                'layers must be "mix", "all", "top" or the number of a layer from 0 (word vectors) '
                f"to {self.num_layers - 1} (top): got {layers!r}."
            )
        return int(layers) % self.num_layers

    def _jobs(self, sentences: Iterable[Sentence]) -> Iterator[_Job]:
        num_start, num_end = len(self._indexer.start_tokens), len(self._indexer.end_tokens)
        for sentence in sentences:
            words = self._indexer.words(sentence)
            if not words:
                yield _Job([], slice(0, 0), True)
                continue
            tokens = self._indexer.with_boundaries(words)
            first, last = num_start, len(tokens) - num_end
            if self.segment_length is None or len(tokens) <= self.segment_length:
                yield _Job(tokens, slice(first, last), True)
                continue
            for part in segments(len(tokens), self.segment_length):
                begin, end = max(part.keep_begin, first), min(part.keep_end, last)
                yield _Job(
                    tokens[part.begin : part.end],
                    slice(begin - part.begin, max(begin, end) - part.begin),
                    part.end == len(tokens),
                )

    def _run(
        self, jobs: List[_Job], layers: Layers, weights: Optional[Sequence[float]]
    ) -> List[Tuple[torch.Tensor, bool]]:
        filled = [job.tokens for job in jobs if job.tokens]
        embedded = iter(self._layers(filled, layers, weights) if filled else ())
        results = []
        for job in jobs:
            if job.tokens:
                vectors = next(embedded)[..., job.keep, :]
                if not torch.is_grad_enabled():
                    # A copy, so that the padded batch can go.
                    vectors = vectors.clone()
            else:
                shape = (self.num_layers, 0, self.dim) if layers == "all" else (0, self.dim)
                vectors = torch.zeros(shape, device=self.device)
            results.append((vectors, job.ends_sentence))
        return results

    def _layers(
        self, tokens: List[List[str]], layers: Layers, weights: Optional[Sequence[float]]
    ) -> torch.Tensor:
        """Shape `(batch_size, timesteps, dim)`, or `(batch_size, num_layers, timesteps, dim)`."""
        output = self.model.read(self._source(tokens))
        contextual = output["lm_embeddings"]
        if layers == "top":
            return (contextual[-1] if isinstance(contextual, list) else contextual).float()
        words = torch.cat([output["noncontextual_token_embeddings"]] * self._word_copies, -1)
        found = [layer.float() for layer in (words, *contextual)]
        if layers == "all":
            return torch.stack(found, dim=1)
        if layers == "mix":
            weights = [1 / len(found)] * len(found) if weights is None else weights
            mixed = found[0] * float(weights[0])
            for weight, layer in zip(weights[1:], found[1:]):
                mixed = mixed.add(layer, alpha=float(weight))
            return mixed
        return found[int(layers)]

    def _pad(
        self, vectors: List[torch.Tensor], layers: Layers
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        lengths = torch.tensor([v.size(-2) for v in vectors], dtype=torch.long, device=self.device)
        longest = int(lengths.max()) if vectors else 0
        mask = torch.arange(longest, device=self.device) < lengths.unsqueeze(-1)
        if not vectors:
            shape = (0, self.num_layers, 0, self.dim) if layers == "all" else (0, 0, self.dim)
            return torch.zeros(shape, device=self.device), mask
        padded = [torch.nn.functional.pad(v, (0, 0, 0, longest - v.size(-2))) for v in vectors]
        return torch.stack(padded), mask

    def _source(self, tokens: List[List[str]]) -> Any:
        device = self.device
        # AllenNLP's function takes a device, and copies only what is elsewhere.
        return util.move_to_device(self._indexer.tensors(tokens), device)

    # Probabilities

    def score(self, sentences: Iterable[Sentence], top_k: int = 0) -> List[SentenceScores]:
        """
        The exact probability of every word, over the whole vocabulary: see `SentenceScores`.

        # Parameters

        sentences : `Iterable[Sentence]`
        top_k : `int`, optional (default = `0`)
            Name the likeliest words in each place, too.

        # Returns

        `List[SentenceScores]`
            In the sentences' order.

        # Raises

        `ConfigurationError`
            If the model has no softmax.
        """
        return list(self.score_stream(sentences, top_k))

    def score_stream(
        self, sentences: Iterable[Sentence], top_k: int = 0
    ) -> Iterator[SentenceScores]:
        """As `score`, for any number of sentences: results come one by one, in order."""
        return self.score_tokens(self._tokens(sentences), top_k)

    def _tokens(self, sentences: Iterable[Sentence]) -> Iterator[List[str]]:
        return (
            self._indexer.with_boundaries(self._indexer.words(sentence))
            for sentence in _sentences(sentences)
        )

    def score_tokens(
        self, sentences: Iterable[List[str]], top_k: int = 0
    ) -> Iterator[SentenceScores]:
        """As `score_stream`, for lists of tokens that have their boundary tokens already."""
        if top_k < 0:
            raise ValueError(f"top_k must not be negative, got {top_k}.")
        softmax_of(self.model)

        def run(batch: List[List[str]]) -> List[SentenceScores]:
            return score_batch(self.model, self._source(batch), top_k, batch)

        return in_batches(sentences, len, run, self.max_tokens)

    def evaluate(self, corpus: Corpus) -> Dict[str, Any]:
        """
        What `allennlp evaluate` reports, with the same numbers.

        # Parameters

        corpus : `str`, `PathLike` or `Iterable[Sentence]`
            A file, directory, glob or URL of text, one sentence a line; or sentences. Those without
            a word are skipped, as blank lines are.

        # Returns

        `Dict[str, Any]`
            `loss`, `perplexity`, `forward_perplexity`, `backward_perplexity` (if bidirectional),
            `num_sentences`, `num_tokens`, `num_out_of_vocabulary`.

        # Raises

        `ConfigurationError`
            If there is nothing to predict.
        """
        sentences: Iterable[Sentence]
        if isinstance(corpus, (str, os.PathLike)):
            name = f"{os.fspath(corpus)!r}"
            sentences = (line for shard in find_shards(corpus) for line in read_sentences(shard))
        else:
            name, sentences = "these sentences", corpus
        filled = filter(None, map(self._indexer.words, sentences))
        softmax_of(self.model)
        unknown = oov_index(self.model.vocab)
        losses: Dict[str, float] = {"loss": 0.0}
        num_sentences = num_tokens = num_unknown = 0

        def run(batch: List[List[str]]) -> List[int]:
            nonlocal num_tokens, num_unknown
            source = self._source(batch)
            with torch.no_grad():
                output = self.model(source)
            if "loss" not in output:
                raise ConfigurationError(NO_WORD_IDS.format(sorted(source)))
            count = int(output["batch_weight"])
            for name in ("loss", "forward_loss", "backward_loss"):
                if name in output:
                    losses[name] = losses.get(name, 0.0) + output[name].item() * count
            num_tokens += count
            if unknown is not None:
                num_unknown += int((source["tokens"]["tokens"] == unknown).sum())
            return [1] * len(batch)

        tokens = map(self._indexer.with_boundaries, filled)
        for one in in_batches(tokens, len, run, self.max_tokens):
            num_sentences += one
        if not num_tokens:
            raise ConfigurationError(
                f"There is no word to predict in {name}: {num_sentences} sentences."
            )
        metrics: Dict[str, Any] = {"loss": losses["loss"] / num_tokens}
        for name in ("", "forward_", "backward_"):
            if name + "loss" in losses:
                metrics[name + "perplexity"] = perplexity(-losses[name + "loss"], num_tokens)
        metrics["num_sentences"] = num_sentences
        metrics["num_tokens"] = num_tokens
        metrics["num_out_of_vocabulary"] = num_unknown
        return metrics

    def perplexity(self, corpus: Corpus) -> float:
        """`evaluate(corpus)["perplexity"]`."""
        return self.evaluate(corpus)["perplexity"]

    def fill(self, sentence: Sentence, top_k: int = 5, gap: str = "___") -> List[Candidate]:
        """
        The likeliest words for a gap, given what is to its left and to its right: `combined` in
        `SentenceScores`.

        # Parameters

        sentence : `Sentence`
            One of its words is `gap`; in a text, `gap` may stand anywhere.
        top_k : `int`, optional (default = `5`)
        gap : `str`, optional (default = `"___"`)

        # Returns

        `List[Candidate]`
            Words and their probabilities, likeliest first. Boundary tokens and the entry for
            unknown words are left out.

        # Raises

        `ValueError`
            If there isn't exactly one gap, or nothing around it.
        """
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}.")
        words = self._indexer.words(sentence)
        if isinstance(sentence, str) and gap not in words and sentence.count(gap) == 1:
            # Something is written right beside the gap, or the tokenizer takes it apart.
            before, _, after = sentence.partition(gap)
            words = [*self._indexer.words(before), gap, *self._indexer.words(after)]
        if words.count(gap) != 1:
            raise ValueError(
                f"Expected a sentence with one gap, a word {gap!r}: got {words.count(gap)} of them "
                f"in {' '.join(words)!r:.200}."
            )
        boundaries = [*self._indexer.start_tokens, *self._indexer.end_tokens]
        no_words = {*boundaries, self.model.vocab._oov_token}
        tokens = self._indexer.with_boundaries(words)
        place = len(self._indexer.start_tokens) + words.index(gap)
        (scores,) = self.score_tokens([tokens], top_k + len(no_words))
        view = scores.forward if scores.combined is None else scores.combined
        top = view.top[place]
        if top is None:
            raise ValueError("There is nothing around the gap to fill it from.")
        return [Candidate(*pair) for pair in top if pair[0] not in no_words][:top_k]


def _sentences(sentences: Iterable[Sentence]) -> Iterable[Sentence]:
    if isinstance(sentences, str):
        raise TypeError(
            f"Expected a list of sentences, got one string: put it in a list, [{sentences!r:.60}]."
        )
    return sentences


def _device(device: Union[str, int, torch.device, None]) -> torch.device:
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


def _parsed(overrides: str) -> Dict[str, Any]:
    try:
        return parse_overrides(overrides)
    except (RuntimeError, ValueError) as error:
        # Jsonnet's errors go on with an empty line.
        raise ConfigurationError(
            f"The overrides are not JSON ({str(error).strip()}): {overrides:.80}"
        ) from None
