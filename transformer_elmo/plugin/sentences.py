"""Sentences as AllenNLP's dataset readers and indexers turn them into batches."""

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from allennlp.data import (
    Batch,
    DatasetReader,
    Instance,
    TextFieldTensors,
    Token,
    Tokenizer,
)
from allennlp.data.fields import TextField
from allennlp.nn import util
from numpy.typing import NDArray

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.batch import HostFacts, longest_word
from transformer_elmo.nn.language_model import Encoded
from transformer_elmo.nn.softmax import Softmax
from transformer_elmo.plugin.dataset_reader import reader_attribute
from transformer_elmo.plugin.indexers import column_of, fits_a_table
from transformer_elmo.plugin.language_model import LanguageModel
from transformer_elmo.plugin.text_fields import FACTS, forget_words
from transformer_elmo.plugin.tokenizers import tokenizer_named
from transformer_elmo.plugin.vocabulary import word_list
from transformer_elmo.text.corpus import Sentence
from transformer_elmo.text.sentences import indexed_words, words_of
from transformer_elmo.text.vocabulary import WordList
from transformer_elmo.text.words import CharacterIds


@dataclass(frozen=True)
class SourceBatch:
    """A text field's tensors, and the words to predict if they have any."""

    source: TextFieldTensors
    token_ids: Optional[torch.Tensor]


class DatasetSentenceReader:
    """
    Turns sentences into what a model takes, by the rules of the dataset reader that it was trained
    with. Reading from several threads is safe.

    # Parameters

    reader : `DatasetReader`
        Of the kind "simple_language_modeling".
    model : `LanguageModel`
    tokenizer : optional (default = the reader's)
        For sentences that come as text: see `allennlp_tokenizer`.

    # Raises

    `ConfigurationError`
        If the reader has no token indexers, or nobody knows the tokenizer.
    """

    def __init__(self, reader: DatasetReader, model: LanguageModel, tokenizer: Any = None) -> None:
        self._indexers = reader_attribute(reader, "token_indexers")
        if not self._indexers:
            raise ConfigurationError(
                f"The archive's dataset reader, a {type(reader).__name__}, has no token_indexers. "
                "Expected one of the kind simple_language_modeling."
            )
        if tokenizer is None:
            tokenizer = reader_attribute(reader, "tokenizer")
        self.split = allennlp_tokenizer(tokenizer)
        self._model = model
        self.vocabulary: WordList = word_list(model.vocab)
        self.start_tokens = _texts(reader_attribute(reader, "start_tokens"))
        self.end_tokens = _texts(reader_attribute(reader, "end_tokens"))
        self._by_words = all(map(fits_a_table, self._indexers.values()))

    def words(self, sentence: Sentence) -> List[str]:
        """The words of a sentence, without boundary tokens."""
        return words_of(sentence, self.split)

    def with_boundaries(self, words: Sequence[str]) -> List[str]:
        """The tokens that the model reads for a sentence of these words."""
        return [*self.start_tokens, *words, *self.end_tokens]

    def batch(
        self, sentences: Sequence[Sequence[str]], device: torch.device, with_ids: bool = True
    ) -> SourceBatch:
        """
        # Parameters

        sentences : `Sequence[Sequence[str]]`
            Their tokens, boundary tokens included.
        device : `torch.device`
        with_ids : `bool`, optional (default = `True`)
            Whether the words to predict are wanted.
        """
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
                    FACTS: HostFacts(lengths, longest_word(values) if len(values) else 0),
                }
            else:
                result[name] = {column.key: torch.from_numpy(table[index]).long()}
        return result

    def _of_instances(self, sentences: Sequence[Sequence[str]]) -> TextFieldTensors:
        batch = Batch(
            [
                Instance({"source": TextField([Token(word) for word in words], self._indexers)})
                for words in sentences
            ]
        )
        batch.index_instances(self._model.vocab)
        tensors: Any = batch.as_tensor_dict()["source"]
        return tensors


def _texts(tokens: Optional[Sequence[Token]]) -> List[str]:
    return [str(token.text) for token in tokens or []]


def allennlp_tokenizer(tokenizer: Any) -> Callable[[str], List[str]]:
    """
    # Parameters

    tokenizer : `str`, `Dict[str, Any]`, `Tokenizer` or `Callable[[str], List[str]]`
        A name or a config that AllenNLP knows, such as "just_spaces", or an object.

    # Returns

    `Callable[[str], List[str]]`
        From a text to its words.

    # Raises

    `ConfigurationError`
        If there is no such tokenizer.
    """
    if isinstance(tokenizer, (str, dict)):
        tokenizer = tokenizer_named(tokenizer)
    return _Split(tokenizer) if isinstance(tokenizer, Tokenizer) else tokenizer


@dataclass(frozen=True)
class _Split:
    tokenizer: Tokenizer

    def __call__(self, text: str) -> List[str]:
        return [str(token.text) for token in self.tokenizer.tokenize(text)]


class EncodingModel(torch.nn.Module):
    """
    AllenNLP's language model with the face of the core's, for `TransformerElmo`.

    # Parameters

    model : `LanguageModel`
    """

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.language_model = model

    def forget_words(self) -> None:
        forget_words(self.language_model)

    @property
    def softmax(self) -> Optional[Softmax]:
        return self.language_model.softmax

    @property
    def is_bidirectional(self) -> bool:
        return self.language_model.is_bidirectional

    @property
    def has_all_layers(self) -> bool:
        return self.language_model.has_all_layers

    @property
    def embeds_ids(self) -> bool:
        # The text field has what it has.
        return False

    @property
    def num_layers(self) -> int:
        return self.language_model.num_layers()

    @property
    def word_dim(self) -> int:
        return self.language_model.word_dim

    @property
    def output_dim(self) -> int:
        return self.language_model.output_dim

    @property
    def precision(self) -> str:
        return self.language_model.precision

    @precision.setter
    def precision(self, precision: str) -> None:
        self.language_model.precision = precision

    @property
    def compiles(self) -> bool:
        """Whether what works row by row is compiled on a GPU."""
        return self.language_model.compiles

    @compiles.setter
    def compiles(self, compiles: bool) -> None:
        self.language_model.compiles = compiles

    def word_vectors(self, batch: SourceBatch) -> torch.Tensor:
        return self.language_model.word_vectors(batch.source)

    def encode(self, batch: SourceBatch) -> Encoded:
        return self.language_model.encode(batch.source)

    def losses(self, encoded: Encoded, token_ids: torch.Tensor) -> List[torch.Tensor]:
        return self.language_model.losses(encoded, token_ids)


def adapted(
    model: Any, reader: Any, tokenizer: Any
) -> Optional[Tuple[EncodingModel, DatasetSentenceReader]]:
    """What `TransformerElmo` makes of AllenNLP's model and reader; `None` for others."""
    if not isinstance(model, LanguageModel):
        return None
    return EncodingModel(model), DatasetSentenceReader(reader, model, tokenizer)
