"""
A softmax for another vocabulary. Rows of words that both vocabularies have come over. Those of new
words begin where a ridge regression puts them, from what words look like (their word vectors) to
the rows that training gave them. Biases are set by a sample of the new text, so that on average
each word is predicted as often as it occurs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from transformer_elmo.text.vocabulary import WordList

# Words whose vectors and rows are in memory at a time: 16 MB of each for the billion-word model.
WORDS_AT_A_TIME = 2**13

# One in so many shared words is left out, to see what the regression explains. With fewer words
# than the second number, there is nothing to fit.
ONE_IN = 8
LEAST_SHARED = 32

# More shared words than this fit no better, and each has its characters read: with 123 for each
# number of a word vector, a regression explained 98 % of what one with all words did. They are
# drawn at equal distances: rows of frequent words alone say nothing of those of rare ones.
MOST_FITTED = 2**16

# Probabilities in memory at a time, and predictions of the sample: with 500 the perplexity is half
# a per cent from what it is with 9,000.
_PROBABILITIES = 2**24
SAMPLE = 4000

# Weight, shape `(num_words, dim)`, and bias, shape `(num_words,)`.
Rows = tuple[torch.Tensor, torch.Tensor]

# From rows of the new softmax to the vectors of their words, shape `(num_words, dim)`.
WordVectors = Callable[[Sequence[int]], torch.Tensor]


@dataclass(frozen=True)
class Report:
    """
    What became of the rows.

    `num_kept`, `num_made`, `num_dropped`: words that both vocabularies have, new ones, and those
    that only the old one had. `explained`: the share of the variance, of rows of words left out,
    that the regression explains; `None` if new rows are the mean of the old ones instead.
    """

    num_kept: int
    num_made: int
    num_dropped: int
    explained: float | None = None

    def __str__(self) -> str:
        text = (
            f"{self.num_kept:,} rows of the softmax came over, {self.num_made:,} were made for new "
            f"words, {self.num_dropped:,} were dropped"
        )
        if not self.num_made:
            return text
        origin = "are the mean of the old ones"
        if self.explained is not None:
            origin = (
                "come from a regression on word vectors, which explains "
                f"{self.explained:.1%} of the variance of rows that it wasn't fitted to"
            )
        return f"{text}; those made {origin}"


def old_rows_of(old: WordList, new: WordList) -> torch.Tensor:
    """
    Returns shape `(len(new),)`: for each word of the new vocabulary its row in the old softmax, -1
    for a new word. The entries for unknown words are the same word, whatever they are called.
    """
    ids = old.ids
    numbers = [ids.get(word, 0) for word in new.words]
    if new.unknown is not None:
        numbers[new.unknown - 1] = old.unknown or 0
    return torch.tensor(numbers, dtype=torch.long) - 1


def _features(vectors: torch.Tensor) -> torch.Tensor:
    return torch.cat([vectors.float(), vectors.new_ones(vectors.size(0), 1).float()], 1)


@torch.no_grad()
def adapt_softmax(
    old: Rows, new: Rows, old_rows: torch.Tensor, word_vectors: WordVectors | None
) -> Report:
    """
    Fills a softmax with the rows that another one gives. Beside the two softmaxes, memory is needed
    for some thousand words only, and for sums as large as the square of a word vector.

    `old`, `new`: the second one is written to. Both have one row more than words; it belongs to
    none. `old_rows`: shape `(num_new_words,)`: see :func:`old_rows_of`. `word_vectors`: `None`
    where a vector says nothing of a new word: then new rows are the mean of the old ones, as they
    are where next to no word is shared, or the regression explains nothing.
    """
    weight, bias = new
    shared = (old_rows >= 0).nonzero().squeeze(1)
    made = (old_rows < 0).nonzero().squeeze(1)
    solution = explained = None
    if word_vectors is not None and made.numel() and shared.numel() >= LEAST_SHARED:
        solution, explained = _regression(old, old_rows, shared, word_vectors)
    for numbers in shared.split(WORDS_AT_A_TIME):
        weight[numbers] = old[0][old_rows[numbers]].to(weight.dtype)
        bias[numbers] = old[1][old_rows[numbers]].to(bias.dtype)
    if word_vectors is None or solution is None:
        weight[made], bias[made] = old[0].float().mean(0), old[1].float().mean()
    else:
        for numbers in made.split(WORDS_AT_A_TIME):
            values = _features(word_vectors(numbers.tolist())) @ solution
            weight[numbers], bias[numbers] = values[:, :-1], values[:, -1]
    weight[-1], bias[-1] = old[0][-1], old[1][-1]
    num_dropped = old[0].size(0) - 1 - int(torch.unique(old_rows[shared]).numel())
    return Report(shared.numel(), made.numel(), num_dropped, explained)


def _regression(
    old: Rows, old_rows: torch.Tensor, shared: torch.Tensor, word_vectors: WordVectors
) -> tuple[torch.Tensor | None, float | None]:
    """
    From features of a word to its weights and bias, shape `(num_features, dim + 1)`; and what it
    explains of words left out. `None` if that is nothing.
    """
    if shared.numel() > MOST_FITTED:
        shared = shared[torch.arange(MOST_FITTED) * shared.numel() // MOST_FITTED]
    squares: Any = 0.0
    products: Any = 0.0
    left_out: list[tuple[torch.Tensor, torch.Tensor]] = []
    for numbers in shared.split(WORDS_AT_A_TIME):
        features = _features(word_vectors(numbers.tolist())).double()
        weight, bias = (rows[old_rows[numbers]].double() for rows in old)
        values = torch.cat([weight, bias.unsqueeze(1)], 1)
        # By its place among the shared words: frequent and rare ones alike.
        apart = torch.arange(numbers.numel()) % ONE_IN == ONE_IN - 1
        left_out.append((features[apart], values[apart]))
        features, values = features[~apart], values[~apart]
        squares, products = squares + features.t() @ features, products + features.t() @ values
    # Each feature against its own size: as much as suits rows half of which vectors explain. One
    # that is always 0 must not make it singular; the last one is constant and not held back.
    penalty = squares.diagonal() * len(squares) / squares[-1, -1] + 1e-9 * squares[-1, -1]
    penalty[-1] = 0.0
    solution = torch.linalg.solve(squares + torch.diag(penalty), products)
    features, values = (torch.cat(parts) for parts in zip(*left_out))
    error, spread = values - features @ solution, values - values.mean(0)
    explained = float(1 - error.square().sum() / spread.square().sum())
    return (solution.float(), explained) if explained > 0 else (None, None)


@torch.no_grad()
def calibrate(rows: Rows, contexts: torch.Tensor, shares: torch.Tensor) -> None:
    """
    Sets biases such that, on average over contexts, each word is about as probable as it is
    frequent: the frequencies of another text, which an adapted model would have to learn bias by
    bias, each a learning rate at a time.

    `rows`: their biases are written to. `contexts`: shape `(num_contexts, dim)`: what the model
    predicts words of the new text from. `shares`: shape `(num_words,)`: how frequent each word of
    the vocabulary is, adding up to 1, none of them 0. The row behind the last word stays as it is.
    """
    weight, bias = rows
    if not contexts.size(0):
        return
    total = torch.zeros(bias.size(0), dtype=torch.float64)
    for part in contexts.split(max(1, _PROBABILITIES // bias.size(0))):
        logits = torch.addmm(bias, part.float(), weight.t())
        total += torch.softmax(logits, 1).sum(0, dtype=torch.float64)
    average = (total[:-1] / contexts.size(0)).clamp(min=1e-30)
    bias[:-1] += (shares.double().log() - average.log()).to(bias.dtype)


def shares_of(
    words: WordList, counts: Mapping[str, int], boundaries: Sequence[str]
) -> torch.Tensor:
    """
    How often each word of a vocabulary is to be predicted in a text.

    `counts`: of the text, boundary tokens included. `boundaries`: each direction predicts those at
    its own end of a sentence only: they count half. Returns shape `(len(words),)`, float64, adding
    up to 1. A word that the text doesn't have counts as half an occurrence.
    """
    numbers: list[float] = [float(counts.get(word, 0)) for word in words.words]
    known = math.fsum(numbers)
    if words.unknown is not None:
        own = numbers[words.unknown - 1]
        numbers[words.unknown - 1] = own + sum(counts.values()) - known
    for token in boundaries:
        if token in words:
            numbers[words.ids[token] - 1] /= 2
    shares = torch.tensor(numbers, dtype=torch.float64).clamp(min=0.5)
    return shares / shares.sum()
