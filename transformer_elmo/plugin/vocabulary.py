"""Vocabularies as AllenNLP's configs name them."""

import logging
import os
import tempfile
from collections import defaultdict
from itertools import zip_longest
from pathlib import Path
from typing import Any, DefaultDict, Dict, Iterable, List, Optional, Union

from allennlp.common import Params
from allennlp.common.tqdm import Tqdm
from allennlp.common.util import namespace_match
from allennlp.data.dataset_readers.dataset_reader import DatasetReader
from allennlp.data.instance import Instance
from allennlp.data.token_indexers import TokenIndexer
from allennlp.data.tokenizers import Token, WhitespaceTokenizer
from allennlp.data.vocabulary import DEFAULT_OOV_TOKEN, DEFAULT_PADDING_TOKEN, Vocabulary
from overrides import overrides

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.plugin.dataset_reader import (
    SimpleLanguageModelingDatasetReader,
    depends_on_word_alone,
)
from transformer_elmo.text.corpus import DataPath, variables_with
from transformer_elmo.text.vocabulary import (
    NAMESPACE,
    NAMESPACES_WITHOUT_PADDING,
    PADDING,
    WordList,
    count_words,
)

logger = logging.getLogger(__name__)


class VocabularyWords(WordList):
    """
    The words that a language model with AllenNLP's vocabulary predicts; the vocabulary stays the
    one that knows them.
    """

    def __init__(self, vocab: Vocabulary) -> None:
        self._vocab = vocab
        self.unknown_word = vocab._oov_token

    def __len__(self) -> int:
        return self._vocab.get_vocab_size(NAMESPACE) - 1

    def __getitem__(self, number: int) -> str:
        return self._vocab.get_token_from_index(number, NAMESPACE)

    @property
    def ids(self) -> Dict[str, int]:
        return self._vocab.get_token_to_index_vocabulary(NAMESPACE)

    @property
    def words(self) -> List[str]:  # type: ignore[override]
        return [self[number] for number in range(1, len(self) + 1)]


word_list = VocabularyWords


def vocabulary_of(words: WordList) -> Vocabulary:
    """AllenNLP's vocabulary of these words, in the namespace "tokens"."""
    vocab = Vocabulary()
    # Word by word, AllenNLP takes a second for every 100,000.
    vocab._token_to_index[NAMESPACE] = {PADDING: 0, **words.ids}
    vocab._index_to_token[NAMESPACE] = {0: PADDING, **dict(enumerate(words.words, start=1))}
    return vocab


class CorpusVocabulary(Vocabulary):
    """The home of the constructor "from_corpus"; what it makes are plain vocabularies."""

    @classmethod
    def from_corpus(
        cls,
        data_path: Union[str, List[str]],
        reader: Optional[DatasetReader] = None,
        start_tokens: Optional[List[str]] = None,
        end_tokens: Optional[List[str]] = None,
        **options: Any,
    ) -> Vocabulary:
        """
        Counts a corpus. The result is that of AllenNLP's `from_instances` on the instances that the
        reader makes of it: words by falling frequency, those of the same frequency in the order in
        which they first occur.

        Registered as a `Vocabulary` with name "from_corpus".

        `data_path`: what :func:`~transformer_elmo.text.corpus.find_shards` takes. `reader`: what
        splits sentences and names the namespaces, like the config's `dataset_reader`. By default
        words are split at white space and counted for the namespace "tokens". `start_tokens`:
        counted once for each sentence. With a `reader`, its own are. `end_tokens`: likewise.
        `options`: those of AllenNLP's `Vocabulary`: `min_count`, `max_vocab_size`, ...
        """
        counter: Dict[str, Dict[str, int]]
        if reader is None:
            counter = {NAMESPACE: count_words(data_path, start_tokens or (), end_tokens or ())}
        elif start_tokens or end_tokens:
            raise ConfigurationError(
                '"start_tokens" and "end_tokens" of the vocabulary "from_corpus" are for a corpus '
                'without a "reader"; with one, its own are counted.'
            )
        else:
            counter = count_with_reader(data_path, reader)
        return Vocabulary(counter=counter, **options)


Vocabulary.register("from_corpus", constructor="from_corpus", exist_ok=True)(CorpusVocabulary)


