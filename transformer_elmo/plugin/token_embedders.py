"""A trained language model as a token embedder: a learned mixture of its layers for each word."""

import logging
from typing import Any, List, Optional, Sequence, Tuple

import numpy as np
import torch
from allennlp.data import DatasetReader, Token, TokenIndexer, Vocabulary
from allennlp.data.token_indexers import SingleIdTokenIndexer, TokenCharactersIndexer
from allennlp.modules.scalar_mix import ScalarMix
from allennlp.modules.token_embedders import EmptyEmbedder, TokenEmbedder
from overrides import overrides
from torch.nn.utils.rnn import pad_sequence

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.inference.vectors import (
    Layers,
    all_layers,
    layer_number,
    segments,
    word_copies,
)
from transformer_elmo.plugin.dataset_reader import reader_attribute
from transformer_elmo.plugin.language_model import LanguageModel
from transformer_elmo.plugin.loading import inner_model
from transformer_elmo.plugin.text_fields import with_characters
from transformer_elmo.text.batching import cut_into_batches

logger = logging.getLogger(__name__)


@TokenEmbedder.register("language_model_token_embedder", exist_ok=True)
class LanguageModelTokenEmbedder(TokenEmbedder):
    """
    Embeds words with a language model from an archive: a scalar mix, learned with the model on top,
    of the LM's layers and of the word vectors beneath them (Peters et al. 2018, equation 1).

    Registered as a `TokenEmbedder` with name "language_model_token_embedder".

    - `archive_file`: A `model.tar.gz` of a `LanguageModel`, or a folder or URL of one. The model's
      contextualizer must have an attribute `num_layers` and take a parameter `return_all_layers`.
    - `dropout`: On the mixed vectors.
    - `bos_eos_tokens`: Put around each sentence before it is embedded, for language models that
      were trained with such tokens; `None` where the token indexer has added them, or the LM knows
      none.
    - `remove_bos_eos`: Take the first and the last vector of each sentence away again.
    - `requires_grad`: Fine-tune the language model along with the rest.
    - `layers`: "mix" is the learned mixture of all layers, "top" the last one, a number that one: 0
      is the word vectors, -1 the top. One layer alone has no weights to learn.
    - `scalar_mix_parameters`: What the mixture's parameters begin with, one for each layer; their
      softmax is the layers' weights. By default all are 0: the mean. As in AllenNLP's `Elmo`,
      parameters that are given stay as they are.
    - `train_scalar_mix`: Whether the mixture's parameters are learned. By default they are unless
      `scalar_mix_parameters` gives them.
    - `precision`: "float32" or "bfloat16" for the language model's matrix products; by default what
      its archive says.
    - `max_tokens_per_forward`: Run the language model on at most so many tokens at a time, padding
      and boundary tokens included, so that its memory has a bound. Texts of more tokens go in
      segments that overlap (see `transformer_elmo.inference.vectors`): what a word is understood
      from then ends at the segment. At least 4.
    - `vocab_namespace`: For a language model that knows its words by their ids: the namespace of
      `vocab` that the ids given to `forward` are from. By default the one that it was trained with.
    - `vocab`: That of the model on top, whose ids become those of the language model's words; words
      that it doesn't know become its unknown word. Not given in a config, AllenNLP adds it. Without
      it, ids are the language model's own.
    - `serialization_dir`: The folder of the model on top, which is given what its archive has to
      carry of the language model. AllenNLP adds it.

    Raises `ConfigurationError` if the archive holds no language model that words can be embedded
    with, or a parameter doesn't fit it.
    """

    def __init__(
        self,
        archive_file: str,
        dropout: Optional[float] = None,
        bos_eos_tokens: Optional[Tuple[str, str]] = ("<S>", "</S>"),
        remove_bos_eos: bool = True,
        requires_grad: bool = False,
        layers: Layers = "mix",
        scalar_mix_parameters: Optional[List[float]] = None,
        train_scalar_mix: Optional[bool] = None,
        precision: Optional[str] = None,
        max_tokens_per_forward: Optional[int] = None,
        vocab_namespace: Optional[str] = None,
        vocab: Optional[Vocabulary] = None,
        serialization_dir: Optional[str] = None,
    ) -> None:
        super().__init__()
        self._lm, reader = inner_model(archive_file, serialization_dir, precision)
        for parameter in self._lm.parameters():
            parameter.requires_grad_(requires_grad)

        self._token_name, self._indexer = _embedded_entry(self._lm, reader, archive_file)
        self._vocab_namespace = vocab_namespace
        # Buffers follow the module to its device. Not persistent: no archive holds such entries.
        self._boundaries: torch.Tensor
        self._lm_ids: Optional[torch.Tensor]
        boundaries = _indexed_boundaries(self._lm, self._indexer, bos_eos_tokens or ("", ""))
        self.register_buffer("_boundaries", boundaries, persistent=False)
        self.register_buffer("_lm_ids", None, persistent=False)
        if vocab is not None:
            self.extend_vocab(vocab)
        for module in self._lm.modules():
            # Its vocabulary is its own: that of the model on top must not make its embeddings grow.
            if getattr(module, "_vocab_namespace", None) is not None:
                module._vocab_namespace = None  # type: ignore[assignment]
        self._adds_boundaries, self._remove_bos_eos = bool(bos_eos_tokens), remove_bos_eos
        _warn_of_boundaries(reader, bos_eos_tokens, remove_bos_eos)

        self._dropout = torch.nn.Dropout(dropout or 0.0)
        num_layers = self._lm.num_layers()
        self._layer = layer_number(layers, num_layers)
        if self._layer is None:
            if scalar_mix_parameters is not None and len(scalar_mix_parameters) != num_layers:
                raise ConfigurationError(
                    f"scalar_mix_parameters must be {num_layers} numbers, one for each layer of "
                    f"the language model in {archive_file}: got {len(scalar_mix_parameters)}."
                )
            is_given = scalar_mix_parameters is not None
            self._scalar_mix = ScalarMix(
                num_layers,
                do_layer_norm=False,
                initial_scalar_parameters=scalar_mix_parameters,  # type: ignore[arg-type]
                trainable=not is_given if train_scalar_mix is None else train_scalar_mix,
            )
        elif scalar_mix_parameters is not None or train_scalar_mix is not None:
            raise ConfigurationError(
                "scalar_mix_parameters and train_scalar_mix are for the mixture of all layers, but "
                f"layers is {layers!r}."
            )
        self._max_tokens_per_forward = max_tokens_per_forward
        # These say what is wrong with them, if anything is.
        segments(0, 4 if max_tokens_per_forward is None else max_tokens_per_forward)
        word_copies(self._lm.word_dim, self._lm.output_dim)
        # Not every model on top compares it with its encoder's.
        logger.info(
            "Words embedded by the language model in %s have %d dimensions: the input_size of the "
            "encoder on top, if it gets nothing else.",
            archive_file,
            self._lm.output_dim,
        )

    @overrides
    def get_output_dim(self) -> int:
        return self._lm.output_dim

    @property
    def vocab(self) -> Vocabulary:
        """The language model's vocabulary: what its indexer takes."""
        return self._lm.vocab

    def extend_vocab(self, extended_vocab: Vocabulary, *args: Any, **kwargs: Any) -> None:
        """Follows a vocabulary on top that has grown, as AllenNLP asks every module to."""
        indexer = self._indexer
        lower = isinstance(indexer, SingleIdTokenIndexer) and indexer.lowercase_tokens
        if isinstance(indexer, SingleIdTokenIndexer):
            lm_namespace = indexer.namespace
        elif isinstance(indexer, TokenCharactersIndexer):
            lm_namespace = indexer._namespace
        else:
            # Its ids come from no vocabulary.
            return
        if lm_namespace is None:
            return
        lm_ids = self._lm.vocab.get_token_to_index_vocabulary(lm_namespace)
        unknown = lm_ids.get(self._lm.vocab._oov_token, 0)
        namespace = self._vocab_namespace or lm_namespace
        words = extended_vocab.get_index_to_token_vocabulary(namespace)
        table = self._boundaries.new_zeros(max(words, default=0) + 1)
        for number, word in words.items():
            if word != extended_vocab._padding_token:
                table[number] = lm_ids.get(word.lower() if lower else word, unknown)
        self._lm_ids = table

    @overrides(check_signature=False)
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """
        - `tokens`: What the language model's own indexer makes of the words: shape `(batch_size,
          ..., timesteps, num_characters)` of character ids, or `(batch_size, ..., timesteps)` of
          word ids. 0 is padding.

        Returns shape `(batch_size, ..., timesteps, get_output_dim())`; two timesteps fewer if
        boundaries are removed but not added, two more if they are added but not removed. Zero at
        padding.
        """
        # A word is a row of characters, or a single id.
        word_dims = self._boundaries.dim() - 1
        if word_dims:
            tokens = with_characters(tokens)
        wrapping = tokens.shape[: tokens.dim() - word_dims - 1]
        tokens = tokens.flatten(0, len(wrapping) - 1)
        if self._lm_ids is not None:
            tokens = self._lm_ids[tokens]
        if self._adds_boundaries:
            tokens = _with_boundaries(tokens, self._boundaries)

        limit = self._max_tokens_per_forward
        if limit is None or tokens.shape[0] * tokens.shape[1] <= limit:
            vectors = self._embedded(tokens)
        else:
            vectors = self._embedded_in_parts(tokens, limit)
        vectors = self._dropout(vectors)
        if self._remove_bos_eos:
            vectors = _without_boundaries(vectors, _token_mask(tokens))
        else:
            vectors = vectors * _token_mask(tokens).unsqueeze(-1)
        return vectors.view(*wrapping, *vectors.shape[-2:])

    def _embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        """Shape `(batch_size, timesteps, get_output_dim())`."""
        # A frozen LM needs no graph. Parameters may have been thawed since, so they are asked.
        tracked = torch.is_grad_enabled() and any(p.requires_grad for p in self._lm.parameters())
        with torch.set_grad_enabled(tracked):
            output = self._lm({self._token_name: {"tokens": tokens}})
            words, contextual = output["noncontextual_token_embeddings"], output["lm_embeddings"]
            layers = all_layers(words, contextual)
        return self._scalar_mix(layers) if self._layer is None else layers[self._layer]

    def _embedded_in_parts(self, tokens: torch.Tensor, limit: int) -> torch.Tensor:
        """The same, at most `limit` tokens at a time."""
        pieces = [
            (row, segment)
            for row, length in enumerate(_token_mask(tokens).sum(-1).tolist())
            if length
            for segment in segments(length, limit)
        ]
        # Without gradients where there are no words.
        vectors = torch.zeros(*tokens.shape[:2], self.get_output_dim(), device=tokens.device)
        lengths = np.array([s.end - s.begin for _, s in pieces], dtype=np.int64)
        for indices in cut_into_batches(lengths, limit, None):
            batch = [pieces[i] for i in indices.tolist()]
            part = pad_sequence([tokens[row, s.begin : s.end] for row, s in batch], True)
            for (row, s), embedded in zip(batch, self._embedded(part)):
                kept = slice(s.keep_begin - s.begin, s.keep_end - s.begin)
                vectors[row, s.keep_begin : s.keep_end] = embedded[kept]
        return vectors


