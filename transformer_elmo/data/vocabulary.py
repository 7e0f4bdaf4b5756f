"""
Vocabularies counted from a corpus as fast as it can be read, without an `Instance` a sentence:
`"vocabulary": {"type": "from_corpus", ...}` in a config, and a command,

    python -m transformer_elmo.data.vocabulary TRAIN_PATH OUTPUT_DIR --min-count 3

which writes AllenNLP's vocabulary folder. The counts of all distinct words are in memory while it
runs: some 2.4 million of them, half a gigabyte, for a billion words.
"""

import argparse
import logging
import os
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, DefaultDict, Dict, Iterable, Iterator, List, Optional, Tuple, Union

import numpy as np
from allennlp.common.checks import ConfigurationError
from allennlp.common.tqdm import Tqdm
from allennlp.data.dataset_readers.dataset_reader import DatasetReader
from allennlp.data.token_indexers import TokenIndexer
from allennlp.data.tokenizers import Token, WhitespaceTokenizer
from allennlp.data.vocabulary import (
    DEFAULT_NON_PADDED_NAMESPACES,
    DEFAULT_OOV_TOKEN,
    DEFAULT_PADDING_TOKEN,
    NAMESPACE_PADDING_FILE,
    Vocabulary,
)
from numpy.typing import NDArray

from transformer_elmo.data.corpus import DataPath, decode, find_shards, read_blocks
from transformer_elmo.data.dataset_reader import SimpleLanguageModelingDatasetReader
from transformer_elmo.data.lookup import WordLookup, words_at
from transformer_elmo.data.words import depends_on_word_alone

logger = logging.getLogger(__name__)

COUNTED_NAMESPACE = "tokens"


def count_words(
    data_path: DataPath,
    start_tokens: Iterable[str] = (),
    end_tokens: Iterable[str] = (),
    quiet: bool = False,
    max_words: Optional[int] = None,
) -> Dict[str, int]:
    """
    Counts the words of a corpus, which are what `str.split` makes of its lines.

    # Parameters

    data_path : `str` or `List[str]`
        What :func:`~transformer_elmo.data.corpus.find_shards` takes.
    start_tokens : `Iterable[str]`, optional (default = `()`)
        Counted once before the words of each line that isn't blank.
    end_tokens : `Iterable[str]`, optional (default = `()`)
        Counted once after the words of each line that isn't blank.
    quiet : `bool`, optional (default = `False`)
        If `True`, there is no progress bar.
    max_words : `int`, optional (default = `None`)
        Lines of more words are left out.

    # Returns

    `Dict[str, int]`
        In the order in which the words first occur.
    """
    boundary_tokens = [*start_tokens, *end_tokens]
    counter = _WordCounter()
    num_sentences = 0
    num_dropped = 0
    for text in _texts(data_path, quiet):
        if max_words is not None:
            text, dropped = _without_long_lines(text, max_words)
            num_dropped += dropped
        if boundary_tokens:
            lines = text.split("\n")
            found = sum(1 for line in lines if line and not line.isspace())
            if found and not num_sentences:
                # Counted by itself, so that the end tokens come after its words.
                first = next(i for i, line in enumerate(lines) if line and not line.isspace())
                counter.add([*start_tokens, *lines[first].split(), *end_tokens])
                text = "\n".join(lines[first + 1 :])
            num_sentences += found
        counter.add_text(text)
    counts = counter.total()
    for token in boundary_tokens:
        counts[token] += max(0, num_sentences - 1)
    if num_dropped:
        logger.warning(
            "Left out %d sentences of %s of more than %d words.", num_dropped, data_path, max_words
        )
    return counts


def _without_long_lines(text: str, max_words: int) -> Tuple[str, int]:
    """
    A text without its lines of more than so many words, and how many there were.
    """
    lines = text.split("\n")
    # So many words need so many characters, with the spaces between them, which few lines have.
    least = 2 * max_words + 1
    long = [
        i for i, line in enumerate(lines) if len(line) >= least and len(line.split()) > max_words
    ]
    for i in long:
        lines[i] = ""
    return ("\n".join(lines) if long else text), len(long)


# Fewer distinct words than these are counted as fast by a dictionary.
_FIRST_LOOKUP = 2**14

# Rows are added up when there are so many.
_ROWS_AT_A_TIME = 2**21


