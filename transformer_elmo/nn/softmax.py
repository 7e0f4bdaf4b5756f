"""
From contextual embeddings to the negative log-likelihood of each target word.

Two losses share one exact evaluation:

* `SampledSoftmaxLoss` trains on a few thousand sampled words and evaluates exactly;
* `SoftmaxLoss` trains and evaluates exactly.

Their parameters are named and shaped as AllenNLP's, so that weights carry over in both directions.

Whether a vocabulary has its frequent words first, as the sampled softmax takes for granted.
"""

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.kernels.softmax import exact_token_losses, sampled_token_losses
from transformer_elmo.nn.kernels.sparse_gradients import several_processes
from transformer_elmo.text.vocabulary import WordList

# Predictions to look at before anything is said; how many of their most frequent words, and how
# often those must occur. They may stand so many times further down than they could, in the
# geometric mean: Brown's vocabulary on the King James Version has 2.4, an alphabetical one some
# hundreds.
SAMPLE = 20_000
NUM_WORDS = 50
LEAST_COUNT = 5
LIMIT = 3.0


class FrequencyOrder:
    """
    Looks at what a training run predicts first. A sampled softmax draws the words of the first
    lines most often, so that a vocabulary in another order makes it compare words with the wrong
    ones: the loss says less, and training takes longer to the same perplexity.
    """

    def __init__(self, words: WordList) -> None:
        self._words = words
        self._seen: list[torch.Tensor] | None = []

    def problem(self, targets: torch.Tensor) -> str | None:
        """
        `targets`: rows of the softmax that have just been predicted, any shape. Returns what to
        say, once, when enough has been seen and the order is wrong.
        """
        if self._seen is None:
            return None
        self._seen.append(targets.detach().reshape(-1))
        if sum(map(torch.numel, self._seen)) < SAMPLE:
            return None
        counts = torch.bincount(torch.cat(self._seen).cpu())
        self._seen = None
        found, rows = counts.topk(min(NUM_WORDS, counts.numel()))
        lines = rows[found >= LEAST_COUNT] + 1
        factor = float((lines / torch.arange(1, lines.numel() + 1)).log().mean().exp())
        # Not a number where no word is frequent.
        if not factor >= LIMIT:
            return None
        examples = ", ".join(f"{self._words[n]!r} on line {n:,}" for n in lines[:5].tolist())
        return (
            "The vocabulary is not in falling order of frequency in the training text: its most "
            f"frequent words are {examples}; the first {lines.numel()} stand {factor:.0f} times as "
            "far down as they could. The sampled softmax (num_samples) draws the first lines most "
            "often and learns badly so. Count the vocabulary in this text, which sorts it "
            '(transformer-elmo vocab, or a vocabulary of type "from_corpus" or '
            '"from_pretrained_lm"), or train the full softmax: "num_samples": null.'
        )


# How softmaxes are made at present: with random numbers, with whatever is in the memory because
# trained weights follow, or not at all.
_making: ContextVar[str] = ContextVar("making", default="new")


@contextmanager
def softmaxes(making: str) -> Iterator[None]:
    """
    How softmaxes are made within the block. With 800,000 words, one costs as many seconds and as
    much memory as all the rest of opening a model.

    `making`: "new": for training; "to be loaded": without numbers, which trained weights bring;
    "left out": none are made, by models that can do without.
    """
    token = _making.set(making)
    try:
        yield
    finally:
        _making.reset(token)


def making_softmaxes() -> str:
    """What :func:`softmaxes` was told."""
    return _making.get()


def _random_weight(shape: tuple[int, int], embedding_dim: int) -> torch.Tensor:
    if making_softmaxes() == "to be loaded":
        return torch.empty(shape)
    # In place: with 800,000 words, a second copy would be the peak of a whole run's memory.
    return torch.randn(shape).div_(math.sqrt(embedding_dim))


class Softmax(torch.nn.Module):
    """What both losses share: a weight row and a bias for each word, the exact loss over them."""

    # Kept for code written against AllenNLP's losses, which ask for it.
    tie_embeddings = False

    def word_weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Returns the weights, shape `(num_words, embedding_dim)`, and the biases, shape
        `(num_words,)`.
        """
        raise NotImplementedError

    def exact_token_losses(self, embeddings: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """
        The exact negative log-likelihood of each target, over the whole vocabulary, in bounded
        memory, whatever the batch and the vocabulary.

        `embeddings`: shape `(num_tokens, embedding_dim)`. `targets`: shape `(num_tokens,)`; word
        ids from 0, without the vocabulary's padding entry. Returns shape `(num_tokens,)`, float32,
        in nats.
        """
        weight, bias = self.word_weights()
        return exact_token_losses(embeddings, weight, bias, targets.long())

    def token_losses(self, embeddings: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """As `exact_token_losses`, unless a subclass trains on something cheaper."""
        return self.exact_token_losses(embeddings, targets)

    def _load_from_state_dict(
        self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any
    ) -> None:
        """Accepts the sparse layout and the dense one, either way round, whichever its own is."""
        for name, own in self.state_dict().items():
            dense = prefix + name.removesuffix(".weight")
            given = state_dict.pop(dense + ".weight", state_dict.pop(dense, None))
            if given is None:
                continue
            if name.startswith("softmax_b") and given.numel() == own.numel():
                given = given.reshape(own.shape)
            elif given.shape != own.shape and given.t().shape == own.shape:
                # The full softmax keeps its weights the other way round from the sampled one.
                given = given.t()
            state_dict[prefix + name] = given
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, embeddings: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The sum of `token_losses`, a scalar, as AllenNLP's losses return it."""
        return self.token_losses(embeddings, targets).sum()


