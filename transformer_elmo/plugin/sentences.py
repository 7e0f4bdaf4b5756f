"""Sentences as AllenNLP's dataset readers and indexers turn them into batches."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from allennlp.data import Batch, DatasetReader, Instance, TextFieldTensors, Token, Tokenizer
from allennlp.data.fields import TextField
from allennlp.nn import util
from numpy.typing import NDArray

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.batch import BatchReader, HostLengths, longest_word
from transformer_elmo.nn.language_model import EncoderOutput
from transformer_elmo.nn.language_model import LanguageModel as CoreModel
from transformer_elmo.plugin.dataset_reader import column_of, fits_a_table, reader_attribute
from transformer_elmo.plugin.language_model import LanguageModel
from transformer_elmo.plugin.text_fields import FACTS, forget_words
from transformer_elmo.plugin.tokenizers import tokenizer_named
from transformer_elmo.plugin.vocabulary import word_list
from transformer_elmo.pretrained.allennlp_config import model_config_of
from transformer_elmo.pretrained.archive import stock_names
from transformer_elmo.pretrained.folder import check_vocabulary, model_of, reader_of
from transformer_elmo.pretrained.weights import shapes_of
from transformer_elmo.text.reader import WordReader, indexed_words
from transformer_elmo.text.vocabulary import WordList
from transformer_elmo.text.word_table import CharacterIds

_Experiment = Callable[[], Dict[str, Any]]


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
        if tokenizer is None:
            tokenizer = reader_attribute(reader, "tokenizer")
        boundaries = (reader_attribute(reader, f"{side}_tokens") or [] for side in ("start", "end"))
        start_tokens, end_tokens = ([str(token.text) for token in side] for side in boundaries)
        words, split = word_list(model.vocab), allennlp_tokenizer(tokenizer)
        super().__init__(words, start_tokens, end_tokens, split)
        self._model = model
        self._by_words = all(map(fits_a_table, self._indexers.values()))

    def batch(
        self, sentences: Sequence[Sequence[str]], device: torch.device, with_ids: bool = True
    ) -> SourceBatch:
        """
        `sentences`: their tokens, boundary tokens included. `with_ids`: whether the words to
        predict are wanted.
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


class EncodingModel(torch.nn.Module):
    """
    AllenNLP's language model with the face of the core's, for `TransformerElmo`.

    `experiment`: gives the config of its archive, if it is from one.
    """

    # The text field has what it has.
    embeds_ids = False

    def __init__(self, model: LanguageModel, experiment: Optional[_Experiment] = None) -> None:
        super().__init__()
        self.language_model = model
        self._experiment = experiment

    def as_core(self, reader: DatasetSentenceReader) -> Tuple[CoreModel, BatchReader]:
        """
        The same model, with the same weights, and its reader as the core has them.

        Raises `ConfigurationError` if no config is known, or a part isn't Transformer ELMo's.
        """
        if self._experiment is None:
            raise ConfigurationError("This model has no config: open its archive to save it.")
        weights = self.language_model.state_dict()
        config = model_config_of(stock_names(self._experiment()), shapes_of(weights))
        vocabulary = WordList(reader.vocabulary.words)
        check_vocabulary(config, vocabulary, "This model")
        return model_of(config, weights, "This model"), reader_of(config, vocabulary)

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
    model: Any, reader: Any, tokenizer: Any, experiment: Optional[_Experiment] = None
) -> Optional[Tuple[EncodingModel, DatasetSentenceReader]]:
    """What `TransformerElmo` makes of AllenNLP's model and reader; `None` for others."""
    if not isinstance(model, LanguageModel):
        return None
    return EncodingModel(model, experiment), DatasetSentenceReader(reader, model, tokenizer)
