"""
What a language model says about each word of a sentence: its exact probability, its rank among all
words, and the likeliest words in its place; from the left, from the right, and from both.
"""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, NamedTuple

import torch

from transformer_elmo.inference.evaluation import perplexity
from transformer_elmo.nn.kernels.softmax import blocks_of_logits
from transformer_elmo.nn.language_model import EncoderOutput
from transformer_elmo.nn.softmax import Softmax
from transformer_elmo.text.vocabulary import WordList

# Places that share a pass over the vocabulary: enough for wide blocks of words, too.
PLACES_AT_ONCE = 1024


class PlaceScores(NamedTuple):
    """
    What one view says about a number of places.

    `log_probs`: shape `(num_places,)`, float32: the log-probability of the word that is there, in
    nats. `ranks`: shape `(num_places,)`: 1 if no word is likelier than it. `top_ids`: shape
    `(num_places, top_k)`: the likeliest words, as ids of the vocabulary. `top_log_probs`: shape
    `(num_places, top_k)`, float32.
    """

    log_probs: torch.Tensor
    ranks: torch.Tensor
    top_ids: torch.Tensor
    top_log_probs: torch.Tensor


@dataclass(frozen=True)
class WordScores:
    """
    What one view says about the tokens of one sentence; `None` where it says nothing: the first
    token has nothing to its left, the last one nothing to its right.

    `log_probs`: each token's log-probability, in nats. `ranks`: 1 if no word of the vocabulary is
    likelier in its place. `top`: the likeliest words in its place and their probabilities; empty if
    none were asked for.
    """

    log_probs: list[float | None]
    ranks: list[int | None]
    top: list[list[tuple[str, float]] | None] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """How many tokens this view predicts."""
        return sum(log_prob is not None for log_prob in self.log_probs)

    @property
    def log_prob(self) -> float:
        """The sum over tokens."""
        return math.fsum(log_prob for log_prob in self.log_probs if log_prob is not None)

    @property
    def perplexity(self) -> float:
        """NaN if there was nothing to predict."""
        return perplexity(self.log_prob, self.num_tokens)