class SampledSoftmaxLoss(Softmax):
    """
    Trains against a sample of the vocabulary, evaluates against all of it.

    Words are drawn without repeats, with probabilities that fall as their rank rises (log-uniform:
    `P(id) = log((id + 2) / (id + 1)) / log(num_words + 1)`, for a vocabulary sorted by falling
    frequency), as TensorFlow's `log_uniform_candidate_sampler` and AllenNLP's loss do.

    `num_words`: size of the vocabulary, without its padding entry. `num_samples`: how many distinct
    words to draw for a training step. Must be less than `num_words`. `sparse`: weights as
    `torch.nn.Embedding`s with sparse gradients: a step then costs nothing for the words that were
    neither drawn nor targets. Needs an optimizer that knows sparse gradients. Raises
    `ConfigurationError` if `num_samples` isn't less than `num_words`.
    """

    def __init__(
        self, num_words: int, embedding_dim: int, num_samples: int, sparse: bool = False
    ) -> None:
        super().__init__()
        if not 0 < num_samples < num_words:
            raise ConfigurationError(
                "num_samples must be positive and less than the number of words in the vocabulary: "
                f"got num_samples = {num_samples} and {num_words} words. Change model.num_samples, "
                "or leave it out to train on the full softmax."
            )
        weight = _random_weight((num_words, embedding_dim), embedding_dim)
        bias = torch.zeros(num_words)
        self.softmax_w: Any
        self.softmax_b: Any
        if sparse:
            self.softmax_w, self.softmax_b = (
                torch.nn.Embedding.from_pretrained(rows, freeze=False, sparse=True)
                for rows in (weight, bias.unsqueeze(-1))
            )
        else:
            self.softmax_w, self.softmax_b = map(torch.nn.Parameter, (weight, bias))
        self.sparse = sparse
        self.num_samples = num_samples
        self._same_everywhere = False

    def _parameters_of_words(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.sparse:
            return self.softmax_w.weight, self.softmax_b.weight
        return self.softmax_w, self.softmax_b

    def word_weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        weight, bias = self._parameters_of_words()
        return weight, bias.view(-1)

    def token_losses(self, embeddings: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """
        Exact in evaluation mode. In training mode, the sampled loss of Jean et al. 2015 ("On Using
        Very Large Target Vocabulary for Neural Machine Translation"): the true word against the
        sampled ones, each logit less the log of its expected count. All tokens given share
        one draw; each token's loss has the same distribution as with a draw of its own, so a
        mean over tokens (of both directions, too) keeps its expectation.
        """
        if not self.training:
            return self.exact_token_losses(embeddings, targets)
        targets = targets.long()
        weight, bias = self._parameters_of_words()
        if self.sparse and several_processes() and not self._same_everywhere:
            # DistributedDataParallel leaves these to us, so we begin alike as it does.
            for parameter in (weight, bias):
                dist.broadcast(parameter.data, src=0)
            self._same_everywhere = True
        sampled_ids, log_threshold = self.draw(embeddings.device)
        log_counts = self.log_expected_count(torch.cat([targets, sampled_ids]), log_threshold)
        return sampled_token_losses(
            embeddings, weight, bias, targets, sampled_ids, log_counts, self.sparse
        )

    @torch.no_grad()
    def draw(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Draws `num_samples` distinct words on `device`, without waiting for it.

        Each word gets an exponential arrival time with its probability as the rate, and the first
        arrivals win: that has the distribution of drawing one word after the other
        with replacement and keeping the first `num_samples` distinct ones. The arrival time of
        the first loser plays the part of AllenNLP's number of tries.

        Returns the words' ids, sorted, shape `(num_samples,)`; and the log of the threshold, a
        scalar.
        """
        chances = probabilities(self.word_weights()[0].size(0), device)
        arrivals = torch.empty_like(chances).exponential_().div_(chances)
        times, order = torch.topk(arrivals, self.num_samples + 1, largest=False, sorted=True)
        return order[:-1].sort().values, times[-1].log()

    def log_expected_count(
        self, word_ids: torch.Tensor, log_threshold: torch.Tensor
    ) -> torch.Tensor:
        """
        The log of the chance that each word is among the sampled ones, given the threshold:
        `log(1 - exp(-threshold * P(id)))`. With the first loser's arrival time as the threshold,
        one over this chance weights the samples without bias (Duffield, Lund and Thorup 2007,
        "Priority sampling for estimation of arbitrary subset sums", for exponential ranks).
        """
        chances = probabilities(self.word_weights()[0].size(0), word_ids.device)
        return torch.log(-torch.expm1(-log_threshold.exp() * chances.index_select(0, word_ids)))


@functools.lru_cache(maxsize=4)
@torch.inference_mode(False)
def probabilities(num_words: int, device: torch.device) -> torch.Tensor:
    """
    The chance that one draw gives each word, shape `(num_words,)`, float32. `log1p(1 / (id + 1))`
    is exact where `log((id + 2) / (id + 1))` loses several per cent at ids near 800,000.
    """
    ids = torch.arange(num_words, device=device)
    return torch.log1p(1.0 / (ids.double() + 1.0)).float() / math.log(num_words + 1)


class SoftmaxLoss(Softmax):
    """
    The full softmax, in training and in evaluation.

    `num_words`: size of the vocabulary, without its padding entry.
    """

    def __init__(self, num_words: int, embedding_dim: int) -> None:
        super().__init__()
        weight = _random_weight((embedding_dim, num_words), embedding_dim)
        self.softmax_w = torch.nn.Parameter(weight)
        self.softmax_b = torch.nn.Parameter(torch.zeros(num_words))

    def word_weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.softmax_w.t(), self.softmax_b
