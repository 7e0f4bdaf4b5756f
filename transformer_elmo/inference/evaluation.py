"""
What a model says of a text, in totals over its words, so that no number depends on how they were
batched: perplexity, over all words or over a list of them; and what the whole text costs, by which
models of different vocabularies can be compared.
"""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.text.vocabulary import UNKNOWN, WordList

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

    `listed`: which rows of the softmax are of words whose perplexity is wanted by itself, wherever
    they stand: see :func:`listed_rows`. `losses`: for each direction, the total negative
    log-likelihood in nats. `num_tokens`: the words that each direction predicted.
    """

    listed: torch.Tensor | None = None
    losses: list[float] = field(default_factory=list)
    num_tokens: int = 0
    num_sentences: int = 0
    num_out_of_vocabulary: int = 0
    listed_loss: float = 0.0
    num_listed: int = 0

    def add(
        self,
        losses: Sequence[torch.Tensor],
        num_sentences: int,
        unknown: int,
        targets: Sequence[torch.Tensor] = (),
    ) -> None:
        """
        `losses`: for each direction, the loss of each prediction. They are added up in float64.
        `unknown`: tokens outside the vocabulary. `targets`: where words are listed, for each
        direction the row of each word predicted.
        """
        if not self.num_tokens:
            tell_of_unknown_words(unknown, losses[0].numel() + num_sentences)
        sums = torch.stack([direction.detach().sum(dtype=torch.float64) for direction in losses])
        before = self.losses or [0.0] * len(losses)
        self.losses = [total + more for total, more in zip(before, sums.tolist())]
        self.num_tokens += losses[0].numel()
        self.num_sentences += num_sentences
        self.num_out_of_vocabulary += unknown
        if self.listed is not None:
            for of_direction, rows in zip(losses, targets):
                listed = self.listed.to(rows.device)[rows]
                self.listed_loss += float(of_direction.detach()[listed].sum(dtype=torch.float64))
                self.num_listed += int(listed.sum())

    @property
    def loss(self) -> float:
        """The mean over words and directions; NaN if there is none."""
        if not self.num_tokens:
            return math.nan
        return math.fsum(self.losses) / len(self.losses) / self.num_tokens

    def metrics(self) -> dict[str, Any]:
        """
        What `allennlp evaluate` reports, under its names; with words listed `listed_perplexity`,
        and how many predictions of all directions it is the mean of, `num_listed_predictions`.
        """
        result: dict[str, Any] = {
            "perplexity": perplexity(-self.loss * self.num_tokens, self.num_tokens)
        }
        for name, loss in zip(DIRECTIONS, self.losses):
            result[f"{name}_perplexity"] = perplexity(-loss, self.num_tokens)
        for name in ("loss", "num_sentences", "num_tokens", "num_out_of_vocabulary"):
            result[name] = getattr(self, name)
        if self.listed is not None:
            result["listed_perplexity"] = perplexity(-self.listed_loss, self.num_listed)
            result["num_listed_predictions"] = self.num_listed
        return result


def listed_rows(listed: Sequence[str], vocabulary: WordList) -> torch.Tensor:
    """
    Which rows of the softmax are of the words of a list, shape `(num_words + 1,)`, boolean. Over a
    list that two models' vocabularies share, their perplexities can be compared. The entry for
    unknown words doesn't count, and words that the vocabulary lacks are left out, with a warning.

    Raises `ConfigurationError` if no word of the list is in the vocabulary.
    """
    words = {*listed} - {vocabulary.unknown_word, UNKNOWN}
    rows = [vocabulary.ids[word] - 1 for word in words if vocabulary.ids.get(word)]
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
    result = torch.zeros(len(vocabulary) + 1, dtype=torch.bool)
    result[rows] = True
    return result


_WORDS_AT_A_TIME = 2**12


class WholeText:
    """
    The bits of a model's predictions (the mean of both directions) and, for each unknown word, the
    bits of its spelling, over the characters of the text. Mielke 2019 ("Can You Compare Perplexity
    Across Different Segmentations?") compares models of different units so: by what the same text
    costs, in a unit that no model chooses. Unknown words are spelled as Mielke and Eisner 2019 do
    it (`SpellingModel`); without that, a model would gain by knowing fewer words.

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
        if unknown := self._unknown_words():
            spelled = SpellingModel(self._vocabulary.words).bits(unknown)
            bits += float(spelled @ np.array([self._words[word] for word in unknown], np.float64))
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


# A byte is predicted by the three before it.
ORDER = 4
_END, _BEGIN, _BASE = 256, 257, 258


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
        # The n-grams of each length, as numbers in base 258, and how many come before each.
        self._levels: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        for length in range(1, ORDER + 1):
            grams, counts = np.unique(_grams(symbols, length), return_counts=True)
            self._levels.append((grams, np.concatenate([[0], np.cumsum(counts)])))

    def bits(self, words: Sequence[str]) -> NDArray[np.float64]:
        """Returns shape `(num_words,)`: what each costs, its end included."""
        symbols, lengths = _symbols(words)
        probability = np.full(int(lengths.sum()), 1 / (_END + 1))
        for length, (known, before) in enumerate(self._levels, start=1):
            grams = _grams(symbols, length)
            # Of each n-gram, and of all that begin with the same context.
            begin, end = np.searchsorted(known, [grams, grams + 1])
            context = grams // _BASE * _BASE
            first, last = np.searchsorted(known, [context, context + _BASE])
            count, total = before[end] - before[begin], before[last] - before[first]
            kinds = last - first
            backed_off = (count + kinds * probability) / np.maximum(total + kinds, 1)
            probability = np.where(total > 0, backed_off, probability)
        starts = np.cumsum(lengths) - lengths
        return np.add.reduceat(-np.log2(probability), starts) if len(lengths) else np.zeros(0)


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