@dataclass(frozen=True)
class SentenceScores:
    """
    What a language model says about a sentence.

    `tokens`: with the boundary tokens that the model was trained with: it predicts them, too, and
    the sums below include them, as `allennlp evaluate` does. `out_of_vocabulary`: whether a token
    is one of those that the model can predict only as "unknown". `forward`: given the words to the
    left. `backward`: given the words to the right; `None` for a model that only reads forward.
    `combined`: given both: `P(w | left) * P(w | right) / P(w)`, made to sum to one. That is the
    probability given both sides where these say independent things of the word (Bayes' rule);
    without the division, both would count what is frequent anyhow. See :func:`log_word_prior` for
    `P(w)`. At the ends of a sentence, where there is one side only, it is that one.
    """

    tokens: list[str]
    out_of_vocabulary: list[bool]
    forward: WordScores
    backward: WordScores | None = None
    combined: WordScores | None = None

    @property
    def num_tokens(self) -> int:
        """How many tokens each direction predicts."""
        return self.forward.num_tokens

    @property
    def num_out_of_vocabulary(self) -> int:
        """How many of those that the forward direction predicts are outside the vocabulary."""
        return sum(self.out_of_vocabulary[1:])

    @property
    def perplexity(self) -> float:
        """Over both directions; NaN if there was nothing to predict."""
        views = [view for view in (self.forward, self.backward) if view is not None]
        log_prob = math.fsum(view.log_prob for view in views)
        return perplexity(log_prob, sum(view.num_tokens for view in views))

    @property
    def forward_log_prob(self) -> float:
        """The sum over all words that the direction predicts, in nats."""
        return self.forward.log_prob

    @property
    def backward_log_prob(self) -> float | None:
        return None if self.backward is None else self.backward.log_prob

    @property
    def forward_perplexity(self) -> float:
        return self.forward.perplexity

    @property
    def backward_perplexity(self) -> float | None:
        return None if self.backward is None else self.backward.perplexity

    @property
    def _views(self) -> dict[str, WordScores]:
        views = {"forward": self.forward, "backward": self.backward, "combined": self.combined}
        return {name: view for name, view in views.items() if view is not None}

    def __str__(self) -> str:
        """A table of probabilities and ranks."""
        titles, rows, summary = self._table()
        table = [titles, *([token + mark, *cells] for token, mark, cells in rows)]
        first = max(_width(row[0]) for row in table)
        widths = [max(map(len, column)) for column in list(zip(*table))[1:]]
        lines = []
        for token, *cells in table:
            padded = token + " " * (first - _width(token))
            lines.append("  ".join([padded, *map(str.rjust, cells, widths)]).rstrip())
        return "\n".join([*lines, summary])

    def _repr_html_(self) -> str:
        """The same, in a notebook."""
        titles, rows, summary = self._table()
        lines = ["".join(f"<th>{title}</th>" for title in titles)]
        for token, mark, cells in rows:
            head = f'<th><bdi dir="auto">{escape(token)}</bdi>{mark}</th>'
            lines.append(head + "".join(f"<td>{cell}</td>" for cell in cells))
        table = "".join(f"<tr>{line}</tr>" for line in lines)
        return f"<table>{table}</table><p>{escape(summary)}</p>"

    def _table(self) -> tuple[list[str], list[tuple[str, str, list[str]]], str]:
        """Titles; for each token its word, a mark and two cells for each view; a summary."""
        titles = ["token"]
        for name in self._views:
            titles += [name.replace("combined", "both"), "rank"]
        rows = []
        for number, (token, outside) in enumerate(zip(self.tokens, self.out_of_vocabulary)):
            cells = []
            for view in self._views.values():
                cells += _cells(view.log_probs[number], view.ranks[number])
            rows.append((token, " *" if outside else "", cells))
        unknown = self.num_out_of_vocabulary
        summary = f"perplexity {self.perplexity:,.2f} over {self.num_tokens} tokens"
        return titles, rows, summary + (f", {unknown} of them unknown (*)" if unknown else "")

    def to_json(self) -> dict[str, Any]:
        """The same as a dictionary for `json`; a view that isn't there has no entries."""
        result: dict[str, Any] = {
            "tokens": self.tokens,
            "out_of_vocabulary": self.out_of_vocabulary,
            "num_tokens": self.num_tokens,
            "num_out_of_vocabulary": self.num_out_of_vocabulary,
            "perplexity": _finite(self.perplexity),
        }
        for name, scores in self._views.items():
            if name != "combined":
                result[f"{name}_log_prob"] = scores.log_prob
                result[f"{name}_perplexity"] = _finite(scores.perplexity)
        for name, scores in self._views.items():
            result[f"{name}_log_probs"] = scores.log_probs
            result[f"{name}_ranks"] = scores.ranks
            if scores.top:
                result[f"{name}_top"] = scores.top
        return result


def _finite(number: float) -> float | None:
    """JSON has neither NaN nor infinity."""
    return number if math.isfinite(number) else None


