"""Vocabularies as AllenNLP's configs name them."""

import logging
import os
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any, DefaultDict, Dict, Iterable, List, Optional, Union

from allennlp.common import Params
from allennlp.common.tqdm import Tqdm
from allennlp.common.util import namespace_match
from allennlp.data.dataset_readers.dataset_reader import DatasetReader
from allennlp.data.instance import Instance
from allennlp.data.token_indexers import TokenIndexer
from allennlp.data.tokenizers import Token, WhitespaceTokenizer
from allennlp.data.vocabulary import (
    DEFAULT_NON_PADDED_NAMESPACES,
    DEFAULT_OOV_TOKEN,
    DEFAULT_PADDING_TOKEN,
    Vocabulary,
)
from overrides import overrides

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import read_bytes
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
    """The words of a namespace of AllenNLP's vocabulary, which stays the one that knows them."""

    def __init__(self, vocab: Vocabulary, namespace: str = NAMESPACE) -> None:
        self._vocab, self._namespace = vocab, namespace
        self.unknown_word = vocab._oov_token

    def __len__(self) -> int:
        return self._vocab.get_vocab_size(self._namespace) - 1

    def __getitem__(self, number: int) -> str:
        return self._vocab.get_token_from_index(number, self._namespace)

    @property
    def ids(self) -> Dict[str, int]:
        return self._vocab.get_token_to_index_vocabulary(self._namespace)

    @property
    def words(self) -> List[str]:  # type: ignore[override]
        return [self[number] for number in range(1, len(self) + 1)]


def vocabulary_of(words: WordList) -> Vocabulary:
    """AllenNLP's vocabulary of these words, in the namespace "tokens"."""
    vocab = Vocabulary()
    # Word by word, AllenNLP takes a second for every 100,000.
    vocab._token_to_index[NAMESPACE] = {PADDING: 0, **words.ids}
    vocab._index_to_token[NAMESPACE] = {0: PADDING, **dict(enumerate(words.words, start=1))}
    return vocab


def word_list(vocab: Vocabulary) -> WordList:
    """The words that a language model with this vocabulary predicts."""
    return VocabularyWords(vocab)


class CorpusVocabulary(Vocabulary):
    """The home of the constructor "from_corpus"; what it makes are plain vocabularies."""

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

        `data_path`: what :func:`~transformer_elmo.text.corpus.find_shards` takes. `reader`: what
        splits sentences and names the namespaces, like the config's `dataset_reader`. By default
        words are split at white space and counted for the namespace "tokens". `start_tokens`:
        counted once for each sentence. With a `reader`, its own are. `end_tokens`: likewise.
        `oov_token`: as in AllenNLP's `Vocabulary`.
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


def count_with_reader(data_path: DataPath, reader: DatasetReader) -> Dict[str, Dict[str, int]]:
    """
    How often each entry of each namespace occurs in a corpus, boundary tokens included, in the
    order in which they first occur.
    """
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
        if not os.path.isdir(directory):
            # A file may be an archive of the folder, which AllenNLP unpacks.
            if not os.path.exists(directory) and "://" not in str(directory):
                raise ConfigurationError(
                    f"There is no vocabulary at {directory}.{variables_with(str(directory))} "
                    "Expected a folder with one file of words for each namespace, such as "
                    "tokens.txt."
                )
        else:
            check_vocabulary_folder(Path(directory), None, oov_token or DEFAULT_OOV_TOKEN)
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
    texts = [path.read_text(encoding="utf-8") for path in (now, before)]
    lines = [text.removesuffix("\n").split("\n") for text in texts]
    if now.name == NAMESPACES_WITHOUT_PADDING:
        # A set, which AllenNLP writes in any order. Elsewhere a line's number is the word's.
        lines = [sorted({*names}) for names in lines]
    for number, (new, old) in enumerate(zip(*lines), start=1):
        if new != old:
            return f"line {number} of {before.name} is {new!r}, and was {old!r}"
    if len(lines[0]) != len(lines[1]):
        return f"{before.name} has {len(lines[0])} lines, and had {len(lines[1])}"
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
        raise ConfigurationError(
            f"{archive or folder} has no folder vocabulary, so it is not a model archive."
        )
    unpadded = folder / NAMESPACES_WITHOUT_PADDING
    if not unpadded.exists():
        raise ConfigurationError(
            f"{archive or folder} has no {NAMESPACES_WITHOUT_PADDING}"
            f"{' in its vocabulary' if archive else ''}. A vocabulary is a folder with one file of "
            "words for each namespace, such as tokens.txt, and this one, which holds two lines: "
            "*labels and *tags."
        )
    content = read_bytes(unpadded, f"{unpadded.name} of {archive or folder}")
    try:
        patterns = [line.strip() for line in content.decode("utf-8").splitlines()]
    except UnicodeDecodeError:
        raise ConfigurationError(
            f"{unpadded.name} of {archive or folder} can't be read as UTF-8."
        ) from None
    if "" in patterns:
        raise ConfigurationError(
            f"{unpadded.name} of {archive or folder}, line {patterns.index('') + 1}: this line is "
            "empty. Remove empty lines."
        )
    for file in sorted(folder.iterdir()):
        if file == unpadded or file.name.startswith("."):
            continue
        if file.is_dir():
            raise ConfigurationError(
                f"{file} is a folder. A vocabulary is a folder of files, each with the words of "
                "one namespace."
            )
        namespace = file.name.replace(".txt", "")
        padded = not any(namespace_match(pattern, namespace) for pattern in patterns)
        problem = _problem(file, padded, namespace == NAMESPACE, oov_token)
        if problem is not None and archive is not None:
            logger.warning("%s", problem)
        elif problem is not None:
            raise ConfigurationError(problem)


def _problem(file: Path, padded: bool, predicted: bool, oov_token: str) -> Optional[str]:
    words = WordList.read(file, unknown_word=oov_token)
    if padded and oov_token not in words.ids:
        others = [w for w in ("<UNK>", "<unk>", "[UNK]", "UNK") if w in words.ids]
        advice = "Add it, for example as the first line."
        if others:
            advice = f"Line {words.ids[others[0]]} is {others[0]}: write {oov_token} there."
        return (
            f"{file} has no line {oov_token}, the entry for words that are not in the list. A "
            "vocabulary file has one word a line, this one among them; every file in the folder is "
            f"taken for one. {advice}"
        )
    if len(words.ids) < len(words) or (padded and PADDING in words.ids):
        lines: Dict[str, int] = {}
        for number, word in enumerate(words.words, start=1):
            if lines.setdefault(word, number) != number:
                return (
                    f"{file}, line {number}: the word {word!r} is also on line {lines[word]}. The "
                    "number of a word is the number of its line, so that each may be there once. "
                    "Remove the second."
                )
        return (
            f"{file} has the entry for padding, or that for unknown words, twice under two names. "
            "Remove one."
        )
    if padded and predicted and "" in words.ids:
        return (
            f"{file}, line {words.ids['']}: this line is empty. The number of a word is the number "
            "of its line. Remove empty lines."
        )
    return None
