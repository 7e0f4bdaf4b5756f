"""
From chunks of text to AllenNLP's tensors: by rows of a table of words where the indexers allow
that, else by way of AllenNLP's instances.
"""

from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Optional, Union, cast

import numpy as np
import torch
from allennlp.data.batch import Batch
from allennlp.data.data_loaders.data_loader import TensorDict
from allennlp.data.instance import Instance
from allennlp.data.tokenizers import Tokenizer, WhitespaceTokenizer
from allennlp.data.vocabulary import Vocabulary
from numpy.typing import NDArray

from transformer_elmo.nn.batch import HostLengths, longest_word
from transformer_elmo.plugin.dataset_reader import SimpleLanguageModelingDatasetReader
from transformer_elmo.plugin.indexers import word_table
from transformer_elmo.plugin.text_fields import FACTS
from transformer_elmo.text.batching import Indices
from transformer_elmo.text.training_stream import Chunk, TextChunk, WordsChunk, WordsEncoder


class TableEncoder:
    """
    The fast path: text to rows of a table, and rows to tensors.

    `reader`: with indexers that all fit a table. `distinct_words`: see
    :meth:`~transformer_elmo.text.word_table.WordTable.arrays`.
    """

    def __init__(
        self,
        reader: SimpleLanguageModelingDatasetReader,
        vocab: Vocabulary,
        distinct_words: bool,
    ) -> None:
        start_words = [token.ensure_text() for token in reader.start_tokens]
        end_words = [token.ensure_text() for token in reader.end_tokens]
        # None: words are what `str.split` makes.
        self._tokenizer: Optional[Tokenizer] = (
            None if type(reader.tokenizer) is WhitespaceTokenizer else reader.tokenizer
        )
        self._encoder = WordsEncoder(
            word_table(reader.token_indexers, vocab, [*start_words, *end_words]),
            start_words,
            end_words,
            None if self._tokenizer is None else self._split,
            distinct_words,
        )

    @property
    def is_fast(self) -> bool:
        """
        Whether reading a corpus takes no longer than a few seconds for a hundred megabytes.
        """
        return self._tokenizer is None

    def _split(self, lines: List[str]) -> Iterator[List[str]]:
        assert self._tokenizer is not None
        for tokens in self._tokenizer.batch_tokenize(lines):
            yield [token.ensure_text() for token in tokens]

    def encode(self, chunk: TextChunk, max_words: float) -> WordsChunk:
        """`max_words`: sentences of more words are dropped."""
        return self._encoder.encode(chunk, max_words)

    def tensors(self, chunk: Chunk, begin: int, end: int) -> TensorDict:
        """
        The batch of the sentences from `begin` to `end` (not included).
        """
        assert isinstance(chunk, WordsChunk)
        arrays, lengths = self._encoder.arrays(chunk, begin, end)
        source: Dict[str, Dict[str, Any]] = {}
        for name, entry in arrays.items():
            source[name] = {key: torch.from_numpy(array).long() for key, array in entry.items()}
            if "word_index" in entry:
                (characters,) = (array for key, array in entry.items() if key != "word_index")
                source[name][FACTS] = HostLengths(lengths, longest_word(characters[1:]))
        # AllenNLP's `TensorDict` has no name for a dictionary of dictionaries, which every text
        # field is.
        return cast(TensorDict, {"source": source})


@dataclass
class InstancesChunk:
    """
    Sentences as AllenNLP's instances, not indexed yet.
    """

    instances: List[Instance]
    num_words: List[int]
    num_dropped: int = 0
    num_blank: int = 0

    def lengths(self) -> NDArray[np.int64]:
        return np.array(self.num_words, dtype=np.int64)

    def select(self, indices: Indices) -> "InstancesChunk":
        return InstancesChunk(
            [self.instances[i] for i in indices], [self.num_words[i] for i in indices]
        )

    def join(self, other: Chunk) -> "InstancesChunk":
        assert isinstance(other, InstancesChunk)
        return InstancesChunk(self.instances + other.instances, self.num_words + other.num_words)


class InstancesEncoder:
    """
    AllenNLP's general path: text to instances, and instances to tensors.
    """

    is_fast = False

    def __init__(self, reader: SimpleLanguageModelingDatasetReader, vocab: Vocabulary) -> None:
        self._reader = reader
        self._vocab = vocab

    def encode(self, chunk: TextChunk, max_words: float) -> InstancesChunk:
        """`max_words`: sentences of more words are dropped."""
        result = InstancesChunk([], [], num_blank=chunk.num_lines())
        for sentence in chunk.sentences():
            tokens = self._reader.tokens_of(sentence)
            if not tokens:
                continue
            result.num_blank -= 1
            if len(tokens) > max_words:
                result.num_dropped += 1
            else:
                result.instances.append(self._reader.tokens_to_instance(tokens))
                result.num_words.append(len(tokens))
        return result

    def tensors(self, chunk: Chunk, begin: int, end: int) -> TensorDict:
        """
        The batch of the sentences from `begin` to `end` (not included).
        """
        assert isinstance(chunk, InstancesChunk)
        batch = Batch(chunk.instances[begin:end])
        for instance in batch.instances:
            self._reader.apply_token_indexers(instance)
        batch.index_instances(self._vocab)
        return batch.as_tensor_dict()


Encoder = Union[TableEncoder, InstancesEncoder]