def count_with_reader(data_path: DataPath, reader: DatasetReader) -> Dict[str, Dict[str, int]]:
    """How often each entry of each namespace occurs, boundary tokens too, first come first."""
    counter: DefaultDict[str, Dict[str, int]] = defaultdict(lambda: defaultdict(int))
    if (
        isinstance(reader, SimpleLanguageModelingDatasetReader)
        and type(reader.tokenizer) is WhitespaceTokenizer
        and reader.max_instances is None
        and all(map(depends_on_word_alone, reader.token_indexers.values()))
    ):
        words = count_words(
            data_path,
            [token.ensure_text() for token in reader.start_tokens],
            [token.ensure_text() for token in reader.end_tokens],
            max_words=reader.max_words,
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


class CheckedVocabulary(Vocabulary):
    """
    The home of the constructor "lm_from_files", which says what is wrong with a folder; what it
    makes are plain vocabularies.
    """

    @classmethod
    @overrides(check_signature=False)
    def from_files(
        cls,
        directory: Union[str, "os.PathLike[str]"],
        padding_token: Optional[str] = DEFAULT_PADDING_TOKEN,
        oov_token: Optional[str] = DEFAULT_OOV_TOKEN,
    ) -> Vocabulary:
        """
        AllenNLP's function of this name.

        Raises `ConfigurationError` if there is no such folder, or a file in it can't be used: the
        message names the file, the line and the way on.
        """
        if os.path.isdir(directory):
            check_vocabulary_folder(Path(directory), None, oov_token or DEFAULT_OOV_TOKEN)
        # A file may be an archive of the folder, which AllenNLP unpacks.
        elif not os.path.exists(directory) and "://" not in str(directory):
            raise ConfigurationError(
                f"There is no vocabulary at {directory}.{variables_with(str(directory))} Expected "
                "a folder with a file of words for each namespace, such as tokens.txt."
            )
        return Vocabulary.from_files(directory, padding_token, oov_token)


Vocabulary.register("lm_from_files", constructor="from_files", exist_ok=True)(CheckedVocabulary)


class RecoveredVocabulary(Vocabulary):
    """The vocabulary of a language model's run that goes on: nothing is written over that of its
    weights, which it must be equal to."""

    @classmethod
    def of_run(
        cls, given: Dict[str, Any], instances: Optional[Iterable[Instance]] = None
    ) -> Vocabulary:
        """`given`: the config's section."""
        vocab = Vocabulary.from_params(Params(given), instances=instances)
        if type(vocab) is Vocabulary:
            vocab.__class__ = RecoveredVocabulary
        return vocab

    @overrides(check_signature=False)
    def save_to_files(self, directory: Union[str, "os.PathLike[str]"]) -> None:
        """
        AllenNLP's function of this name.

        Raises `ConfigurationError` if the folder has another vocabulary.
        """
        folder = Path(directory)
        if not folder.is_dir():
            super().save_to_files(str(folder))
            return
        with tempfile.TemporaryDirectory() as space:
            super().save_to_files(space)
            for path in sorted(Path(space).glob("*.txt")):
                difference = _difference(path, folder / path.name)
                if difference:
                    raise ConfigurationError(
                        "The config gives another vocabulary than that of the weights in "
                        f"{folder.parent}: {difference}. Restore it, or begin another run in "
                        "another folder."
                    )


Vocabulary.register("lm_of_run", constructor="of_run", exist_ok=True)(RecoveredVocabulary)


def _difference(now: Path, before: Path) -> Optional[str]:
    """The first one between two files of a vocabulary, if there is any."""
    if not before.is_file():
        return f"there was no {before.name}"
    lines = [WordList.read(path).words for path in (now, before)]
    if now.name == NAMESPACES_WITHOUT_PADDING:
        # A set, which AllenNLP writes in any order. Elsewhere a line's number is the word's.
        lines = [sorted({*names}) for names in lines]
    for number, (new, old) in enumerate(zip_longest(*lines, fillvalue="(no line)"), start=1):
        if new != old:
            return f"line {number} of {before.name} is {new!r}, and was {old!r}"
    return None


def check_vocabulary_folder(
    folder: Path, archive: Optional[str], oov_token: str = DEFAULT_OOV_TOKEN
) -> None:
    """
    `archive`: the archive that it was in. A model was trained with that vocabulary, so that
    oddities are only told. Raises `ConfigurationError` if the folder isn't a vocabulary, or a file
    in it can't be used.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"{archive or folder} has no folder vocabulary: it is no archive.")
    unpadded = folder / NAMESPACES_WITHOUT_PADDING
    shown = f"{unpadded.name} of {archive or folder}"
    if not unpadded.exists():
        raise ConfigurationError(
            f"{archive or folder} has no {unpadded.name}. A vocabulary is a folder with a file of "
            "words for each namespace, such as tokens.txt, and this one, which holds two lines: "
            "*labels and *tags."
        )
    patterns = [line.strip() for line in WordList.read(unpadded, shown).words]
    if "" in patterns:
        raise _bad_line(shown, patterns.index("") + 1, _EMPTY)
    for file in sorted(folder.iterdir()):
        if file == unpadded or file.name.startswith("."):
            continue
        if file.is_dir():
            raise ConfigurationError(f"{file} is a folder. A vocabulary has files alone.")
        namespace = file.name.replace(".txt", "")
        padded = not any(namespace_match(pattern, namespace) for pattern in patterns)
        problem = _problem(file, padded, namespace == NAMESPACE, oov_token)
        if problem is not None and archive is None:
            raise problem
        if problem is not None:
            logger.warning("%s", problem)


_EMPTY = "this line is empty. Remove empty lines"


def _bad_line(shown: Union[str, Path], line: int, what: str) -> ConfigurationError:
    return ConfigurationError(f"{shown}, line {line}: {what}.")


def _problem(
    file: Path, padded: bool, predicted: bool, oov_token: str
) -> Optional[ConfigurationError]:
    """What is wrong with a namespace's file; `padded`: it has padding and an unknown word."""
    words = WordList.read(file, unknown_word=oov_token)
    if padded and oov_token not in words.ids:
        others = [w for w in ("<UNK>", "<unk>", "[UNK]", "UNK") if w in words.ids]
        advice = "Add it, for example as the first line."
        if others:
            advice = f"Line {words.ids[others[0]]} is {others[0]}: write {oov_token} there."
        return ConfigurationError(
            f"{file} has no line {oov_token}, the entry for words that are not in the list, which "
            f"every file of words in a vocabulary needs. {advice}"
        )
    if len(words.ids) < len(words):
        # A word is found by its last line.
        numbers = enumerate(words.words, start=1)
        first, word = next((n, word) for n, word in numbers if words.ids[word] != n)
        twice = f"the word {word!r} is also on line {first}, and lines number words. Remove one"
        return _bad_line(file, words.ids[word], twice)
    if padded and PADDING in words.ids:
        return _bad_line(file, words.ids[PADDING], f"{PADDING} is added to every list. Remove it")
    if padded and predicted and "" in words.ids:
        return _bad_line(file, words.ids[""], _EMPTY)
    return None
