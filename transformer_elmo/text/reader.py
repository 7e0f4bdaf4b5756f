"""Sentences on their way through a model: lines to words, words to arrays, batches in order."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import AbstractSet, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from transformer_elmo.text.batching import cut_into_batches
from transformer_elmo.text.corpus import AN_OBJECT, Sentence, TextOrWords, sentence_in
from transformer_elmo.text.vocabulary import WordList
from transformer_elmo.text.word_table import TokenIds, character_ids

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

# Batches' worth of tokens that are sorted by length together, and so are in memory together.
BATCHES_IN_MEMORY = 8

# So many of these are a section.
SECTION = 16


class WordReader:
    """
    Turns sentences into what a model takes: words, boundary tokens around them, numbers. Reading
    from several threads is safe.

    `start_tokens`, `end_tokens`: what the model was trained to see around each sentence. `split`:
    from a text to its words. `own_characters`: see
    `transformer_elmo.text.word_table.character_ids`. `lowercase`: whether the vocabulary's words
    are in lower case.
    """

    def __init__(
        self,
        vocabulary: WordList,
        start_tokens: Sequence[str] = (),
        end_tokens: Sequence[str] = (),
        split: Callable[[str], list[str]] = str.split,
        own_characters: Mapping[str, int] | None = None,
        lowercase: bool = False,
    ) -> None:
        self.vocabulary = vocabulary
        self.start_tokens, self.end_tokens = list(start_tokens), list(end_tokens)
        self.split = split
        self._own_characters = own_characters
        self._lowercase = lowercase
        self._token_ids: TokenIds | None = None

    def words(self, sentence: Sentence) -> list[str]:
        """The words of a sentence, without boundary tokens; a `TypeError` if it isn't one."""
        found = checked_sentence(sentence)
        return self.split(found) if isinstance(found, str) else found

    def with_boundaries(self, words: Sequence[str]) -> list[str]:
        """The tokens that the model reads for a sentence of these words."""
        return [*self.start_tokens, *words, *self.end_tokens]

    def arrays(
        self, sentences: Sequence[Sequence[str]], with_ids: bool = True
    ) -> dict[str, NDArray[Any]]:
        """
        `sentences`: their tokens, boundary tokens included. `with_ids`: whether the vocabulary's
        numbers are wanted. Returns `characters`, shape `(num_distinct + 1, 50)`, one row for each
        distinct word and an empty one before them; `word_index`, shape `(batch_size, timesteps)`,
        the row of each word, 0 where padded; `lengths`, shape `(batch_size,)`; and `token_ids`,
        shape `(batch_size, timesteps)`, if wanted.
        """
        index, distinct = indexed_words(sentences)
        characters = np.zeros((len(distinct) + 1, character_ids([]).shape[1]), dtype=np.int64)
        characters[1:] = character_ids(distinct, self._own_characters)
        lengths = np.fromiter(map(len, sentences), np.int64, len(sentences))
        arrays = {"characters": characters, "word_index": index, "lengths": lengths}
        if with_ids:
            if self._token_ids is None:
                ids, unknown = self.vocabulary.ids, self.vocabulary.unknown
                self._token_ids = TokenIds(ids, unknown, self._lowercase)
            values = np.zeros(len(distinct) + 1, dtype=np.int64)
            values[1:] = self._token_ids.values(distinct)
            arrays["token_ids"] = values[index]
        return arrays


def checked_sentence(sentence: Sentence) -> TextOrWords:
    """A sentence's text or words; a `TypeError` if `sentence_in` finds none."""
    found = sentence_in(sentence)
    if found is None:
        raise TypeError(
            f"A sentence is a string, a list of strings, its words, or {AN_OBJECT}: got "
            f"{type(sentence).__name__} {sentence!r:.80}."
        )
    return found


def checked_sentences(sentences: Iterable[Sentence]) -> Iterable[Sentence]:
    """
    The same; a `TypeError` for what gives no sentences one by one: a string gives its letters, a
    mapping or a table its keys, a set its members in any order.
    """
    if (
        isinstance(sentences, (str, bytes, Mapping, AbstractSet))
        or not (hasattr(sentences, "__iter__") or hasattr(sentences, "__getitem__"))
        or hasattr(sentences, "columns")
    ):
        raise TypeError(
            f"Expected a list of sentences, got {type(sentences).__name__} {sentences!r:.60}. A "
            "single sentence: put it in a list."
        )
    return sentences


def indexed_words(sentences: Sequence[Sequence[str]]) -> Any:
    """
    Returns for each word of a padded batch, shape `(batch_size, timesteps)`, its place among the
    distinct ones, counted from 1, and 0 where padded; and the distinct words.
    """
    row: dict[str, int] = {}
    index = np.zeros((len(sentences), max(map(len, sentences), default=0)), dtype=np.int64)
    for number, sentence in enumerate(sentences):
        index[number, : len(sentence)] = [row.setdefault(w, len(row) + 1) for w in sentence]
    return index, list(row)


def in_batches(
    items: Iterable[ItemT],
    length: Callable[[ItemT], int],
    run: Callable[[list[ItemT]], list[ResultT]],
    max_tokens: int,
    wanted: Callable[[ItemT], bool] = lambda item: True,
    begin: Callable[[], None] = lambda: None,
) -> Iterator[ResultT]:
    """
    Runs a function over batches of items of about equal length, and gives its results in the items'
    order. Items are taken as they are needed: there may be any number of them.

    `length`: an item's number of tokens. `run`: gives one result for each item of a batch.
    `max_tokens`: the most tokens of a batch, padding included. A longer item goes alone. `wanted`:
    whether an item's result is given, which is so for all that follow an item for which it is. What
    is run is the same from the beginning of a section on, whatever is wanted in it. `begin`: called
    at the beginning of each section, a number of batches. Raises `ValueError` if `max_tokens` isn't
    positive.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}.")

    def results(held: list[ItemT], lengths: list[int]) -> Iterator[ResultT]:
        found: dict[int, ResultT] = {}
        for batch in cut_into_batches(np.asarray(lengths, dtype=np.int64), max_tokens, None):
            indices = batch.tolist()
            found.update(zip(indices, run([held[i] for i in indices])))
        for i, item in enumerate(held):
            result = found.pop(i)
            if wanted(item):
                yield result

    section: list[tuple[list[ItemT], list[int]]] = []
    for number, sorted_together in enumerate(_sorted_together(items, length, max_tokens)):
        if number % SECTION == 0:
            section = []
            begin()
        section.append(sorted_together)
        if wanted(sorted_together[0][-1]):
            for held, lengths in section:
                yield from results(held, lengths)
            section = []


def _sorted_together(
    items: Iterable[ItemT], length: Callable[[ItemT], int], max_tokens: int
) -> Iterator[tuple[list[ItemT], list[int]]]:
    """Items, and how many tokens each has, in lists of some batches' worth."""
    held: list[ItemT] = []
    lengths: list[int] = []
    num_tokens = 0
    for item in items:
        held.append(item)
        lengths.append(max(1, length(item)))
        num_tokens += lengths[-1]
        if num_tokens >= BATCHES_IN_MEMORY * max_tokens:
            yield held, lengths
            held, lengths, num_tokens = [], [], 0
    if held:
        yield held, lengths
