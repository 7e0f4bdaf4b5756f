"""Sentences as AllenNLP's dataset readers and indexers turn them into batches."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from allennlp.data import Batch, DatasetReader, Instance, TextFieldTensors, Token, Tokenizer
from allennlp.data.fields import TextField
from allennlp.data.token_indexers import ELMoTokenCharactersIndexer, SingleIdTokenIndexer
from allennlp.modules.seq2vec_encoders import CnnHighwayEncoder
from allennlp.modules.text_field_embedders import BasicTextFieldEmbedder
from allennlp.modules.token_embedders import Embedding, EmptyEmbedder, TokenCharactersEncoder
from allennlp.nn import util
from numpy.typing import NDArray

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.batch import BatchReader, HostLengths, longest_word
from transformer_elmo.nn.language_model import EncoderOutput
from transformer_elmo.nn.language_model import LanguageModel as CoreModel
from transformer_elmo.plugin.contextualizer import BidirectionalLanguageModelTransformer
from transformer_elmo.plugin.dataset_reader import column_of, fits_a_table, reader_attribute
from transformer_elmo.plugin.language_model import LanguageModel
from transformer_elmo.plugin.text_fields import FACTS, forget_words
from transformer_elmo.plugin.tokenizers import tokenizer_named
from transformer_elmo.plugin.vocabulary import word_list
from transformer_elmo.pretrained.allennlp_config import NotStandardError
from transformer_elmo.pretrained.config import (
    CharactersConfig,
    ModelConfig,
    SoftmaxConfig,
    TextConfig,
    WordIdsConfig,
)
from transformer_elmo.pretrained.folder import check_vocabulary, model_of, reader_of
from transformer_elmo.text.reader import WordReader, indexed_words
from transformer_elmo.text.vocabulary import NAMESPACE, PADDING, UNKNOWN, WordList
from transformer_elmo.text.word_table import CharacterIds

WordsConfig = Union[CharactersConfig, WordIdsConfig]


@dataclass(frozen=True)
class SourceBatch:
    """A text field's tensors, and the words to predict if they have any."""

    source: TextFieldTensors
    token_ids: Optional[torch.Tensor]


class DatasetSentenceReader(WordReader):
    """
    Turns sentences into what a model takes, by the rules of the dataset reader that it was trained
    with. Reading from several threads is safe.

    `reader`: of the kind "simple_language_modeling". `tokenizer`: for sentences that come as text:
    see `allennlp_tokenizer`. Raises `ConfigurationError` if the reader has no token indexers, or
    nobody knows the tokenizer.
    """

    def __init__(self, reader: DatasetReader, model: LanguageModel, tokenizer: Any = None) -> None:
        self._indexers = reader_attribute(reader, "token_indexers")
        if not self._indexers:
            raise ConfigurationError(
                f"The archive's dataset reader, a {type(reader).__name__}, has no token_indexers. "
                "Expected one of the kind simple_language_modeling."
            )
        self._tokenizer: Any = reader_attribute(reader, "tokenizer")
        boundaries = (reader_attribute(reader, f"{side}_tokens") or [] for side in ("start", "end"))
        start_tokens, end_tokens = ([str(token.text) for token in side] for side in boundaries)
        words = word_list(model.vocab)
        split = allennlp_tokenizer(self._tokenizer if tokenizer is None else tokenizer)
        super().__init__(words, start_tokens, end_tokens, split)
        self._model = model
        self._by_words = all(map(fits_a_table, self._indexers.values()))

    def text_config(self, words: WordsConfig, name: str) -> TextConfig:
        """
        How it reads, for a model that embeds the tokens called `name`, whose own characters are
        added to `words`. Raises `NotStandardError` if the core can't read so.
        """
        ids, characters = self._indexers.get("tokens"), self._indexers.get(name)
        standard = type(ids) is SingleIdTokenIndexer and ids.namespace == NAMESPACE
        if not standard or not self._by_words:
            raise _no_place(f"its token indexers are {sorted(self._indexers)}")
        vocab = self._model.vocab
        special = (vocab._padding_token, vocab._oov_token, self.vocabulary[0])
        if special != (PADDING, UNKNOWN, PADDING):
            raise _no_place("its vocabulary has other words for padding and for unknown words")
        try:
            tokenizer = self._tokenizer.to_params().as_dict(quiet=True)
        except NotImplementedError:
            kind = type(self._tokenizer).__name__
            raise _no_place(f"its reader's tokenizer, a {kind}, doesn't say what it is") from None
        if isinstance(words, CharactersConfig):
            if not isinstance(characters, ELMoTokenCharactersIndexer):
                raise _no_place(f"it has no indexer elmo_characters for {name}")
            words.own_characters.update(characters._mapper.tokens_to_add)
        return TextConfig(tokenizer, self.start_tokens, self.end_tokens, ids.lowercase_tokens)

    def batch(
        self, sentences: Sequence[Sequence[str]], device: torch.device, with_ids: bool = True
    ) -> SourceBatch:
        """`sentences`: their tokens with boundaries. `with_ids`: whether numbers are wanted."""
        tensors = self._tensors(sentences) if self._by_words else self._of_instances(sentences)
        # AllenNLP's function takes a device, and copies only what is elsewhere.
        source = util.move_to_device(tensors, device)
        return SourceBatch(source, self._model.token_ids(source) if with_ids else None)

    def _tensors(self, sentences: Sequence[Sequence[str]]) -> TextFieldTensors:
        """Characters come once for each distinct word."""
        index, distinct = indexed_words(sentences)
        lengths = np.fromiter(map(len, sentences), np.int64, len(sentences))
        result: Dict[str, Dict[str, Any]] = {}
        for name, indexer in self._indexers.items():
            column = column_of(indexer, self._model.vocab)
            values: NDArray[Any] = column.values(distinct)
            table = np.concatenate([np.zeros((1, *values.shape[1:]), values.dtype), values])
            if isinstance(column, CharacterIds):
                result[name] = {
                    column.key: torch.from_numpy(table).long(),
                    "word_index": torch.from_numpy(index),
                    FACTS: HostLengths(lengths, longest_word(values) if len(values) else 0),
                }
            else:
                result[name] = {column.key: torch.from_numpy(table[index]).long()}
        return result

    def _of_instances(self, sentences: Sequence[Sequence[str]]) -> TextFieldTensors:
        fields = (TextField([*map(Token, words)], self._indexers) for words in sentences)
        batch = Batch([Instance({"source": field}) for field in fields])
        batch.index_instances(self._model.vocab)
        tensors: Any = batch.as_tensor_dict()["source"]
        return tensors


