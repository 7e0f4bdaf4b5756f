"""Sentences on their way through a model: words to tensors, batches by token budget, order kept."""

import json
import re
from itertools import chain
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Optional,
    Sequence,
    TypeVar,
    Union,
)

import numpy as np
import torch
from allennlp.common.checks import ConfigurationError
from allennlp.data import (
    Batch,
    DatasetReader,
    Instance,
    TextFieldTensors,
    Token,
    Tokenizer,
    Vocabulary,
)
from allennlp.data.fields import TextField

from transformer_elmo.data.batching import cut_into_batches
from transformer_elmo.data.corpus import DataPath, decode, find_shards, read_blocks
from transformer_elmo.data.words import WordTable

Sentence = Union[str, Sequence[str]]
"""A text for a tokenizer, or its tokens."""

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

# Batches' worth of tokens that are sorted by length together, and so are in memory together.
BATCHES_PER_WINDOW = 8


class SentenceIndexer:
    """
    Turns sentences into what a model takes, by the rules of the dataset reader that it was trained
    with. Reading from several threads is safe.

    # Parameters

    reader : `DatasetReader`
        Of the kind "simple_language_modeling".
    vocab : `Vocabulary`
    tokenizer : `str` or `Tokenizer`, optional (default = the reader's)
        For sentences that come as text; a name is one that AllenNLP knows, such as "just_spaces".

    # Raises

    `ConfigurationError`
        If the reader has no token indexers, or nobody knows the tokenizer.
    """

    def __init__(
        self,
        reader: DatasetReader,
        vocab: Vocabulary,
        tokenizer: Union[str, Tokenizer, None] = None,
    ) -> None:
        self._indexers = _attribute(reader, "token_indexers")
        if not self._indexers:
            raise ConfigurationError(
                f"The archive's dataset reader, a {type(reader).__name__}, has no token_indexers. "
                "Expected one of the kind simple_language_modeling."
            )
        if isinstance(tokenizer, str):
            if tokenizer not in Tokenizer.list_available():
                raise ConfigurationError(
                    f"There is no tokenizer {tokenizer!r}. There are: "
                    f"{', '.join(sorted(Tokenizer.list_available()))}."
                )
            tokenizer = Tokenizer.by_name(tokenizer)()
        self._tokenizer = tokenizer or _attribute(reader, "tokenizer")
        self._vocab = vocab
        self.start_tokens = [token.text for token in _attribute(reader, "start_tokens") or []]
        self.end_tokens = [token.text for token in _attribute(reader, "end_tokens") or []]
        self._by_words = all(map(WordTable.supports, self._indexers.values()))

    def words(self, sentence: Sentence) -> List[str]:
        """
        The words of a sentence, without boundary tokens.

        # Raises

        `TypeError`
            If it is neither a string nor a sequence of strings.
        """
        if isinstance(sentence, str):
            return [str(token.text) for token in self._tokenizer.tokenize(sentence)]
        words: List[Any] = list(sentence) if isinstance(sentence, Iterable) else [None]
        for word in words:
            if not isinstance(word, str):
                raise TypeError(
                    "A sentence is a string or a list of strings, its words: got "
                    f"{type(sentence).__name__} {sentence!r:.80}."
                )
        return words

    def with_boundaries(self, words: Sequence[str]) -> List[str]:
        """The tokens that the model reads for a sentence of these words."""
        return [*self.start_tokens, *words, *self.end_tokens]

    def tensors(self, sentences: Sequence[Sequence[str]]) -> TextFieldTensors:
        """
        # Parameters

        sentences : `Sequence[Sequence[str]]`
            Their tokens, boundary tokens included.

        # Returns

        `TextFieldTensors`
            A padded batch, for `LanguageModel.forward`. Characters come once for each distinct
            word, if the indexers allow it.
        """
        if not self._by_words:
            return self._tensors_of_instances(sentences)
        # A dictionary keeps the order in which words are put in.
        distinct = dict.fromkeys(chain.from_iterable(sentences))
        row = {word: number for number, word in enumerate(distinct, start=1)}
        index = np.zeros((len(sentences), max(map(len, sentences), default=0)), dtype=np.int64)
        for number, sentence in enumerate(sentences):
            index[number, : len(sentence)] = [row[word] for word in sentence]
        tokens = [Token(word) for word in distinct]
        result: Dict[str, Dict[str, torch.Tensor]] = {}
        for name, indexer in self._indexers.items():
            ((key, indexed),) = indexer.tokens_to_indices(tokens, self._vocab).items()
            table = torch.as_tensor(indexed, dtype=torch.long)
            table = torch.cat([table.new_zeros(1, *table.shape[1:]), table])
            if table.dim() == 1:
                result[name] = {key: table[torch.from_numpy(index)]}
            else:
                result[name] = {key: table, "word_index": torch.from_numpy(index)}
        return result

    def _tensors_of_instances(self, sentences: Sequence[Sequence[str]]) -> TextFieldTensors:
        batch = Batch(
            [
                Instance({"source": TextField([Token(word) for word in words], self._indexers)})
                for words in sentences
            ]
        )
        batch.index_instances(self._vocab)
        tensors: Any = batch.as_tensor_dict()["source"]
        return tensors


