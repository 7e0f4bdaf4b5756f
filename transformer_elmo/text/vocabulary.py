"""
The words that a model predicts, each with its number, and how they are counted in a corpus as fast
as it can be read. The counts of all distinct words are in memory meanwhile: some 2.4 million of
them, half a gigabyte, for a billion words.
"""

import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Union

import numpy as np

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import folder_written_whole, read_bytes
from transformer_elmo.text.corpus import (
    DataPath,
    find_shards,
    has_json,
    sentences_in,
    texts_of,
)
from transformer_elmo.text.word_table import WordHashTable, text_bytes, words_at, words_per_line
from transformer_elmo.with_allennlp import progress_bar

logger = logging.getLogger(__name__)

# As AllenNLP names and writes them.
PADDING, UNKNOWN = "@@PADDING@@", "@@UNKNOWN@@"
NAMESPACE, NAMESPACES_WITHOUT_PADDING = "tokens", "non_padded_namespaces.txt"
_LINE_END = re.compile(r"\n|\r\n")


class WordList:
    """
    A vocabulary: words numbered from 1 on; 0 is padding.

    `unknown_word`: the one that stands for all others.
    """

    def __init__(self, words: Sequence[str], unknown_word: str = UNKNOWN) -> None:
        self.words = list(words)
        self.unknown_word = unknown_word

    def __len__(self) -> int:
        """The number of words, without padding."""
        return len(self.words)

    def __repr__(self) -> str:
        return f"WordList({len(self):,} words)"

    def __contains__(self, word: object) -> bool:
        return word in self.ids and word != PADDING

    def __getitem__(self, number: int) -> str:
        """The word of a number, as AllenNLP names it: 0 is "@@PADDING@@"."""
        return PADDING if number == 0 else self.words[number - 1]

    @cached_property
    def ids(self) -> dict[str, int]:
        """The number of each word."""
        return {word: number for number, word in enumerate(self.words, start=1)}

    @property
    def unknown(self) -> int | None:
        """The number of all words that aren't in the list; `None` if none stands for them."""
        return self.ids.get(self.unknown_word)

    @classmethod
    def read(
        cls,
        path: Union[str, "os.PathLike[str]"],
        shown: str | None = None,
        unknown_word: str = UNKNOWN,
    ) -> "WordList":
        """
        `path`: a file of one word a line, as AllenNLP's vocabularies have them. `shown`: what
        messages call it. Raises `ConfigurationError` if it isn't there, or not UTF-8.
        """
        try:
            content = read_bytes(path, shown)
            lines = _LINE_END.split(content.decode("utf-8"))
        except UnicodeDecodeError as error:
            line = content[: error.start].count(b"\n") + 1
            raise ConfigurationError(
                f"{shown or path}, line {line}: a byte that is not UTF-8 "
                f"({content[error.start]:#04x}). Convert the file to UTF-8."
            ) from None
        if not lines[-1]:
            lines.pop()
        return cls([line.replace("@@NEWLINE@@", "\n") for line in lines], unknown_word)

    def write(self, folder: Path) -> None:
        """Fills a folder, which must be there, as AllenNLP's vocabularies have it."""
        text = "".join(self.lines())
        (folder / f"{NAMESPACE}.txt").write_text(text, encoding="utf-8", newline="\n")
        (folder / NAMESPACES_WITHOUT_PADDING).write_text("*labels\n*tags\n")

    def lines(self) -> Iterator[str]:
        """What `read` reads, line by line with their ends."""
        return (word.replace("\n", "@@NEWLINE@@") + "\n" for word in self.words)


def count_words(
    data_path: DataPath,
    start_tokens: Iterable[str] = (),
    end_tokens: Iterable[str] = (),
    quiet: bool = False,
    max_words: float = math.inf,
) -> dict[str, int]:
    """
    How often each word of a corpus occurs, in the order of the first occurrences. Words are what
    `str.split` makes of its lines.

    `data_path`: what :func:`~transformer_elmo.text.corpus.find_shards` takes. `start_tokens`,
    `end_tokens`: counted once before and after the words of each line that isn't blank. `quiet`:
    without a progress bar. `max_words`: lines of more words are left out.
    """
    start_tokens, end_tokens = list(start_tokens), list(end_tokens)
    counter = _WordCounter()
    first_words: list[str] = []
    num_sentences = num_dropped = 0
    for text in _texts(data_path, quiet):
        data = text_bytes(text)
        if start_tokens or end_tokens or max_words < math.inf:
            begins, ends, num_words = words_per_line(data)
            kept = (num_words > 0) & (num_words <= max_words)
            lines = [data[a:b] for a, b in zip(begins[kept].tolist(), ends[kept].tolist())]
            num_dropped += int(np.count_nonzero(num_words)) - len(lines)
            if lines and not num_sentences:
                first_words = lines[0].decode("utf-8").split()
            num_sentences += len(lines)
            data = b"\n".join(lines)
        counter.add(data)
    counts = counter.total()
    if num_sentences:
        # In the order in which they occur, the end tokens come after the first sentence's words.
        counts = dict.fromkeys([*start_tokens, *first_words, *end_tokens], 0) | counts
        for token in (*start_tokens, *end_tokens):
            counts[token] += num_sentences
    if num_dropped:
        logger.warning(
            "Left out %d sentences of %s of more than %g words.", num_dropped, data_path, max_words
        )
    return counts