def allennlp_tokenizer(tokenizer: Any) -> Callable[[str], List[str]]:
    """
    `tokenizer`: a name or a config that AllenNLP knows, such as "just_spaces", or an object.
    Returns from a text to its words. Raises `ConfigurationError` if there is no such tokenizer.
    """
    if isinstance(tokenizer, (str, dict)):
        tokenizer = tokenizer_named(tokenizer)
    return partial(_split, tokenizer) if isinstance(tokenizer, Tokenizer) else tokenizer


def _split(tokenizer: Tokenizer, text: str) -> List[str]:
    return [str(token.text) for token in tokenizer.tokenize(text)]


def _no_place(part: str) -> NotStandardError:
    return NotStandardError(f"The model folder has no place for this model: {part}.")


def _words_of(embedder: Any) -> Tuple[str, WordsConfig]:
    """The name of the tokens that are embedded, and how."""
    modules = getattr(embedder, "_token_embedders", {}).items()
    found = {name: module for name, module in modules if not isinstance(module, EmptyEmbedder)}
    if type(embedder) is not BasicTextFieldEmbedder or len(found) != 1:
        kind = sorted(found) or type(embedder).__name__
        raise _no_place(f"its text field embedder embeds {kind}")
    ((name, module),) = found.items()
    if type(module) is Embedding and module._projection is None:
        return name, WordIdsConfig(module.num_embeddings, module.output_dim)
    cnn: Any = getattr(getattr(module, "_encoder", None), "_module", None)
    standard = isinstance(module, TokenCharactersEncoder) and isinstance(cnn, CnnHighwayEncoder)
    if not standard:
        raise _no_place(f"its token embedder {name} is a {type(module).__name__}")
    num_characters, character_dim = module._embedding._module.weight.shape
    return name, CharactersConfig(
        num_characters,
        character_dim,
        [(filters.kernel_size[0], filters.out_channels) for filters in cnn._convolutions],
        len(cnn._highways._layers),
        cnn.output_dim,
        "tanh" if cnn._activation is torch.nn.functional.tanh else "relu",
        cnn._projection_location,
        hasattr(cnn._layer_norm, "gamma"),
    )


class EncodingModel(torch.nn.Module):
    """AllenNLP's language model with the face of the core's, for `TransformerElmo`."""

    # The text field has what it has.
    embeds_ids = False

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.language_model = model

    def as_core(self, reader: DatasetSentenceReader) -> Tuple[CoreModel, BatchReader]:
        """
        The same model, with the same weights, and its reader as the core has them.

        Raises `NotStandardError` if a part of it isn't Transformer ELMo's.
        """
        model, softmax, scored = self.language_model, self.softmax, None
        name, words = _words_of(model._text_field_embedder)
        contextualizer = model._contextualizer
        if type(contextualizer) is not BidirectionalLanguageModelTransformer:
            raise _no_place(f"its contextualizer is a {type(contextualizer).__name__}")
        if softmax is not None:
            more = (getattr(softmax, "num_samples", None), getattr(softmax, "sparse", False))
            scored = SoftmaxConfig(softmax.word_weights()[0].size(0), *more)
        text, layers = reader.text_config(words, name), contextualizer.config
        dropout, precision = model._dropout.p, model.precision
        config = ModelConfig(words, layers, text, scored, dropout, precision, name)
        vocabulary = WordList(reader.vocabulary.words)
        check_vocabulary(config, vocabulary, "This model")
        core = model_of(config, model.state_dict(), "This model")
        return core, reader_of(config, vocabulary)

    def forget_words(self) -> None:
        forget_words(self.language_model)

    @property
    def num_layers(self) -> int:
        return self.language_model.num_layers()

    def word_vectors(self, batch: SourceBatch) -> torch.Tensor:
        return self.language_model.word_vectors(batch.source)

    def encode(self, batch: SourceBatch) -> EncoderOutput:
        return self.language_model.encode(batch.source)

    def __getattr__(self, name: str) -> Any:
        """Whatever both have under one name: `softmax`, `losses`, `output_dim`, ..."""
        if name == "language_model" or name.startswith("__"):
            return super().__getattr__(name)
        return getattr(self.language_model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        owner = self.language_model if name in ("precision", "compiles") else super()
        owner.__setattr__(name, value)


def adapted(
    model: Any, reader: Any, tokenizer: Any
) -> Optional[Tuple[EncodingModel, DatasetSentenceReader]]:
    """What `TransformerElmo` makes of AllenNLP's model and reader; `None` for others."""
    if not isinstance(model, LanguageModel):
        return None
    return EncodingModel(model), DatasetSentenceReader(reader, model, tokenizer)