def _attribute(reader: DatasetReader, name: str) -> Any:
    """AllenNLP's readers keep what they were given under a leading underscore, ours in the open."""
    return getattr(reader, name, getattr(reader, "_" + name, None))


def in_batches(
    items: Iterable[ItemT],
    length: Callable[[ItemT], int],
    run: Callable[[List[ItemT]], List[ResultT]],
    max_tokens: int,
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

    # Returns

    `Iterator[ResultT]`

    # Raises

    `ValueError`
        If `max_tokens` isn't positive.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}.")

    def results(window: List[ItemT], lengths: List[int]) -> Iterator[ResultT]:
        found: Dict[int, ResultT] = {}
        for batch in cut_into_batches(np.asarray(lengths, dtype=np.int64), max_tokens, None):
            indices = batch.tolist()
            found.update(zip(indices, run([window[i] for i in indices])))
        for i in range(len(window)):
            yield found.pop(i)

    window: List[ItemT] = []
    lengths: List[int] = []
    num_tokens = 0
    for item in items:
        window.append(item)
        lengths.append(max(1, length(item)))
        num_tokens += lengths[-1]
        if num_tokens >= BATCHES_PER_WINDOW * max_tokens:
            yield from results(window, lengths)
            window, lengths, num_tokens = [], [], 0
    yield from results(window, lengths)


def read_lines(data_path: DataPath) -> Iterator[str]:
    """
    All lines of a text, blank ones too, without their ends.

    # Parameters

    data_path : `str`, `PathLike`, or a list of them
        See :func:`~transformer_elmo.data.corpus.find_shards`.

    # Raises

    `ConfigurationError`
        If it can't be read, or isn't UTF-8.
    """
    for shard in find_shards(data_path):
        number = 1
        for block in read_blocks(shard):
            lines = decode(block, shard, number).split("\n")
            if not lines[-1]:
                lines.pop()
            number += len(lines)
            for line in lines:
                yield line[:-1] if line.endswith("\r") else line


def count_lines(data_path: DataPath) -> int:
    """How many :func:`read_lines` will give."""
    count = 0
    for shard in find_shards(data_path):
        block = b""
        for block in read_blocks(shard):
            count += block.count(b"\n")
        count += bool(block) and not block.endswith(b"\n")
    return count


INPUT_FORMATS = ("auto", "text", "json")

# Spaces are allowed in JSON, but text may have such a beginning, too.
_PERHAPS_JSON = re.compile(r'\s*\{\s*"')


def parse_line(line: str, input_format: str = "auto", number: Optional[int] = None) -> Sentence:
    """
    A sentence from a line: the line itself; or a JSON object with `tokens`, a list of words, or
    with `sentence`, a text.

    # Parameters

    line : `str`
    input_format : `str`, optional (default = `"auto"`)
        "text" or "json" says what it is; by default it is JSON if it begins with `{"`. Where there
        are spaces before or in that, it must be readable as JSON besides.
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
    if isinstance(value, dict):
        tokens, text = value.get("tokens"), value.get("sentence")
        if isinstance(tokens, list) and all(isinstance(token, str) for token in tokens):
            return tokens
        if tokens is None and isinstance(text, str):
            return text
    raise ConfigurationError(
        f'{where} is JSON, but not an object with "tokens" (a list of words) or "sentence" (a '
        f"text): {line:.80}"
    )