@TokenEmbedder.register("bidirectional_lm_token_embedder", exist_ok=True)
class BidirectionalLanguageModelTokenEmbedder(LanguageModelTokenEmbedder):
    """
    A `LanguageModelTokenEmbedder` over a bidirectional language model: Transformer ELMo.

    Registered as a `TokenEmbedder` with name "bidirectional_lm_token_embedder". Its parameters are
    those of `LanguageModelTokenEmbedder`.
    """


def _embedded_entry(
    lm: LanguageModel, reader: DatasetReader, archive_file: str
) -> Tuple[str, TokenIndexer]:
    """The one entry of the language model's text field that it embeds, and what indexes it."""
    # Of another embedder than AllenNLP's basic one, nothing is known.
    modules = getattr(lm._text_field_embedder, "_token_embedders", {}).items()
    names = [name for name, module in modules if not isinstance(module, EmptyEmbedder)]
    indexers = reader_attribute(reader, "token_indexers") or {}
    if len(names) != 1 or names[0] not in indexers:
        raise ConfigurationError(
            f"The language model in {archive_file} must embed its words in exactly one way, by "
            "their characters or by their ids, which its dataset reader has a token indexer for: "
            f"it embeds {names}, and the indexers are {sorted(indexers)}."
        )
    return names[0], indexers[names[0]]


