"""
AllenNLP's token indexers whose numbers depend on a word alone, as columns of a table of words.
"""

from typing import Mapping, Sequence

from allennlp.data.token_indexers import (
    ELMoTokenCharactersIndexer,
    SingleIdTokenIndexer,
    TokenCharactersIndexer,
    TokenIndexer,
)
from allennlp.data.vocabulary import Vocabulary

from transformer_elmo.text.word_table import CharacterIds, Column, TokenIds, WordTable


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


def fits_a_table(indexer: TokenIndexer) -> bool:
    """
    Whether an indexer's output can be kept in a table: `single_id` and `elmo_characters`, whose
    numbers depend on the word alone. (`single_id` not if it adds tokens of its own, or reads
    anything but the text.)
    """
    return depends_on_word_alone(indexer) and not isinstance(indexer, TokenCharactersIndexer)


def word_table(
    token_indexers: Mapping[str, TokenIndexer], vocab: Vocabulary, other_words: Sequence[str] = ()
) -> WordTable:
    """
    `token_indexers`: all of a kind that `fits_a_table`. `vocab`: the vocabulary that the indexers
    look words up in. `other_words`: words that keep their rows although the vocabulary may lack
    them.
    """
    columns = {name: column_of(indexer, vocab) for name, indexer in token_indexers.items()}
    return WordTable(columns, other_words)


def column_of(indexer: TokenIndexer, vocab: Vocabulary) -> Column:
    """What an indexer that `fits_a_table` says of words."""
    if isinstance(indexer, SingleIdTokenIndexer):
        ids = vocab.get_token_to_index_vocabulary(str(indexer.namespace))
        return TokenIds(
            ids,
            ids.get(vocab._oov_token),
            indexer.lowercase_tokens,
            indexer._token_min_padding_length,
        )
    assert isinstance(indexer, ELMoTokenCharactersIndexer)
    return CharacterIds(indexer._mapper.tokens_to_add, indexer._token_min_padding_length)