class _WordCounter:
    """
    Counts words: those seen for a while by their rows in a table, the others by a dictionary.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lookup: Optional[WordLookup] = None
        self._words: List[str] = []
        self._by_row = np.zeros(0, dtype=np.int64)
        self._rows: List[NDArray[np.int32]] = []
        self._num_rows = 0

    def add(self, words: List[str]) -> None:
        self._counts.update(words)

    def add_text(self, text: str) -> None:
        if self._lookup is None:
            self._counts.update(text.split())
        else:
            rows, starts, ends, data = self._lookup.find(text)
            unknown = np.flatnonzero(rows == 0)
            self._counts.update(words_at(data, starts[unknown], ends[unknown]))
            self._rows.append(rows)
            self._num_rows += len(rows)
            if self._num_rows >= _ROWS_AT_A_TIME:
                self._add_rows()
        if len(self._counts) >= max(_FIRST_LOOKUP, 2 * len(self._words)):
            # Again and again, but each time for twice as many words.
            self.total()
            self._words = list(self._counts)
            self._lookup = WordLookup(self._words, 1)
            self._by_row = np.zeros(len(self._words) + 1, dtype=np.int64)

    def _add_rows(self) -> None:
        if self._rows:
            self._by_row += np.bincount(np.concatenate(self._rows), minlength=len(self._by_row))
        self._rows, self._num_rows = [], 0

    def total(self) -> Dict[str, int]:
        """
        All counts so far, in the order in which the words first occurred.
        """
        self._add_rows()
        for row in np.flatnonzero(self._by_row[1:]).tolist():
            self._counts[self._words[row]] += int(self._by_row[row + 1])
        self._by_row[:] = 0
        return self._counts


def _texts(data_path: DataPath, quiet: bool) -> Iterator[str]:
    shards = find_shards(data_path)
    progress = None
    if not quiet:
        num_bytes = sum(os.path.getsize(shard) for shard in shards)
        progress = Tqdm.tqdm(
            total=num_bytes, desc="counting words", unit="B", unit_scale=True, unit_divisor=1024
        )
    for shard in shards:
        line_number = 1
        for block in read_blocks(shard):
            yield decode(block, shard, line_number)
            line_number += block.count(b"\n")
            if progress is not None:
                progress.update(len(block))
    if progress is not None:
        progress.close()


class CorpusVocabulary(Vocabulary):
    """
    The home of the constructor "from_corpus"; what it makes are plain vocabularies.
    """

    @classmethod
    def from_corpus(
        cls,
        data_path: Union[str, List[str]],
        reader: Optional[DatasetReader] = None,
        start_tokens: Optional[List[str]] = None,
        end_tokens: Optional[List[str]] = None,
        min_count: Optional[Dict[str, int]] = None,
        max_vocab_size: Optional[Union[int, Dict[str, int]]] = None,
        non_padded_namespaces: Iterable[str] = DEFAULT_NON_PADDED_NAMESPACES,
        pretrained_files: Optional[Dict[str, str]] = None,
        only_include_pretrained_words: bool = False,
        tokens_to_add: Optional[Dict[str, List[str]]] = None,
        min_pretrained_embeddings: Optional[Dict[str, int]] = None,
        padding_token: Optional[str] = DEFAULT_PADDING_TOKEN,
        oov_token: Optional[str] = DEFAULT_OOV_TOKEN,
    ) -> Vocabulary:
        """
        Counts a corpus. The result is that of AllenNLP's `from_instances` on the instances that the
        reader makes of it: words by falling frequency, those of the same frequency in the order in
        which they first occur.

        Registered as a `Vocabulary` with name "from_corpus".

        # Parameters

        data_path : `str` or `List[str]`
            What :func:`~transformer_elmo.data.corpus.find_shards` takes.
        reader : `DatasetReader`, optional (default = `None`)
            What splits sentences and names the namespaces, like the config's `dataset_reader`. By
            default words are split at white space and counted for the namespace "tokens".
        start_tokens : `List[str]`, optional (default = `None`)
            Counted once for each sentence. With a `reader`, its own are.
        end_tokens : `List[str]`, optional (default = `None`)
            Likewise.
        min_count, max_vocab_size, non_padded_namespaces, pretrained_files,
        only_include_pretrained_words, tokens_to_add, min_pretrained_embeddings, padding_token,
        oov_token
            As in AllenNLP's `Vocabulary`.
        """
        counter: Dict[str, Dict[str, int]]
        if reader is None:
            counter = {
                COUNTED_NAMESPACE: count_words(data_path, start_tokens or (), end_tokens or ())
            }
        elif start_tokens or end_tokens:
            raise ConfigurationError(
                '"start_tokens" and "end_tokens" of the vocabulary "from_corpus" are for a corpus '
                'without a "reader"; with one, its own are counted.'
            )
        else:
            counter = _count_with_reader(data_path, reader)
        # AllenNLP's own signature says `int` where it means `Optional[int]`.
        options: Dict[str, Any] = {
            "min_count": min_count,
            "max_vocab_size": max_vocab_size,
            "tokens_to_add": tokens_to_add,
            "min_pretrained_embeddings": min_pretrained_embeddings,
        }
        return Vocabulary(
            counter=counter,
            non_padded_namespaces=non_padded_namespaces,
            pretrained_files=pretrained_files,
            only_include_pretrained_words=only_include_pretrained_words,
            padding_token=padding_token,
            oov_token=oov_token,
            **options,
        )


Vocabulary.register("from_corpus", constructor="from_corpus", exist_ok=True)(CorpusVocabulary)


def _count_with_reader(data_path: DataPath, reader: DatasetReader) -> Dict[str, Dict[str, int]]:
    counter: DefaultDict[str, Dict[str, int]] = defaultdict(lambda: defaultdict(int))
    if (
        isinstance(reader, SimpleLanguageModelingDatasetReader)
        and type(reader.tokenizer) is WhitespaceTokenizer
        and reader.max_instances is None
        and all(map(depends_on_word_alone, reader.token_indexers.values()))
    ):
        max_length = reader.max_sequence_length
        words = count_words(
            data_path,
            [token.ensure_text() for token in reader.start_tokens],
            [token.ensure_text() for token in reader.end_tokens],
            max_words=None if max_length is None else max_length - reader.num_boundary_tokens,
        )
        for indexer in reader.token_indexers.values():
            _count_distinct(words, indexer, counter)
    else:
        instances = reader.read(data_path)  # type: ignore[arg-type]
        for instance in Tqdm.tqdm(instances, desc="counting words"):
            instance.count_vocab_items(counter)
    return counter


def _count_distinct(
    words: Dict[str, int], indexer: TokenIndexer, counter: Dict[str, Dict[str, int]]
) -> None:
    # The indexer is asked about each distinct word once, and its answer counts as often as the
    # word.
    for word, count in words.items():
        once: DefaultDict[str, Dict[str, int]] = defaultdict(lambda: defaultdict(int))
        indexer.count_vocab_items(Token(word), once)
        for namespace, items in once.items():
            for item, number in items.items():
                counter[namespace][item] += number * count


def write_vocabulary(
    data_path: DataPath,
    directory: Union[str, "os.PathLike[str]"],
    min_count: int = 3,
    max_vocab_size: Optional[int] = None,
    force: bool = False,
    quiet: bool = False,
) -> int:
    """
    Writes the vocabulary of a corpus as AllenNLP's folder, complete or not at all. Its `tokens.txt`
    holds
    `</S>`, `<S>`, `@@UNKNOWN@@` and then the words by falling frequency, those of the same
    frequency by their code points.

    # Parameters

    data_path : `str` or `List[str]`
        What :func:`~transformer_elmo.data.corpus.find_shards` takes.
    directory : `str` or `PathLike`
        The folder to write.
    min_count : `int`, optional (default = `3`)
        Words that occur less often are left out.
    max_vocab_size : `int`, optional (default = `None`)
        The most words to keep, beside the three special ones.
    force : `bool`, optional (default = `False`)
        Whether to replace a folder that isn't empty.
    quiet : `bool`, optional (default = `False`)
        If `True`, there is no progress bar.

    # Returns

    `int`
        The number of lines of `tokens.txt`.

    # Raises

    `ConfigurationError`
        If the folder isn't empty and `force` is false, or no word is left.
    """
    target = Path(directory)
    if target.exists() and (not target.is_dir() or any(target.iterdir())) and not force:
        raise ConfigurationError(
            f"{target} exists and isn't empty. Choose another folder, or replace it with --force."
        )
    special = ["</S>", "<S>", DEFAULT_OOV_TOKEN]
    counts = count_words(data_path, quiet=quiet)
    # `<UNK>` is how the billion-word corpus writes the unknown word.
    left_out = {*special, DEFAULT_PADDING_TOKEN, "<UNK>"}
    kept: List[Tuple[str, int]] = [
        (word, count)
        for word, count in counts.items()
        if count >= min_count and word not in left_out
    ]
    if not kept:
        raise ConfigurationError(
            f"No word of {data_path} occurs {min_count} times or more: {len(counts)} distinct "
            "words were counted. Give more text or a smaller --min-count."
        )
    kept.sort(key=lambda item: (-item[1], item[0]))
    words = special + [word for word, _ in kept[:max_vocab_size]]

    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        # `mkdtemp` makes a folder for its owner alone.
        temporary.chmod(0o777 & ~_umask())
        _write_lines(temporary / f"{COUNTED_NAMESPACE}.txt", words)
        _write_lines(temporary / NAMESPACE_PADDING_FILE, sorted(DEFAULT_NON_PADDED_NAMESPACES))
        if target.is_dir() and not target.is_symlink():
            if any(target.iterdir()):
                shutil.rmtree(target)
            else:
                target.rmdir()
        elif target.exists() or target.is_symlink():
            target.unlink()
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return len(words)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())


def main(arguments: Optional[List[str]] = None) -> int:
    """
    The command. Returns its exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m transformer_elmo.data.vocabulary",
        description="Count the words of a corpus and write AllenNLP's vocabulary folder.",
    )
    parser.add_argument("data_path", nargs="+", help="files, directories, globs or URLs of text")
    parser.add_argument("directory", help="the folder to write")
    parser.add_argument(
        "--min-count",
        type=int,
        default=3,
        help="leave out words that occur less often (default: 3)",
    )
    parser.add_argument("--max-vocab-size", type=int, default=None, help="the most words to keep")
    parser.add_argument("--force", action="store_true", help="replace the folder if it isn't empty")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    try:
        size = write_vocabulary(
            options.data_path,
            options.directory,
            min_count=options.min_count,
            max_vocab_size=options.max_vocab_size,
            force=options.force,
            quiet=options.quiet,
        )
    except (ConfigurationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.directory}: {size} words")
    return 0


if __name__ == "__main__":
    sys.exit(main())
