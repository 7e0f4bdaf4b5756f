"""Sentences on their way through a model: lines to words, words to arrays, batches in order."""

import json
import re
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
    Union,
)

import numpy as np
from numpy.typing import NDArray

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.text.batching import cut_into_batches
from transformer_elmo.text.vocabulary import WordList
from transformer_elmo.text.words import TokenIds, character_ids

Sentence = Union[str, Sequence[str]]
"""A text for a tokenizer, or its tokens."""

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

    # Parameters

    vocabulary : `WordList`
    start_tokens, end_tokens : `Sequence[str]`
        What the model was trained to see around each sentence.
    split : `Callable[[str], List[str]]`, optional (default = `str.split`)
        From a text to its words.
    own_characters : `Mapping[str, int]`, optional (default = `None`)
        See `transformer_elmo.text.words.character_ids`.
    lowercase : `bool`, optional (default = `False`)
        Whether the vocabulary's words are in lower case.
    """

    def __init__(
        self,
        vocabulary: WordList,
        start_tokens: Sequence[str] = (),
        end_tokens: Sequence[str] = (),
        split: Callable[[str], List[str]] = str.split,
        own_characters: Optional[Mapping[str, int]] = None,
        lowercase: bool = False,
    ) -> None:
        self.vocabulary = vocabulary
        self.start_tokens, self.end_tokens = list(start_tokens), list(end_tokens)
        self.split = split
        self._own_characters = own_characters
        self._lowercase = lowercase
        self._token_ids: Optional[TokenIds] = None

    def words(self, sentence: Sentence) -> List[str]:
        """
        The words of a sentence, without boundary tokens.

        # Raises

        `TypeError`
            If it is neither a string nor a sequence of strings.
        """
        return words_of(sentence, self.split)

    def with_boundaries(self, words: Sequence[str]) -> List[str]:
        """The tokens that the model reads for a sentence of these words."""
        return [*self.start_tokens, *words, *self.end_tokens]

    def arrays(
        self, sentences: Sequence[Sequence[str]], with_ids: bool = True
    ) -> Dict[str, NDArray[Any]]:
        """
        # Parameters

        sentences : `Sequence[Sequence[str]]`
            Their tokens, boundary tokens included.
        with_ids : `bool`, optional (default = `True`)
            Whether the vocabulary's numbers are wanted.

        # Returns

        `Dict[str, NDArray]`
            `characters`, shape `(num_distinct + 1, 50)`, one row for each distinct word and an
            empty one before them; `word_index`, shape `(batch_size, timesteps)`, the row of each
            word, 0 where padded; `lengths`, shape `(batch_size,)`; and `token_ids`, shape
            `(batch_size, timesteps)`, if wanted.
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


def words_of(sentence: Sentence, split: Callable[[str], List[str]]) -> List[str]:
    """
    # Raises

    `TypeError`
        If a sentence is neither a string nor a sequence of strings.
    """
    if isinstance(sentence, str):
        return split(sentence)
    words: List[Any] = list(sentence) if isinstance(sentence, Iterable) else [None]
    for word in words:
        if not isinstance(word, str):
            raise TypeError(
                "A sentence is a string or a list of strings, its words: got "
                f"{type(sentence).__name__} {sentence!r:.80}."
            )
    return words


def checked_sentences(sentences: Iterable[Sentence]) -> Iterable[Sentence]:
    """
    # Raises

    `TypeError`
        If it is a string, whose letters would each be taken for a sentence.
    """
    if isinstance(sentences, str):
        raise TypeError(
            f"Expected a list of sentences, got one string: put it in a list, [{sentences!r:.60}]."
        )
    return sentences


def indexed_words(sentences: Sequence[Sequence[str]]) -> Any:
    """
    # Returns

    `Tuple[NDArray[int64], List[str]]`
        For each word of a padded batch, shape `(batch_size, timesteps)`, its place among the
        distinct ones, counted from 1, and 0 where padded; and the distinct words.
    """
    row: Dict[str, int] = {}
    index = np.zeros((len(sentences), max(map(len, sentences), default=0)), dtype=np.int64)
    for number, sentence in enumerate(sentences):
        index[number, : len(sentence)] = [row.setdefault(w, len(row) + 1) for w in sentence]
    return index, list(row)


