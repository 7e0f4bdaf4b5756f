"""
How likely a spelling is: what words outside a vocabulary cost, so that models of different
vocabularies can be compared on all of a text.
"""

from typing import List, Mapping, NamedTuple, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

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

    # Parameters

    words : `Sequence[str]`
    """

    def __init__(self, words: Sequence[str]) -> None:
        symbols, _ = _symbols(words)
        self._levels: List[_Level] = []
        for length in range(1, ORDER + 1):
            grams, counts = np.unique(_grams(symbols, length), return_counts=True)
            contexts, first, kinds = np.unique(
                grams // _BASE, return_index=True, return_counts=True
            )
            totals = np.add.reduceat(counts, first) if len(first) else first
            self._levels.append(_Level(grams, counts, contexts, totals, kinds))

    def bits(self, words: Sequence[str]) -> NDArray[np.float64]:
        """
        # Parameters

        words : `Sequence[str]`

        # Returns

        `NDArray[float64]`
            Shape `(num_words,)`: what each costs, its end included.
        """
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

    # Parameters

    vocabulary : `Sequence[str]`
        The words that the model knows.
    unknown : `Mapping[str, int]`
        How often each word outside it occurs.
    """
    if not unknown:
        return 0.0
    counts = np.fromiter(unknown.values(), np.float64, len(unknown))
    return float(SpellingModel(vocabulary).bits(list(unknown)) @ counts)


def _symbols(words: Sequence[str]) -> Tuple[NDArray[np.int64], NDArray[np.int64]]:
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
