"""
AllenNLP's general path: one `Instance` a sentence. And its token indexers whose numbers depend on a
word alone, as columns of a table of words.
"""

import logging
from typing import Any, Dict, Iterable, Iterator, List, Optional

from allennlp.data.dataset_readers.dataset_reader import DatasetReader
from allennlp.data.fields import TextField
from allennlp.data.instance import Instance
from allennlp.data.token_indexers import (
    ELMoTokenCharactersIndexer,
    SingleIdTokenIndexer,
    TokenCharactersIndexer,
    TokenIndexer,
)
from allennlp.data.tokenizers import Token, Tokenizer
from allennlp.data.vocabulary import Vocabulary
from overrides import overrides

from transformer_elmo.plugin.tokenizers import WordSplittingSpacyTokenizer
from transformer_elmo.text.corpus import DataPath, Sentence, find_shards, most_words, read_sentences
from transformer_elmo.text.reader import checked_sentence
from transformer_elmo.text.word_table import CharacterIds, Column, TokenIds

logger = logging.getLogger(__name__)


@DatasetReader.register("simple_language_modeling", exist_ok=True)
class SimpleLanguageModelingDatasetReader(DatasetReader):
    """
    Reads text, one sentence a line, for language modeling. Lines end with `\\n` or `\\r\\n`, and
    may be JSON: see :func:`~transformer_elmo.text.corpus.parse_line`. Blank lines are skipped. The
    data path is whatever :func:`~transformer_elmo.text.corpus.find_shards` takes.

    An instance has one field, `source`, a `TextField`.

    Registered as a `DatasetReader` with name "simple_language_modeling".

    - `tokenizer`: Splits a sentence into words. `just_spaces` is for text that is tokenized
      already. The default tags words only if one of the `token_indexers` may look at tags.
    - `token_indexers`: The representations of a word.
    - `max_sequence_length`: Sentences of more tokens, those of `start_tokens` and `end_tokens`
      included, are dropped, and the log says how many. The attribute of this name is looked at when
      sentences are read: whoever evaluates sets it to `None`.
    - `start_tokens`: Put before the words of every sentence.
    - `end_tokens`: Put after the words of every sentence.
    """

    def __init__(
        self,
        tokenizer: Optional[Tokenizer] = None,
        token_indexers: Optional[Dict[str, TokenIndexer]] = None,
        max_sequence_length: Optional[int] = None,
        start_tokens: Optional[List[str]] = None,
        end_tokens: Optional[List[str]] = None,
        **kwargs: Any,
    ) -> None:
        # Sentences are dealt out to workers and processes before they are tokenized.
        kwargs.setdefault("manual_distributed_sharding", True)
        kwargs.setdefault("manual_multiprocess_sharding", True)
        super().__init__(**kwargs)
        self.token_indexers = token_indexers or {"tokens": SingleIdTokenIndexer()}
        # Tags take a trained model of spaCy's, and most of its time; words don't.
        self.tokenizer: Tokenizer = tokenizer or WordSplittingSpacyTokenizer(
            pos_tags=not all(map(_looks_at_words, self.token_indexers.values()))
        )
        self.max_sequence_length = max_sequence_length
        self.start_tokens = [Token(token) for token in start_tokens or []]
        self.end_tokens = [Token(token) for token in end_tokens or []]

    @overrides(check_signature=False)
    def text_to_instance(self, sentence: Sentence) -> Instance:
        """Its field `source` has the tokens, between the start and end tokens."""
        return self.tokens_to_instance(self.tokens_of(sentence))

    def tokens_of(self, sentence: Sentence) -> List[Token]:
        """A sentence's tokens, without start and end tokens."""
        found = checked_sentence(sentence)
        return self.tokenizer.tokenize(found) if isinstance(found, str) else [*map(Token, found)]

    def tokens_to_instance(self, tokens: List[Token]) -> Instance:
        """The instance of a sentence that is tokenized already."""
        # In a worker process the indexers are left out, as AllenNLP wants it:
        # `apply_token_indexers` puts them in on the other side.
        indexers = self.token_indexers if self.get_worker_info() is None else None
        source = TextField([*self.start_tokens, *tokens, *self.end_tokens], indexers)
        return Instance({"source": source})

    @overrides
    def apply_token_indexers(self, instance: Instance) -> None:
        source: Any = instance["source"]
        source.token_indexers = self.token_indexers

    @overrides(check_signature=False)
    def _read(self, file_path: DataPath) -> Iterable[Instance]:
        num_dropped = 0
        sentences: Iterator[Sentence] = (
            sentence for shard in find_shards(file_path) for sentence in read_sentences(shard)
        )
        if self.manual_distributed_sharding and self.manual_multiprocess_sharding:
            sentences = self.shard_iterable(sentences)
        for sentence in sentences:
            tokens = self.tokens_of(sentence)
            if not tokens:
                continue
            if len(tokens) > self.max_words:
                num_dropped += 1
            else:
                yield self.tokens_to_instance(tokens)
        if num_dropped:
            logger.warning(
                "Dropped %d sentences of %s of more than %d tokens (max_sequence_length).",
                num_dropped,
                file_path,
                self.max_sequence_length,
            )

    @property
    def num_boundary_tokens(self) -> int:
        """How many start and end tokens a sentence gets."""
        return len(self.start_tokens) + len(self.end_tokens)

    @property
    def max_words(self) -> float:
        """Sentences of more words are dropped."""
        return most_words(self.max_sequence_length, self.num_boundary_tokens)


def _looks_at_words(indexer: TokenIndexer) -> bool:
    """Whether an indexer is known to look at nothing else of a token."""
    if isinstance(indexer, SingleIdTokenIndexer):
        return indexer._feature_name in ("text", "text_id")
    return isinstance(indexer, (ELMoTokenCharactersIndexer, TokenCharactersIndexer))


def reader_attribute(reader: Optional[DatasetReader], name: str) -> Any:
    """
    What a reader of language models was given under a name: AllenNLP's readers keep it under a
    leading underscore, ours in the open. `None` if there is no such thing.
    """
    return getattr(reader, name, getattr(reader, "_" + name, None))


def depends_on_word_alone(indexer: TokenIndexer) -> bool:
    """
    Whether what an indexer says about a token is known to depend on the token's text alone, and its
    output to be in step with the tokens.
    """
    if type(indexer) is SingleIdTokenIndexer:
        added = indexer._start_tokens or indexer._end_tokens
        return indexer.namespace is not None and indexer._feature_name == "text" and not added
    return type(indexer) in (ELMoTokenCharactersIndexer, TokenCharactersIndexer)


def fits_a_table(indexer: TokenIndexer) -> bool:
    """Whether an indexer's output can be kept in a table of words, a row of one length each."""
    return depends_on_word_alone(indexer) and not isinstance(indexer, TokenCharactersIndexer)


def column_of(indexer: TokenIndexer, vocab: Vocabulary) -> Column:
    """What an indexer that `fits_a_table` says of words."""
    least = indexer._token_min_padding_length
    if isinstance(indexer, SingleIdTokenIndexer):
        ids = vocab.get_token_to_index_vocabulary(str(indexer.namespace))
        return TokenIds(ids, ids.get(vocab._oov_token), indexer.lowercase_tokens, least)
    assert isinstance(indexer, ELMoTokenCharactersIndexer)
    return CharacterIds(indexer._mapper.tokens_to_add, least)
