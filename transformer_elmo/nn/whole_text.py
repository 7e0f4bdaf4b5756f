"""What a whole text costs a model, so that models of different vocabularies can be compared."""

import math
from collections import Counter
from typing import Any, Dict, List, Sequence

import torch

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.perplexity import Totals
from transformer_elmo.text.spelling import spelled_bits
from transformer_elmo.text.vocabulary import WordList

_WORDS_AT_A_TIME = 2**12


class WholeText:
    """
    The bits of a model's predictions (the mean of both directions) and, for each unknown word, the
    bits of its spelling, over the characters of the text. Mielke 2019 ("Can You Compare Perplexity
    Across Different Segmentations?") compares models of different units so: by what the same text
    costs, in a unit that no model chooses. Unknown words are spelled as Mielke and Eisner 2019 do
    it, see `transformer_elmo.text.spelling`; without that, a model would gain by knowing fewer
    words.

    # Parameters

    reader : `SentenceReader`
        With a boundary token at each end, so that both directions predict every word.
    vocabulary : `WordList`

    # Raises

    `ConfigurationError`
        If the model has no boundary tokens, or no entry for unknown words.
    """

    def __init__(self, reader: Any, vocabulary: WordList) -> None:
        if len(reader.start_tokens) != 1 or len(reader.end_tokens) != 1:
            raise ConfigurationError(
                "Bits per character need a model with one boundary token at each end of a "
                f"sentence: this one has {reader.start_tokens} and {reader.end_tokens}, so that "
                "some words are predicted from one side only."
            )
        if vocabulary.unknown is None:
            raise ConfigurationError(
                "Bits per character need an entry for unknown words in the model's vocabulary."
            )
        self._reader, self._vocabulary = reader, vocabulary
        self._words: Counter[str] = Counter()

    def add(self, sentences: Sequence[Sequence[str]]) -> None:
        """Sentences of tokens, boundary tokens included."""
        for tokens in sentences:
            self._words.update(tokens[1:-1])

    def metrics(self, totals: Totals) -> Dict[str, Any]:
        """
        # Parameters

        totals : `Totals`
            Over the same sentences.

        # Returns

        `Dict[str, Any]`
            `bits_per_character`, and `num_characters`: of each word, and one more for the space or
            the end of the line behind it.
        """
        num_characters = sum((len(word) + 1) * count for word, count in self._words.items())
        bits = totals.loss * totals.num_tokens / math.log(2)
        unknown = {word: self._words[word] for word in self._unknown_words()}
        bits += spelled_bits(self._vocabulary.words, unknown)
        return {
            "bits_per_character": bits / num_characters if num_characters else math.nan,
            "num_characters": num_characters,
        }

    def _unknown_words(self) -> List[str]:
        found: List[str] = []
        words = list(self._words)
        for begin in range(0, len(words), _WORDS_AT_A_TIME):
            part = words[begin : begin + _WORDS_AT_A_TIME]
            (ids,) = self._reader.batch([part], torch.device("cpu")).token_ids.tolist()
            found += [word for word, number in zip(part, ids) if number == self._vocabulary.unknown]
        return found
