"""
Words as numbers: the token id and the character ids of a word are worked out once, when it is first
seen, and from then on a word is its row in a table.
"""

import itertools
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import torch
from allennlp.data.token_indexers import (
    ELMoTokenCharactersIndexer,
    SingleIdTokenIndexer,
    TokenCharactersIndexer,
    TokenIndexer,
)
from allennlp.data.token_indexers.elmo_indexer import ELMoCharacterMapper
from allennlp.data.vocabulary import Vocabulary
from numpy.typing import NDArray

from transformer_elmo.data.lookup import WordLookup, words_at

# Rows are 32-bit: half the memory traffic of AllenNLP's 64-bit ids, which are made at the very end.
Rows = NDArray[np.int32]

PADDING_ROW = 0
"""
The row of the padding: token id 0 and character ids 0, as in AllenNLP.
"""


def depends_on_word_alone(indexer: TokenIndexer) -> bool:
    """
    Whether what an indexer says about a token is known to depend on the token's text alone, and its
    output to be in step with the tokens.
    """
    if type(indexer) is SingleIdTokenIndexer:
        return (
            indexer.namespace is not None
            and indexer._feature_name == "text"
            and not indexer._start_tokens
            and not indexer._end_tokens
        )
    return type(indexer) in (ELMoTokenCharactersIndexer, TokenCharactersIndexer)