# Fewer distinct words than these are counted as fast by a dictionary.
_FIRST_TABLE = 2**14


class _WordCounter:
    """Counts words: those seen for a while by their rows in a table, others by a dictionary."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._words: list[str] = []
        self._hash_table = WordHashTable([], 1)
        self._by_row = np.zeros(1, dtype=np.int64)

    def add(self, data: bytes) -> None:
        """Counts the words of what `text_bytes` gives."""
        if self._words:
            rows, starts, ends = self._hash_table.find(data)
            unknown = np.flatnonzero(rows == 0)
            self._counts.update(words_at(data, starts[unknown], ends[unknown]))
            np.add.at(self._by_row, rows, 1)
        else:
            self._counts.update(data.decode("utf-8").split())
        if len(self._counts) >= max(_FIRST_TABLE, 2 * len(self._words)):
            # Again and again, but each time for twice as many words.
            self._words = list(self.total())
            self._hash_table = WordHashTable(self._words, 1)
            self._by_row = np.zeros(len(self._words) + 1, dtype=np.int64)

    def total(self) -> dict[str, int]:
        """All counts so far, in the order in which the words first occurred."""
        for row in np.flatnonzero(self._by_row[1:]).tolist():
            self._counts[self._words[row]] += int(self._by_row[row + 1])
        self._by_row[:] = 0
        return self._counts


def _texts(data_path: DataPath, quiet: bool) -> Iterator[str]:
    shards = find_shards(data_path)
    num_bytes = sum(map(os.path.getsize, shards))
    units = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
    bar = progress_bar(total=num_bytes, desc="counting words", disable=quiet, **units)
    for shard in shards:
        for text, line_number in texts_of(shard, bar.update):
            yield _plain(text, shard, line_number)
    bar.close()


def _plain(text: str, shard: Path, line_number: int) -> str:
    """Lines of words. Of JSON, words that a vocabulary's lines of UTF-8 can't hold are left out."""
    if not has_json(text):
        return text
    sentences = sentences_in(text, shard, line_number)
    lists = (s.split() if isinstance(s, str) else s for s in sentences)
    return "".join(" ".join(filter(_is_plain, words)) + "\n" for words in lists)


def _is_plain(word: str) -> bool:
    return [word] == word.encode("utf-8", "ignore").decode().split()


def write_vocabulary(
    data_path: DataPath,
    directory: Union[str, "os.PathLike[str]"],
    min_count: int = 3,
    max_vocab_size: int | None = None,
    force: bool = False,
    quiet: bool = False,
) -> int:
    """
    Writes the vocabulary of a corpus as AllenNLP's folder, complete or not at all. Its `tokens.txt`
    holds `</S>`, `<S>`, `@@UNKNOWN@@` and then the words by falling frequency, those of the same
    frequency by their code points.

    `data_path`: what :func:`~transformer_elmo.text.corpus.find_shards` takes. `directory`: the
    folder to write. `min_count`: words that occur less often are left out. `max_vocab_size`: the
    most words to keep, beside the three special ones. `force`: whether to replace a folder that
    isn't empty. `quiet`: without a progress bar. Returns the number of lines of `tokens.txt`.
    Raises `ConfigurationError` if the folder isn't empty and `force` is false, or no word is left.
    """
    special = ["</S>", "<S>", UNKNOWN]
    with folder_written_whole(Path(directory), replace=force) as folder:
        counts = count_words(data_path, quiet=quiet)
        # `<UNK>` is how the billion-word corpus writes the unknown word.
        left_out = {*special, PADDING, "<UNK>"}
        kept = [w for w, count in counts.items() if count >= min_count and w not in left_out]
        if not kept:
            raise ConfigurationError(
                f"No word of {data_path} occurs {min_count} times or more: {len(counts)} distinct "
                "words were counted. Give more text or a smaller --min-count."
            )
        kept.sort(key=lambda word: (-counts[word], word))
        words = WordList(special + kept[:max_vocab_size])
        words.write(folder)
    return len(words)


def extended_words(old: Sequence[str], counts: Mapping[str, int], min_count: int = 3) -> list[str]:
    """
    An old vocabulary with the words of new text, by falling frequency in that text: a sampled
    softmax draws the first words most often. Old words of the same frequency keep their order, and
    those that the text doesn't have come last.

    `counts`: how often each word occurs in the new text. `min_count`: new words that occur less
    often are left out.
    """
    known = set(old)
    new = (w for w, count in counts.items() if count >= min_count and w not in known)
    # Sorting is stable.
    return sorted([*old, *new], key=lambda word: -counts.get(word, 0))