def score_places(
    weight: torch.Tensor,
    bias: torch.Tensor,
    views: Sequence[tuple[torch.Tensor, torch.Tensor]],
    targets: torch.Tensor,
    top_k: int = 0,
    num_words: int | None = None,
) -> list[PlaceScores]:
    """
    Scores places over the whole vocabulary, in bounded memory.

    `weight`: shape `(num_rows, embedding_dim)`: the softmax weights. `bias`: shape `(num_rows,)`.
    `views`: for each view the embeddings that predict the places, shape `(num_places,
    embedding_dim)`, and whether there is one, shape `(num_places,)`, boolean. `targets`: shape
    `(num_places,)`: the rows of the words that are there. `top_k`: how many of the likeliest words
    to name. `num_words`: the first so many rows are words; later ones take part in the
    normalization alone. Returns one for each view and, if there are several, one for what they say
    together (see `SentenceScores`). Where a view has no embedding, its numbers mean nothing.
    """
    num_words = weight.size(0) if num_words is None else num_words
    parts = []
    for begin in range(0, max(targets.numel(), 1), PLACES_AT_ONCE):
        some = slice(begin, begin + PLACES_AT_ONCE)
        words, rows = targets[some], [rows[some] for rows, _ in views]
        # What a product multiplies: a view that is missing at a place contributes nothing there.
        factors = [there[some].float().unsqueeze(-1) for _, there in views]
        weights, biases = weight[words], bias[words].float()
        own = [(r * weights).sum(-1, dtype=torch.float32) + biases for r in rows]
        prior = log_word_prior(words).unsqueeze(-1)
        own = _with_combination([logits.unsqueeze(-1) for logits in own], factors, prior)
        running = [_Running(logits, words, min(top_k, num_words)) for logits in own]
        for blocks in zip(*(blocks_of_logits(r, weight, bias) for r in rows)):
            start, logits = blocks[0]
            columns = torch.arange(start, start + logits.size(1), device=weight.device)
            of_views = [logits for _, logits in blocks]
            combined = _with_combination(of_views, factors, log_word_prior(columns))
            for view, logits in zip(running, combined):
                view.add(logits, columns, num_words)
        parts.append([view.scores() for view in running])
    return [PlaceScores(*map(torch.cat, zip(*view))) for view in zip(*parts)]


class _Running:
    """What one view has said so far of some places, while blocks of words go by."""

    def __init__(self, target_logits: torch.Tensor, targets: torch.Tensor, top_k: int) -> None:
        self._target_logits, self._targets = target_logits, targets.unsqueeze(-1)
        shape = (targets.numel(), top_k)
        self._log_normalizer = target_logits.new_full((targets.numel(),), -math.inf)
        self._ranks = torch.ones_like(targets)
        self._top = target_logits.new_full(shape, -math.inf)
        self._top_rows = targets.new_zeros(shape)

    def add(self, logits: torch.Tensor, columns: torch.Tensor, num_words: int) -> None:
        """Logits of shape `(num_places, num_columns)`; rows beyond `num_words` are no words."""
        self._log_normalizer = torch.logaddexp(self._log_normalizer, logits.logsumexp(-1))
        others = (columns != self._targets) & (columns < num_words)
        self._ranks += ((logits > self._target_logits) & others).sum(-1)
        start, top_k = int(columns[0]), self._top.size(1)
        words = min(columns.numel(), num_words - start)
        if not top_k or words <= 0:
            return
        best, column = logits[:, :words].topk(min(top_k, words), dim=-1)
        top = torch.cat([self._top, best], -1)
        rows = torch.cat([self._top_rows, column + start], -1)
        self._top, order = top.topk(top_k, dim=-1)
        self._top_rows = rows.gather(-1, order)

    def scores(self) -> PlaceScores:
        return PlaceScores(
            self._target_logits.squeeze(-1) - self._log_normalizer,
            self._ranks,
            # From rows of the softmax to ids of the vocabulary, where 0 is padding.
            self._top_rows + 1,
            self._top - self._log_normalizer.unsqueeze(-1),
        )


def log_word_prior(rows: torch.Tensor) -> torch.Tensor:
    """
    How frequent words are whatever is around them, by Zipf's law: a vocabulary is sorted by falling
    frequency, and an archive keeps no counts. It is the distribution that the sampled softmax draws
    from. From rows of the softmax, any shape, to log-probabilities but for a constant, float32.
    """
    return torch.log1p(1.0 / (rows.double() + 1.0)).log().float()


