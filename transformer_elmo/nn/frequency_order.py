"""Whether a vocabulary has its frequent words first, as the sampled softmax takes for granted."""

import math
from typing import List, Optional

import torch

from transformer_elmo.text.vocabulary import WordList

# Predictions to look at before anything is said.
SAMPLE = 20_000

# So many of the most frequent words of the sample are looked at, and so often must they occur.
NUM_WORDS = 50
LEAST_COUNT = 5

# How many times further down than they could these words may stand, in the geometric mean. Brown's
# vocabulary on the King James Version has 2.4, an alphabetical one some hundreds.
LIMIT = 3.0


class FrequencyOrder:
    """
    Looks at what a training run predicts first. A sampled softmax draws the words of the first
    lines most often, so that a vocabulary in another order makes it compare words with the wrong
    ones: the loss says less, and training takes longer to the same perplexity.

    # Parameters

    words : `WordList`
    """

    def __init__(self, words: WordList) -> None:
        self._words = words
        self._seen: List[torch.Tensor] = []
        self._num_seen = 0
        self.is_over = False

    def problem(self, targets: torch.Tensor) -> Optional[str]:
        """
        # Parameters

        targets : `torch.Tensor`
            Rows of the softmax that have just been predicted, any shape.

        # Returns

        `str`, optional
            What to say, once, when enough has been seen and the order is wrong.
        """
        if self.is_over:
            return None
        self._seen.append(targets.detach().reshape(-1))
        self._num_seen += targets.numel()
        if self._num_seen < SAMPLE:
            return None
        self.is_over = True
        counts = torch.bincount(torch.cat(self._seen).cpu())
        self._seen = []
        found, rows = counts.topk(min(NUM_WORDS, counts.numel()))
        rows = rows[found >= LEAST_COUNT]
        if not rows.numel():
            return None
        factor = math.exp(
            float(
                (rows.double() + 1).log().mean()
                - torch.arange(1, rows.numel() + 1).double().log().mean()
            )
        )
        if factor < LIMIT:
            return None
        examples = ", ".join(
            f"{self._words[row + 1]!r} on line {row + 1:,}" for row in rows[:5].tolist()
        )
        return (
            "The vocabulary is not in falling order of frequency in the training text: of a sample "
            f"of {self._num_seen:,} words, the most frequent ones are {examples}; the first "
            f"{rows.numel()} stand {factor:.0f} times as far down as they could. The sampled "
            "softmax (num_samples) draws the first lines most often and learns badly so. Count the "
            "vocabulary in this text, which sorts it (transformer-elmo vocab, or a vocabulary of "
            'type "from_corpus" or "from_pretrained_lm"), or train the full softmax: '
            '"num_samples": null.'
        )
