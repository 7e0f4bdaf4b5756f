"""
From chunks of text to AllenNLP's tensors: by rows of a table of words where the indexers allow
that, else by way of AllenNLP's instances.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Iterator, List, Union

import numpy as np
import torch
from allennlp.data.batch import Batch
from allennlp.data.data_loaders.data_loader import TensorDict
from allennlp.data.instance import Instance
from allennlp.data.tokenizers import Token, Tokenizer, WhitespaceTokenizer
from allennlp.data.vocabulary import Vocabulary
from numpy.typing import NDArray

from transformer_elmo.nn.batch import HostLengths, longest_word
from transformer_elmo.plugin.dataset_reader import SimpleLanguageModelingDatasetReader, column_of
from transformer_elmo.plugin.text_fields import FACTS
from transformer_elmo.text.batching import Indices
from transformer_elmo.text.training_stream import (
    Chunk,
    Sentences,
    TextChunk,
    WordsChunk,
    WordsEncoder,
)
from transformer_elmo.text.word_table import WordTable


class TableEncoder(WordsEncoder):
    """
    The fast path: text to rows of a table, and rows to tensors.

    `reader`: with indexers that all fit a table. `distinct_words`: see
    :meth:`~transformer_elmo.text.word_table.WordTable.arrays`.
    """

    def __init__(
        self, reader: SimpleLanguageModelingDatasetReader, vocab: Vocabulary, distinct_words: bool
    ) -> None:
        start, end = (
            [t.ensure_text() for t in s] for s in (reader.start_tokens, reader.end_tokens)
        )
        self._tokenizer: Tokenizer = reader.tokenizer
        self.is_fast = type(reader.tokenizer) is WhitespaceTokenizer
        """Whether a hundred megabytes take no more than a few seconds to read."""
        columns = {n: column_of(indexer, vocab) for n, indexer in reader.token_indexers.items()}
        # Without a function of ours, words are what `str.split` makes.
        words_of = None if self.is_fast else self._words_of
        table = WordTable(columns, [*start, *end])
        super().__init__(table, start, end, words_of, distinct_words)

    def _words_of(self, lines: List[str]) -> Iterator[List[str]]:
        for tokens in self._tokenizer.batch_tokenize(lines):
            yield [token.ensure_text() for token in tokens]

    def tensors(self, chunk: Chunk, begin: int, end: int) -> TensorDict:
        """The batch of the sentences from `begin` to `end` (not included)."""
        assert isinstance(chunk, WordsChunk)
        arrays, lengths = self.arrays(chunk, begin, end)
        source: Any = {}
        for name, entry in arrays.items():
            source[name] = {key: torch.from_numpy(array).long() for key, array in entry.items()}
            if "word_index" in entry:
                (characters,) = (array for key, array in entry.items() if key != "word_index")
                source[name][FACTS] = HostLengths(lengths, longest_word(characters[1:]))
        return {"source": source}


@dataclass
class InstancesChunk:
    """Sentences as AllenNLP's instances, not indexed yet."""

    instances: List[Instance]
    num_words: NDArray[np.int64]

    def lengths(self) -> NDArray[np.int64]:
        return self.num_words

    def select(self, indices: Indices) -> "InstancesChunk":
        return InstancesChunk([self.instances[i] for i in indices], self.num_words[indices])

    def encoded(self) -> "InstancesChunk":
        return self

    def join(self, other: "InstancesChunk") -> "InstancesChunk":
        lengths = np.concatenate([self.num_words, other.num_words])
        return InstancesChunk(self.instances + other.instances, lengths)


class InstancesEncoder:
    """AllenNLP's general path: text to instances, and instances to tensors."""

    is_fast = False

    def __init__(self, reader: SimpleLanguageModelingDatasetReader, vocab: Vocabulary) -> None:
        self._reader = reader
        self._vocab = vocab

    def sentences(self, chunk: TextChunk, max_words: float) -> Sentences:
        """`max_words`: sentences of more words are dropped."""
        found = [self._reader.tokens_of(sentence) for sentence in chunk.sentences()]
        lengths = np.fromiter(map(len, found), np.int64, len(found))
        encode = partial(self._encode, found, lengths)
        return Sentences.of_lines(lengths, chunk.num_lines(), max_words, encode)

    def _encode(
        self, found: List[List[Token]], lengths: NDArray[np.int64], numbers: Indices
    ) -> InstancesChunk:
        instances = [self._reader.tokens_to_instance(found[i]) for i in numbers]
        return InstancesChunk(instances, lengths[numbers])

    def tensors(self, chunk: Chunk, begin: int, end: int) -> TensorDict:
        """The batch of the sentences from `begin` to `end` (not included)."""
        assert isinstance(chunk, InstancesChunk)
        batch = Batch(chunk.instances[begin:end])
        for instance in batch.instances:
            self._reader.apply_token_indexers(instance)
        batch.index_instances(self._vocab)
        return batch.as_tensor_dict()


Encoder = Union[TableEncoder, InstancesEncoder]