def _indexed_boundaries(
    lm: LanguageModel, indexer: TokenIndexer, bos_eos_tokens: Sequence[str]
) -> torch.Tensor:
    """The two boundary words: shape `(2,)` for word ids, `(2, num_characters)` for characters."""
    if len(bos_eos_tokens) != 2:
        raise ConfigurationError(
            "bos_eos_tokens must be two tokens, one for each end of a sentence, or null: got "
            f"{list(bos_eos_tokens)}."
        )
    words = [Token(token) for token in bos_eos_tokens]
    (ids, *_) = indexer.tokens_to_indices(words, lm.vocab).values()
    indexed = [torch.tensor(word, dtype=torch.long) for word in ids]
    # Words of a character indexer are as long as they are.
    return pad_sequence(indexed, True) if indexed[0].dim() else torch.stack(indexed)


def _warn_of_boundaries(
    reader: DatasetReader, added: Optional[Sequence[str]], removed: bool
) -> None:
    """Of those that the model wasn't trained with, and of vectors that aren't one a word."""
    ends = [reader_attribute(reader, name) for name in ("start_tokens", "end_tokens")]
    trained = [None if end is None else [token.text for token in end] for end in ends]
    if added and None not in trained and trained != [[token] for token in added]:
        logger.warning(
            "bos_eos_tokens are %s, but the language model was trained with start_tokens %s and "
            "end_tokens %s. Vectors near the ends of sentences will be worse than they could be: "
            "set bos_eos_tokens to the tokens it was trained with, or to null if it had none.",
            list(added),
            *trained,
        )
    if bool(added) != removed:
        logger.warning(
            "bos_eos_tokens is %s and remove_bos_eos is %s: each sentence has two vectors %s than "
            "words, unless the token indexer adds boundary tokens. A model that wants one a word "
            "needs both or neither.",
            *("not null", "false", "more") if added else ("null", "true", "fewer"),
        )


