"""
Perplexity as a total over words, so that it never depends on how they were batched.

How likely a spelling is: what words outside a vocabulary cost, so that models of different
vocabularies can be compared on all of a text.

What a whole text costs a model, so that models of different vocabularies can be compared.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.text.vocabulary import UNKNOWN, WordList

# A byte is predicted by the three before it.
ORDER = 4
_END, _BEGIN, _BASE = 256, 257, 258


class _Level(NamedTuple):
    """
    The n-grams of one length, as numbers in base 258, and what is known of the contexts that they
    begin with.
    """

    grams: NDArray[np.int64]
    counts: NDArray[np.int64]
    contexts: NDArray[np.int64]
    totals: NDArray[np.int64]
    kinds: NDArray[np.int64]


class SpellingModel:
    """
    A distribution over all byte strings, from the spellings of a vocabulary, each word once: the
    speller of Mielke and Eisner 2019 ("Spell Once, Summon Anywhere: A Two-Level Open-Vocabulary
    Language Model") in small, as byte n-grams smoothed by Witten and Bell's rule. It gives the
    vocabulary's own words some probability, too, so that its costs are a little too high rather
    than too low.
    """

    def __init__(self, words: Sequence[str]) -> None:
        symbols, _ = _symbols(words)
        self._levels: list[_Level] = []
        for length in range(1, ORDER + 1):
            grams, counts = np.unique(_grams(symbols, length), return_counts=True)
            contexts, first, kinds = np.unique(
                grams // _BASE, return_index=True, return_counts=True
            )
            totals = np.add.reduceat(counts, first) if len(first) else first
            self._levels.append(_Level(grams, counts, contexts, totals, kinds))

    def bits(self, words: Sequence[str]) -> NDArray[np.float64]:
        """Returns shape `(num_words,)`: what each costs, its end included."""
        symbols, lengths = _symbols(words)
        probability = np.full(int(lengths.sum()), 1 / (_END + 1))
        for length, level in enumerate(self._levels, start=1):
            grams = _grams(symbols, length)
            count = _found(level.grams, level.counts, grams)
            total = _found(level.contexts, level.totals, grams // _BASE)
            kinds = _found(level.contexts, level.kinds, grams // _BASE)
            seen = total > 0
            backed_off = (count + kinds * probability) / np.maximum(total + kinds, 1)
            probability = np.where(seen, backed_off, probability)
        if not len(lengths):
            return np.zeros(0)
        starts = np.cumsum(lengths) - lengths
        return np.add.reduceat(-np.log2(probability), starts)


def spelled_bits(vocabulary: Sequence[str], unknown: Mapping[str, int]) -> float:
    """
    What the spellings of a text's unknown words cost.

    `vocabulary`: the words that the model knows. `unknown`: how often each word outside it occurs.
    """
    if not unknown:
        return 0.0
    counts = np.fromiter(unknown.values(), np.float64, len(unknown))
    return float(SpellingModel(vocabulary).bits(list(unknown)) @ counts)


def _symbols(words: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """
    The bytes of all words in a row, each between marks, as many before it as a context is long; and
    how many symbols of each word are predicted.
    """
    encoded = [word.encode("utf-8", "surrogatepass") for word in words]
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    symbols = np.full(int(lengths.sum()) + ORDER * len(encoded), _BEGIN, dtype=np.int64)
    ends = np.cumsum(lengths + ORDER)
    symbols[ends - 1] = _END
    starts = ends - 1 - lengths
    offsets = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    symbols[np.repeat(starts, lengths) + offsets] = np.frombuffer(b"".join(encoded), np.uint8)
    return symbols, lengths + 1


def _grams(symbols: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """The n-gram that ends at each symbol that is predicted."""
    places = np.flatnonzero(symbols != _BEGIN)
    grams = np.zeros(len(places), dtype=np.int64)
    for back in range(length - 1, -1, -1):
        grams = grams * _BASE + symbols[places - back]
    return grams


def _found(
    keys: NDArray[np.int64], values: NDArray[np.int64], wanted: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The value of each key; 0 for those that aren't there."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=np.int64)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)


logger = logging.getLogger(__name__)

DIRECTIONS = ("forward", "backward")


def perplexity(log_prob: float, num_tokens: int) -> float:
    """`exp(-log_prob / num_tokens)`; NaN for no token."""
    if not num_tokens:
        return math.nan
    try:
        return math.exp(-log_prob / num_tokens)
    except OverflowError:
        return math.inf


def tell_of_unknown_words(unknown: int, num_words: int) -> None:
    """Warns if the first words of a text are mostly outside the vocabulary."""
    if 2 * unknown > num_words:
        logger.warning(
            "Of the first %s words, %s are not in the vocabulary: a loss tells little more than "
            "how often that is so. Does the vocabulary have one word a line and nothing else, "
            "and is the text split into words as the vocabulary's was?",
            f"{num_words:,}",
            f"{unknown:,}",
        )


@dataclass
class Totals:
    """
    What a model has said about a text so far.

    `losses`: for each direction, the total negative log-likelihood in nats. `num_tokens`: the words
    that each direction predicted.
    """

    losses: list[float] = field(default_factory=list)
    num_tokens: int = 0
    num_sentences: int = 0
    num_out_of_vocabulary: int = 0

    def add(self, losses: Sequence[torch.Tensor], num_sentences: int, unknown: int) -> None:
        """
        `losses`: for each direction, the loss of each prediction. They are added up in float64.
        `unknown`: tokens outside the vocabulary.
        """
        if not self.num_tokens:
            tell_of_unknown_words(unknown, losses[0].numel() + num_sentences)
        sums = torch.stack([direction.detach().sum(dtype=torch.float64) for direction in losses])
        before = self.losses or [0.0] * len(losses)
        self.losses = [total + more for total, more in zip(before, sums.tolist())]
        self.num_tokens += losses[0].numel()
        self.num_sentences += num_sentences
        self.num_out_of_vocabulary += unknown

    @property
    def loss(self) -> float:
        """The mean over words and directions; NaN if there is none."""
        if not self.num_tokens:
            return math.nan
        return math.fsum(self.losses) / len(self.losses) / self.num_tokens

    def metrics(self) -> dict[str, Any]:
        """What `allennlp evaluate` reports, under its names."""
        result: dict[str, Any] = {
            "perplexity": perplexity(-self.loss * self.num_tokens, self.num_tokens)
        }
        for name, loss in zip(DIRECTIONS, self.losses):
            result[f"{name}_perplexity"] = perplexity(-loss, self.num_tokens)
        result["loss"] = self.loss
        result["num_sentences"] = self.num_sentences
        result["num_tokens"] = self.num_tokens
        result["num_out_of_vocabulary"] = self.num_out_of_vocabulary
        return result


class ListedTotals:
    """
    What a model has said so far about the words of a list, wherever they stand in a text. Over a
    list that two models' vocabularies share, their perplexities can be compared.

    `listed`: the entry for unknown words doesn't count. `vocabulary`: the model's. Words of the
    list that it lacks can't be predicted: they are left out, with a warning. Raises
    `ConfigurationError` if no word of the list is in the vocabulary.
    """

    def __init__(self, listed: Sequence[str], vocabulary: WordList) -> None:
        ids, special = vocabulary.ids, {vocabulary.unknown_word, UNKNOWN}
        words = {word for word in listed if word not in special}
        rows = [ids[word] - 1 for word in words if ids.get(word)]
        if not rows:
            raise ConfigurationError(
                f"None of the {len(words):,} listed words is in the model's vocabulary of "
                f"{len(vocabulary):,} words. Expected one word a line."
            )
        if len(rows) < len(words):
            logger.warning(
                "%d of the %d listed words aren't in the model's vocabulary and are left out. To "
                "compare models, list the words that all of them have.",
                len(words) - len(rows),
                len(words),
            )
        # One row of the softmax more than there are words.
        self._listed = torch.zeros(len(vocabulary) + 1, dtype=torch.bool)
        self._listed[rows] = True
        self.loss = 0.0
        self.num_predictions = 0

    def add(self, losses: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> None:
        """
        `losses`, `targets`: for each direction, the loss of each prediction and the row of the word
        predicted.
        """
        for of_direction, rows in zip(losses, targets):
            listed = self._listed.to(rows.device)[rows]
            self.loss += float(of_direction.detach()[listed].sum(dtype=torch.float64))
            self.num_predictions += int(listed.sum())

    def metrics(self) -> dict[str, Any]:
        """`listed_perplexity`, and how many predictions of all directions it is the mean of."""
        return {
            "listed_perplexity": perplexity(-self.loss, self.num_predictions),
            "num_listed_predictions": self.num_predictions,
        }


_WORDS_AT_A_TIME = 2**12


class WholeText:
    """
    The bits of a model's predictions (the mean of both directions) and, for each unknown word, the
    bits of its spelling, over the characters of the text. Mielke 2019 ("Can You Compare Perplexity
    Across Different Segmentations?") compares models of different units so: by what the same text
    costs, in a unit that no model chooses. Unknown words are spelled as Mielke and Eisner 2019 do
    it (`spelled_bits`); without that, a model would gain by knowing fewer
    words.

    `reader`: with a boundary token at each end, so that both directions predict every word. Raises
    `ConfigurationError` if the model has no boundary tokens, or no entry for unknown words.
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

    def metrics(self, totals: Totals) -> dict[str, Any]:
        """
        `totals`: over the same sentences. Returns `bits_per_character`, and `num_characters`: of
        each word, and one more for the space or the end of the line behind it.
        """
        num_characters = sum((len(word) + 1) * count for word, count in self._words.items())
        bits = totals.loss * totals.num_tokens / math.log(2)
        unknown = {word: self._words[word] for word in self._unknown_words()}
        bits += spelled_bits(self._vocabulary.words, unknown)
        return {
            "bits_per_character": bits / num_characters if num_characters else math.nan,
            "num_characters": num_characters,
        }

    def _unknown_words(self) -> list[str]:
        found: list[str] = []
        words = list(self._words)
        for begin in range(0, len(words), _WORDS_AT_A_TIME):
            part = words[begin : begin + _WORDS_AT_A_TIME]
            (ids,) = self._reader.batch([part], torch.device("cpu")).token_ids.tolist()
            found += [word for word, number in zip(part, ids) if number == self._vocabulary.unknown]
        return found
