"""Perplexity as a total over words, so that it never depends on how they were batched."""

import logging
import math
from dataclasses import dataclass, field
from typing import Any, Dict, List, Sequence

import torch

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

    # Attributes

    losses : `List[float]`
        For each direction, the total negative log-likelihood in nats.
    num_tokens : `int`
        The words that each direction predicted.
    num_sentences : `int`
    num_out_of_vocabulary : `int`
    """

    losses: List[float] = field(default_factory=list)
    num_tokens: int = 0
    num_sentences: int = 0
    num_out_of_vocabulary: int = 0

    def add(self, losses: Sequence[torch.Tensor], num_sentences: int, unknown: int) -> None:
        """
        # Parameters

        losses : `Sequence[torch.Tensor]`
            For each direction, the loss of each prediction. They are added up in float64.
        num_sentences : `int`
        unknown : `int`
            Tokens outside the vocabulary.
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

    def metrics(self) -> Dict[str, Any]:
        """What `allennlp evaluate` reports, under its names."""
        result: Dict[str, Any] = {
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

    # Parameters

    listed : `Sequence[str]`
        The entry for unknown words doesn't count.
    vocabulary : `WordList`
        The model's. Words of the list that it lacks can't be predicted: they are left out, with a
        warning.

    # Raises

    `ConfigurationError`
        If no word of the list is in the vocabulary.
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
        # Parameters

        losses, targets : `Sequence[torch.Tensor]`
            For each direction, the loss of each prediction and the row of the word predicted.
        """
        for of_direction, rows in zip(losses, targets):
            listed = self._listed.to(rows.device)[rows]
            self.loss += float(of_direction.detach()[listed].sum(dtype=torch.float64))
            self.num_predictions += int(listed.sum())

    def metrics(self) -> Dict[str, Any]:
        """`listed_perplexity`, and how many predictions of all directions it is the mean of."""
        return {
            "listed_perplexity": perplexity(-self.loss, self.num_predictions),
            "num_listed_predictions": self.num_predictions,
        }