class WordTable:
    """
    The token ids and character ids of words, one row a word.

    Row 0 is the padding. The rows after it are the words of the vocabulary, worked out once. Words
    outside it have their own characters, so each has a row as well, but only until
    :meth:`forget_new_words`: a corpus has no end of them, and the table must not grow with the
    corpus.

    # Parameters

    token_indexers : `Mapping[str, TokenIndexer]`
        Indexers that :meth:`supports` accepts.
    vocab : `Vocabulary`
        The vocabulary that the indexers look words up in.
    other_words : `Sequence[str]`, optional (default = `()`)
        Words that keep their rows although the vocabulary may lack them.
    """

    def __init__(
        self,
        token_indexers: Mapping[str, TokenIndexer],
        vocab: Vocabulary,
        other_words: Sequence[str] = (),
    ) -> None:
        self._columns: Dict[str, _Column] = {}
        namespaces: Dict[str, Mapping[str, int]] = {}
        for name, indexer in token_indexers.items():
            if isinstance(indexer, SingleIdTokenIndexer):
                self._columns[name] = _TokenIds(indexer, vocab)
                namespace = str(indexer.namespace)
                namespaces[namespace] = vocab.get_token_to_index_vocabulary(namespace)
            else:
                assert isinstance(indexer, ELMoTokenCharactersIndexer)
                self._columns[name] = _CharacterIds(indexer)
        words = list(dict.fromkeys(itertools.chain(other_words, *namespaces.values())))
        self._rows = _Interner(zip(words, itertools.count(PADDING_ROW + 1)))
        self._lookup = WordLookup(words, PADDING_ROW + 1)
        self._num_known = len(words) + 1
        self._rows.next_row = self._num_known
        for column in self._columns.values():
            column.put(PADDING_ROW + 1, words)
        self._position_of_row = np.zeros(0, dtype=np.int32)

    @staticmethod
    def supports(indexer: TokenIndexer) -> bool:
        """
        Whether an indexer's output can be kept in a table: `single_id` and `elmo_characters`, whose
        numbers depend on the word alone. (`single_id` not if it adds tokens of its own, or reads
        anything but the text.)
        """
        return depends_on_word_alone(indexer) and not isinstance(indexer, TokenCharactersIndexer)

    @property
    def num_known(self) -> int:
        """
        The number of rows that stay: the padding's and those of the vocabulary's words.
        """
        return self._num_known

    def encode(self, words: Sequence[str]) -> Rows:
        """
        The rows of words. A word that has none gets the next one.
        """
        return np.fromiter(map(self._rows.__getitem__, words), np.int32, len(words))

    def encode_lines(self, text: str) -> Tuple[Rows, NDArray[np.int64]]:
        """
        The rows of the words of a text, which are what `str.split` makes of it, and the number of
        words in each of its lines. Lines without words are left out.

        # Parameters

        text : `str`
            Lines that end with `\\n`.

        # Returns

        rows : `Rows`
            Shape `(num_words,)`.
        lengths : `NDArray[int64]`
            Shape `(num_sentences,)`; all positive, together `num_words`.
        """
        rows, starts, ends, data = self._lookup.find(text)
        unknown = np.flatnonzero(rows == PADDING_ROW)
        if len(unknown):
            rows[unknown] = self.encode(words_at(data, starts[unknown], ends[unknown]))
        line_ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == ord("\n"))
        lengths = np.diff(np.searchsorted(starts, line_ends), prepend=0)
        return rows, lengths[lengths > 0]

    def forget_new_words(self) -> List[str]:
        """
        Takes back the rows of the words that are not in the vocabulary.

        # Returns

        `List[str]`
            Those words: the first had row `num_known`, and so on.
        """
        new_words = self._rows.new_words
        for word in new_words:
            del self._rows[word]
        self._rows.new_words = []
        self._rows.next_row = self._num_known
        return new_words

    def put_new_words(self, words: List[str]) -> None:
        """
        Gives words outside the vocabulary the rows from `num_known` on, in place of those that have
        them, for :meth:`tensors`.
        """
        for column in self._columns.values():
            column.put(self._num_known, words)

    def tensors(
        self, rows: NDArray[Any], distinct_words: bool = False
    ) -> Dict[str, Dict[str, torch.Tensor]]:
        """
        What AllenNLP's indexers give for a padded batch of words.

        # Parameters

        rows : `NDArray[int]`
            Shape `(batch_size, timesteps)`; 0 where padded.
        distinct_words : `bool`, optional (default = `False`)
            If `True`, an indexer of characters gives each distinct word of the batch once, and
            where it is.

        # Returns

        `Dict[str, Dict[str, torch.LongTensor]]`
            For each indexer by its name. `single_id` gives `tokens`, shape `(batch_size,
            timesteps)`;
            `elmo_characters` gives `elmo_tokens`, shape `(batch_size, timesteps, 50)`. With
            `distinct_words`,
            `elmo_characters` gives `elmo_tokens` of shape `(num_distinct_words + 1, 50)`, whose row
            0 is all zero, and `word_index` of shape `(batch_size, timesteps)`, 0 where padded.
        """
        result: Dict[str, Dict[str, torch.Tensor]] = {}
        distinct: Optional[Tuple[NDArray[Any], NDArray[Any]]] = None
        for name, column in self._columns.items():
            padded = _pad(rows, column.min_padding_length)
            if distinct_words and isinstance(column, _CharacterIds):
                if distinct is None or distinct[1].shape != padded.shape:
                    distinct = self._distinct(padded)
                result[name] = {
                    column.key: column.take(distinct[0]),
                    "word_index": torch.from_numpy(distinct[1]),
                }
            else:
                result[name] = {column.key: column.take(padded)}
        return result

    def _distinct(self, rows: NDArray[Any]) -> Tuple[NDArray[Any], NDArray[Any]]:
        # Each row remembers the last position that has it, which needs no sorting.
        flat = rows.reshape(-1)
        num_rows = int(flat.max(initial=0)) + 1
        if num_rows > len(self._position_of_row):
            self._position_of_row = np.zeros(
                max(num_rows, 2 * len(self._position_of_row), self._num_known), dtype=np.int32
            )
        positions = np.arange(len(flat), dtype=np.int32)
        self._position_of_row[flat] = positions
        last = self._position_of_row[flat]
        is_last = (last == positions) & (flat != PADDING_ROW)
        words = np.concatenate([[PADDING_ROW], flat[is_last]])
        index = np.cumsum(is_last)[last] * (flat != PADDING_ROW)
        return words, index.reshape(rows.shape)


class _Interner(Dict[str, int]):
    """
    A dictionary that gives a word that it doesn't have the next number.
    """

    next_row: int
    new_words: List[str]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.new_words = []

    def __missing__(self, word: str) -> int:
        row = self.next_row
        self[word] = row
        self.next_row = row + 1
        self.new_words.append(word)
        return row


