"""Perplexity as a total over words, so that it never depends on how they were batched."""

import math
from dataclasses import dataclass, field
from typing import Any, Dict, List, Sequence

import torch

DIRECTIONS = ("forward", "backward")


def perplexity(log_prob: float, num_tokens: int) -> float:
    """`exp(-log_prob / num_tokens)`; NaN for no token."""
    if not num_tokens:
        return math.nan
    try:
        return math.exp(-log_prob / num_tokens)
    except OverflowError:
        return math.inf


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