def _token_mask(tokens: torch.Tensor) -> torch.Tensor:
    """Shape `(batch_size, timesteps)`, for word ids and for characters."""
    present = tokens != 0
    return present.any(-1) if tokens.dim() == 3 else present


def _with_boundaries(tokens: torch.Tensor, boundaries: torch.Tensor) -> torch.Tensor:
    """Shape `(batch_size, timesteps + 2, ...)`: every sentence, an empty one too, gets both."""
    if tokens.dim() == 3:
        difference = boundaries.size(-1) - tokens.size(-1)
        tokens = torch.nn.functional.pad(tokens, (0, max(difference, 0)))
        boundaries = torch.nn.functional.pad(boundaries, (0, max(-difference, 0)))
    lengths = _token_mask(tokens).sum(-1)
    batch_size, timesteps = tokens.shape[:2]
    wrapped = tokens.new_zeros(batch_size, timesteps + 2, *tokens.shape[2:])
    wrapped[:, 1:-1] = tokens
    wrapped[:, 0] = boundaries[0]
    wrapped[torch.arange(batch_size, device=tokens.device), lengths + 1] = boundaries[1]
    return wrapped


def _without_boundaries(vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Shape `(batch_size, timesteps - 2, dim)`: all but each sentence's first and last vector."""
    lengths = mask.sum(-1, keepdim=True) - 2
    steps = torch.arange(max(vectors.size(1) - 2, 0), device=vectors.device)
    return vectors[:, 1:-1] * (steps < lengths).unsqueeze(-1)