def _pad(rows: NDArray[Any], min_length: int) -> NDArray[Any]:
    missing = min_length - rows.shape[1]
    if missing <= 0:
        return rows
    return np.pad(rows, ((0, 0), (0, missing)), constant_values=PADDING_ROW)


_WORDS_AT_A_TIME = 2**13


class _Column:
    """
    What one indexer says about every word.
    """

    key: str
    table: NDArray[Any]

    def __init__(self, indexer: TokenIndexer) -> None:
        self.min_padding_length = indexer._token_min_padding_length

    def values(self, words: List[str]) -> NDArray[Any]:
        raise NotImplementedError

    def put(self, first_row: int, words: List[str]) -> None:
        end = first_row + len(words)
        if end > len(self.table):
            # Room for as many new words again, so that growing is rare.
            room = first_row + 2 * len(words) if first_row > 1 else end
            table = np.zeros((room, *self.table.shape[1:]), dtype=self.table.dtype)
            table[: len(self.table)] = self.table
            self.table = table
        # In parts, so that what is in between stays small.
        for begin in range(0, len(words), _WORDS_AT_A_TIME):
            part = words[begin : begin + _WORDS_AT_A_TIME]
            self.table[first_row + begin : first_row + begin + len(part)] = self.values(part)

    def take(self, rows: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(self.table.take(rows, axis=0)).long()


class _TokenIds(_Column):
    key = "tokens"

    def __init__(self, indexer: SingleIdTokenIndexer, vocab: Vocabulary) -> None:
        super().__init__(indexer)
        self._vocab = vocab
        self._namespace = str(indexer.namespace)
        self._lowercase = indexer.lowercase_tokens
        self.table = np.zeros(1, dtype=np.int32)

    def values(self, words: List[str]) -> NDArray[Any]:
        indices = self._vocab.get_token_to_index_vocabulary(self._namespace)
        unknown = indices.get(self._vocab._oov_token, -1)
        keys = list(map(str.lower, words)) if self._lowercase else words
        result = np.fromiter(map(indices.get, keys, itertools.repeat(unknown)), np.int32, len(keys))
        if unknown < 0 and (result < 0).any():
            # There is no unknown word; AllenNLP has the error for it.
            self._vocab.get_token_index(keys[int(result.argmin())], self._namespace)
        return result


class _CharacterIds(_Column):
    key = "elmo_tokens"

    def __init__(self, indexer: ELMoTokenCharactersIndexer) -> None:
        super().__init__(indexer)
        self._mapper = indexer._mapper
        largest_id = max(
            [ELMoCharacterMapper.padding_character, *self._mapper.tokens_to_add.values()]
        )
        dtype = np.int16 if largest_id + 1 <= np.iinfo(np.int16).max else np.int64
        self.table = np.zeros((1, ELMoCharacterMapper.max_word_length), dtype=dtype)

    def values(self, words: List[str]) -> NDArray[Any]:
        width = ELMoCharacterMapper.max_word_length
        encoded = [word.encode("utf-8", "ignore")[: width - 2] for word in words]
        lengths = np.fromiter(map(len, encoded), np.int64, len(words))
        characters = np.frombuffer(b"".join(encoded), dtype=np.uint8)

        # All ids are one more than their character: AllenNLP keeps 0 for the padding of sentences.
        table = np.full(
            (len(words), width), ELMoCharacterMapper.padding_character + 1, dtype=self.table.dtype
        )
        table[:, 0] = ELMoCharacterMapper.beginning_of_word_character + 1
        first = np.arange(len(words)) * width + 1
        ends = np.cumsum(lengths)
        table.reshape(-1)[
            np.repeat(first - (ends - lengths), lengths) + np.arange(len(characters))
        ] = characters.astype(self.table.dtype) + 1
        table.reshape(-1)[first + lengths] = ELMoCharacterMapper.end_of_word_character + 1

        special = {
            ELMoCharacterMapper.bos_token,
            ELMoCharacterMapper.eos_token,
            *self._mapper.tokens_to_add,
        }
        if not special.isdisjoint(words):
            for row, word in enumerate(words):
                if word in special:
                    table[row] = self._mapper.convert_word_to_char_ids(word)
        return table