def in_batches(
    items: Iterable[ItemT],
    length: Callable[[ItemT], int],
    run: Callable[[List[ItemT]], List[ResultT]],
    max_tokens: int,
    wanted: Callable[[ItemT], bool] = lambda item: True,
    begin: Callable[[], None] = lambda: None,
) -> Iterator[ResultT]:
    """
    Runs a function over batches of items of about equal length, and gives its results in the items'
    order. Items are taken as they are needed: there may be any number of them.

    # Parameters

    items : `Iterable[ItemT]`
    length : `Callable[[ItemT], int]`
        An item's number of tokens.
    run : `Callable[[List[ItemT]], List[ResultT]]`
        Gives one result for each item of a batch.
    max_tokens : `int`
        The most tokens of a batch, padding included. A longer item goes alone.
    wanted : `Callable[[ItemT], bool]`, optional (default = all)
        Whether an item's result is given, which is so for all that follow an item for which it is.
        What is run is the same from the beginning of a section on, whatever is wanted in it.
    begin : `Callable[[], None]`, optional
        Called at the beginning of each section, a number of batches.

    # Returns

    `Iterator[ResultT]`

    # Raises

    `ValueError`
        If `max_tokens` isn't positive.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}.")

    def results(held: List[ItemT], lengths: List[int]) -> Iterator[ResultT]:
        found: Dict[int, ResultT] = {}
        for batch in cut_into_batches(np.asarray(lengths, dtype=np.int64), max_tokens, None):
            indices = batch.tolist()
            found.update(zip(indices, run([held[i] for i in indices])))
        for i, item in enumerate(held):
            result = found.pop(i)
            if wanted(item):
                yield result

    section: List[Tuple[List[ItemT], List[int]]] = []
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
) -> Iterator[Tuple[List[ItemT], List[int]]]:
    """Items, and how many tokens each has, in lists of some batches' worth."""
    held: List[ItemT] = []
    lengths: List[int] = []
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


INPUT_FORMATS = ("auto", "text", "json")

# Spaces are allowed in JSON, but text may have such a beginning, too.
_PERHAPS_JSON = re.compile(r'\s*\{\s*"|\["')
# What a JSON object may call the words of a sentence.
WORD_KEYS = ("tokens", "words")


def parse_line(line: str, input_format: str = "auto", number: Optional[int] = None) -> Sentence:
    """
    A sentence from a line: the line itself; or a JSON object with `tokens` or `words`, a list of
    words, or with `sentence`, a text; or a list of words in JSON.

    # Parameters

    line : `str`
    input_format : `str`, optional (default = `"auto"`)
        "text" or "json" says what it is; by default it is JSON if it begins with `{"` or `["`. In
        the latter case, and where there are spaces in the former, it must be readable as JSON
        besides.
    number : `int`, optional (default = `None`)
        The line's number, for messages.

    # Raises

    `ConfigurationError`
        If it should be JSON and isn't, or has neither key.
    """
    if input_format not in INPUT_FORMATS:
        raise ConfigurationError(
            f"input_format must be one of {', '.join(INPUT_FORMATS)}: got {input_format!r}."
        )
    if input_format == "text" or (input_format == "auto" and not _PERHAPS_JSON.match(line)):
        return line
    where = "This line" if number is None else f"Line {number}"
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        if input_format == "auto" and not line.startswith('{"'):
            return line
        raise ConfigurationError(
            f"{where} begins like JSON but can't be read as such ({error}): {line:.80}. If it is "
            'plain text, say so: input format "text".'
        ) from None
    sentence = sentence_in(value)
    if sentence is not None:
        return sentence
    if isinstance(value, list) and input_format == "auto":
        return line
    raise ConfigurationError(
        f'{where} is JSON, but not an object with "tokens" or "words" (a list of words) or '
        f'"sentence" (a text), nor a list of words: {line:.80}'
    )


def sentence_in(value: Any) -> Optional[Sentence]:
    """
    # Parameters

    value : `Any`
        What was read from JSON.

    # Returns

    `str` or `List[str]`, optional
        The sentence that it holds, as `parse_line` has it; `None` if it holds none.
    """
    if not isinstance(value, dict):
        return value if _is_list_of_words(value) else None
    for key in WORD_KEYS:
        if value.get(key) is not None:
            return value[key] if _is_list_of_words(value[key]) else None
    text = value.get("sentence")
    return text if isinstance(text, str) else None


def _is_list_of_words(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(word, str) for word in value)