def _with_combination(
    logits: list[torch.Tensor], factors: list[torch.Tensor], log_prior: torch.Tensor
) -> list[torch.Tensor]:
    """The views' logits, and if there are several, those of what they say together."""
    if len(logits) == 1:
        return logits
    product = logits[0] * factors[0]
    for view_logits, factor in zip(logits[1:], factors[1:]):
        product = product.addcmul(view_logits, factor)
    # Each view has the prior in it; it is to be there once.
    surplus = (torch.stack(factors).sum(0) - 1).clamp(min=0)
    return [*logits, product - surplus * log_prior]


@torch.no_grad()
def score_encoded(
    encoded: EncoderOutput,
    softmax: Softmax,
    token_ids: torch.Tensor,
    vocabulary: WordList,
    bidirectional: bool,
    top_k: int = 0,
    sentences: Sequence[Sequence[str]] | None = None,
) -> list[SentenceScores]:
    """
    `encoded`: a batch of sentences, by a model in evaluation mode. `token_ids`: shape `(batch_size,
    timesteps)`. `top_k`: how many of the likeliest words to name for each place. `sentences`: the
    sentences' tokens as they were read. By default they are named as the vocabulary has them, where
    all words outside it have the same name. Returns one a sentence, in order.
    """
    packing = encoded.packing
    ids = token_ids.reshape(-1).index_select(0, packing.tokens)
    views = []
    # What predicts a token is what was read up to its neighbour.
    for rows, places in zip(
        encoded.predicting(bidirectional), (packing.with_next + 1, packing.with_previous - 1)
    ):
        embeddings = rows.new_zeros(ids.numel(), rows.size(-1)).index_copy_(0, places, rows)
        there = torch.zeros_like(ids, dtype=torch.bool).index_fill_(0, places, True)
        views.append((embeddings, there))
    weight, bias = softmax.word_weights()
    # The vocabulary numbers padding, too, but the softmax has no row for it.
    scores = score_places(weight, bias, views, ids - 1, top_k, len(vocabulary))
    presence = [there for _, there in views]
    if len(views) == 2:
        presence.append(presence[0] | presence[1])
    words = [_word_scores(*view, vocabulary) for view in zip(scores, presence)]
    numbers, results, begin = ids.tolist(), [], 0
    for number, length in enumerate(encoded.mask.sum(-1).tolist()):
        part = slice(begin, begin + length)
        begin += length
        tokens = [vocabulary[index] for index in numbers[part]]
        if sentences is not None:
            tokens = list(sentences[number])
        outside = [index == vocabulary.unknown for index in numbers[part]]
        of_views = (WordScores(*(values[part] for values in view)) for view in words)
        results.append(SentenceScores(tokens, outside, *of_views))
    return results


def _word_scores(
    scores: PlaceScores, present: torch.Tensor, names: WordList
) -> tuple[list[Any], list[Any], list[Any]]:
    """The parts of `WordScores`, for all places of a batch."""
    log_probs, ranks, top_ids, top_log_probs = scores
    tops: list[list[tuple[str, float]]] = []
    if top_ids.size(-1):
        for ids, probabilities in zip(top_ids.tolist(), top_log_probs.exp().tolist()):
            tops.append(list(zip(map(names.__getitem__, ids), probabilities)))
    flags = present.tolist()
    return tuple(  # type: ignore[return-value]
        [value if flag else None for value, flag in zip(values, flags)]
        for values in (log_probs.tolist(), ranks.tolist(), tops)
    )


# Characters that stand above, below or between others.
_WITHOUT_WIDTH = {"Mn", "Me", "Cf"}


def _cells(log_prob: float | None, rank: int | None) -> list[str]:
    """A probability and a rank in few digits; nothing where there is nothing to say."""
    if log_prob is None or rank is None:
        return ["", ""]
    probability = math.exp(log_prob)
    return [f"{probability:.4f}" if probability >= 0.0001 else f"{probability:.0e}", f"{rank:,}"]


def _width(text: str) -> int:
    """Columns of a terminal."""
    shown = [c for c in text if unicodedata.category(c) not in _WITHOUT_WIDTH]
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in shown)
