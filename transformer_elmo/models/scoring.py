"""
What a language model says about each word of a sentence: its exact probability, its rank among all
words, and the likeliest words in its place; from the left, from the right, and from both.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from allennlp.common.checks import ConfigurationError
from allennlp.data import TextFieldTensors, Vocabulary
from torch.nn import functional as F

from transformer_elmo.models.language_model import LanguageModel

# One block of logits has at most this many float32 numbers (16 MiB), and a few blocks are alive at
# a time, whatever the batch and the vocabulary.
LOGITS_IN_MEMORY = 2**22

NO_WORD_IDS = (
    "Probabilities of words need the words' ids, but the text field has entries for {} only. Add a "
    "single_id indexer named tokens to the dataset reader."
)

# Places that share a pass over the vocabulary: enough for wide blocks of words, too.
PLACES_AT_ONCE = 1024


@dataclass(frozen=True)
class PlaceScores:
    """
    What one view says about a number of places.

    # Attributes

    log_probs : `torch.Tensor`
        Shape `(num_places,)`, float32: the log-probability of the word that is there, in nats.
    ranks : `torch.Tensor`
        Shape `(num_places,)`: 1 if no word is likelier than it.
    top_ids : `torch.Tensor`
        Shape `(num_places, top_k)`: the likeliest words, as ids of the vocabulary.
    top_log_probs : `torch.Tensor`
        Shape `(num_places, top_k)`, float32.
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

    # Attributes

    log_probs : `List[Optional[float]]`
        Each token's log-probability, in nats.
    ranks : `List[Optional[int]]`
        1 if no word of the vocabulary is likelier in its place.
    top : `List[Optional[List[Tuple[str, float]]]]`
        The likeliest words in its place and their probabilities; empty if none were asked for.
    """

    log_probs: List[Optional[float]]
    ranks: List[Optional[int]]
    top: List[Optional[List[Tuple[str, float]]]] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """How many tokens this view predicts."""
        return sum(log_prob is not None for log_prob in self.log_probs)

    @property
    def log_prob(self) -> float:
        """The sum over tokens."""
        return math.fsum(log_prob for log_prob in self.log_probs if log_prob is not None)


@dataclass(frozen=True)
class SentenceScores:
    """
    What a language model says about a sentence.

    # Attributes

    tokens : `List[str]`
        With the boundary tokens that the model was trained with: it predicts them, too, and the
        sums below include them, as `allennlp evaluate` does.
    out_of_vocabulary : `List[bool]`
        Whether a token is one of those that the model can predict only as "unknown".
    forward : `WordScores`
        Given the words to the left.
    backward : `WordScores`, optional
        Given the words to the right; `None` for a model that only reads forward.
    combined : `WordScores`, optional
        Given both: `P(w | left) * P(w | right) / P(w)`, made to sum to one. That is the
        probability given both sides where these say independent things of the word (Bayes'
        rule); without the division, both would count what is frequent anyhow. See
        :func:`log_word_prior` for `P(w)`. At the ends of a sentence, where there is one side
        only, it is that one.
    """

    tokens: List[str]
    out_of_vocabulary: List[bool]
    forward: WordScores
    backward: Optional[WordScores] = None
    combined: Optional[WordScores] = None

    @property
    def num_tokens(self) -> int:
        """How many tokens each direction predicts."""
        return self.forward.num_tokens

    @property
    def forward_log_prob(self) -> float:
        return self.forward.log_prob

    @property
    def backward_log_prob(self) -> Optional[float]:
        return None if self.backward is None else self.backward.log_prob

    @property
    def perplexity(self) -> float:
        """Over both directions; NaN if there was nothing to predict."""
        directions = [scores for scores in (self.forward, self.backward) if scores is not None]
        return perplexity(
            math.fsum(scores.log_prob for scores in directions),
            sum(scores.num_tokens for scores in directions),
        )

    @property
    def forward_perplexity(self) -> float:
        return perplexity(self.forward.log_prob, self.forward.num_tokens)

    @property
    def backward_perplexity(self) -> Optional[float]:
        if self.backward is None:
            return None
        return perplexity(self.backward.log_prob, self.backward.num_tokens)

    def to_json(self) -> Dict[str, Any]:
        """The same as a dictionary for `json`; a view that isn't there has no entries."""
        result: Dict[str, Any] = {
            "tokens": self.tokens,
            "out_of_vocabulary": self.out_of_vocabulary,
            "num_tokens": self.num_tokens,
            "num_out_of_vocabulary": sum(self.out_of_vocabulary),
            "perplexity": _finite(self.perplexity),
        }
        for name, scores in (("forward", self.forward), ("backward", self.backward)):
            if scores is not None:
                result[f"{name}_log_prob"] = scores.log_prob
                result[f"{name}_perplexity"] = _finite(
                    perplexity(scores.log_prob, scores.num_tokens)
                )
        for name, scores in (
            ("forward", self.forward),
            ("backward", self.backward),
            ("combined", self.combined),
        ):
            if scores is not None:
                result[f"{name}_log_probs"] = scores.log_probs
                result[f"{name}_ranks"] = scores.ranks
                if scores.top:
                    result[f"{name}_top"] = scores.top
        return result


def perplexity(log_prob: float, num_tokens: int) -> float:
    """`exp(-log_prob / num_tokens)`; NaN for no token."""
    if not num_tokens:
        return math.nan
    try:
        return math.exp(-log_prob / num_tokens)
    except OverflowError:
        return math.inf


def _finite(number: float) -> Optional[float]:
    """JSON has neither NaN nor infinity."""
    return number if math.isfinite(number) else None


def score_places(
    weight: torch.Tensor,
    bias: torch.Tensor,
    views: Sequence[Tuple[torch.Tensor, torch.Tensor]],
    targets: torch.Tensor,
    top_k: int = 0,
    num_words: Optional[int] = None,
) -> List[PlaceScores]:
    """
    Scores places over the whole vocabulary, in bounded memory.

    # Parameters

    weight : `torch.Tensor`
        Shape `(num_rows, embedding_dim)`: the softmax weights.
    bias : `torch.Tensor`
        Shape `(num_rows,)`.
    views : `Sequence[Tuple[torch.Tensor, torch.Tensor]]`
        For each view the embeddings that predict the places, shape `(num_places, embedding_dim)`,
        and whether there is one, shape `(num_places,)`, boolean.
    targets : `torch.Tensor`
        Shape `(num_places,)`: the rows of the words that are there.
    top_k : `int`, optional (default = `0`)
        How many of the likeliest words to name.
    num_words : `int`, optional (default = `num_rows`)
        The first so many rows are words; later ones take part in the normalization alone.

    # Returns

    `List[PlaceScores]`
        One for each view and, if there are several, one for what they say together (see
        `SentenceScores`). Where a view has no embedding, its numbers mean nothing.
    """
    num_words = weight.size(0) if num_words is None else num_words
    top_k = min(top_k, num_words)
    parts = [
        _score_some(
            weight,
            bias,
            [(rows[begin:end], there[begin:end]) for rows, there in views],
            targets[begin:end],
            top_k,
            num_words,
        )
        for begin, end in (
            (begin, begin + PLACES_AT_ONCE)
            for begin in range(0, max(targets.numel(), 1), PLACES_AT_ONCE)
        )
    ]
    return [
        PlaceScores(
            torch.cat([part.log_probs for part in view]),
            torch.cat([part.ranks for part in view]),
            torch.cat([part.top_ids for part in view]),
            torch.cat([part.top_log_probs for part in view]),
        )
        for view in zip(*parts)
    ]


def _score_some(
    weight: torch.Tensor,
    bias: torch.Tensor,
    views: Sequence[Tuple[torch.Tensor, torch.Tensor]],
    targets: torch.Tensor,
    top_k: int,
    num_words: int,
) -> List[PlaceScores]:
    num_places, num_rows = targets.numel(), weight.size(0)
    target_weight, target_bias = weight[targets], bias[targets].float()
    # What a product multiplies: a view that is missing at a place contributes nothing there.
    factors = [there.float().unsqueeze(-1) for _, there in views]
    embeddings = [rows.to(weight.dtype) for rows, _ in views]
    target_logits = _with_combination(
        [
            ((rows * target_weight).sum(-1, dtype=torch.float32) + target_bias).unsqueeze(-1)
            for rows in embeddings
        ],
        factors,
        log_word_prior(targets).unsqueeze(-1),
    )
    log_normalizers = [
        weight.new_full((num_places,), -math.inf, dtype=torch.float32) for _ in target_logits
    ]
    ranks = [torch.ones_like(targets) for _ in target_logits]
    tops = [
        (
            weight.new_full((num_places, top_k), -math.inf, dtype=torch.float32),
            targets.new_zeros(num_places, top_k),
        )
        for _ in target_logits
    ]

    block = max(1, LOGITS_IN_MEMORY // max(1, num_places))
    for start in range(0, num_rows, block):
        stop = min(start + block, num_rows)
        columns = torch.arange(start, stop, device=weight.device)
        logits = _with_combination(
            [F.linear(rows, weight[start:stop]).float() + bias[start:stop] for rows in embeddings],
            factors,
            log_word_prior(columns),
        )
        others = (columns != targets.unsqueeze(-1)) & (columns < num_words)
        words = max(0, min(stop, num_words) - start)
        for view, view_logits in enumerate(logits):
            log_normalizers[view] = torch.logaddexp(
                log_normalizers[view], torch.logsumexp(view_logits, dim=-1)
            )
            ranks[view] += ((view_logits > target_logits[view]) & others).sum(-1)
            if top_k and words:
                best, column = view_logits[:, :words].topk(min(top_k, words), dim=-1)
                values, ids = tops[view]
                values, ids = torch.cat([values, best], -1), torch.cat([ids, column + start], -1)
                values, order = values.topk(top_k, dim=-1)
                tops[view] = values, ids.gather(-1, order)

    return [
        PlaceScores(
            target_logits[view].squeeze(-1) - log_normalizers[view],
            ranks[view],
            # From rows of the softmax to ids of the vocabulary, where 0 is padding.
            tops[view][1] + 1,
            tops[view][0] - log_normalizers[view].unsqueeze(-1),
        )
        for view in range(len(target_logits))
    ]


def log_word_prior(rows: torch.Tensor) -> torch.Tensor:
    """
    How frequent words are whatever is around them, by Zipf's law: a vocabulary is sorted by falling
    frequency, and an archive keeps no counts. It is the distribution that the sampled softmax draws
    from.

    # Parameters

    rows : `torch.Tensor`
        Any shape: rows of the softmax, from 0.

    # Returns

    `torch.Tensor`
        The same shape, float32: log-probabilities but for a constant.
    """
    return torch.log1p(1.0 / (rows.double() + 1.0)).log().float()


def _with_combination(
    logits: List[torch.Tensor], factors: List[torch.Tensor], log_prior: torch.Tensor
) -> List[torch.Tensor]:
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
def score_batch(
    model: LanguageModel,
    source: TextFieldTensors,
    top_k: int = 0,
    sentences: Optional[Sequence[Sequence[str]]] = None,
) -> List[SentenceScores]:
    """
    # Parameters

    model : `LanguageModel`
        In evaluation mode.
    source : `TextFieldTensors`
        A batch of sentences, on the model's device, with an entry `tokens` of word ids.
    top_k : `int`, optional (default = `0`)
        How many of the likeliest words to name for each place.
    sentences : `Sequence[Sequence[str]]`, optional (default = `None`)
        The sentences' tokens as they were read. By default they are named as the vocabulary has
        them, where all words outside it have the same name.

    # Returns

    `List[SentenceScores]`
        One a sentence, in order.

    # Raises

    `ConfigurationError`
        If the model has no softmax, or `source` no word ids.
    """
    softmax = softmax_of(model)
    if "tokens" not in source:
        raise ConfigurationError(NO_WORD_IDS.format(sorted(source)))
    token_ids = source["tokens"]["tokens"]
    there = token_ids > 0
    layers = model.read(source)["lm_embeddings"]
    top_layer = layers[-1] if isinstance(layers, list) else layers
    views = []
    if top_layer.size(1):
        dim = top_layer.size(-1) // (2 if model.is_bidirectional else 1)
        for half, shift in zip(top_layer.split(dim, -1), (1, -1)):
            # What predicts a token is what was read up to its neighbour.
            neighbours = half.roll(shift, dims=1)
            present = there.roll(shift, dims=1)
            present[:, 0 if shift == 1 else -1] = False
            views.append((neighbours[there], present[there]))
    else:
        views.append((top_layer.flatten(0, 1), there.flatten()))

    weight, bias = softmax.word_weights()
    names = model.vocab.get_index_to_token_vocabulary()
    # The vocabulary numbers padding, too, but the softmax has no row for it.
    scores = score_places(weight, bias, views, token_ids[there] - 1, top_k, len(names) - 1)

    lengths = there.sum(-1).tolist()
    presence = [present for _, present in views]
    if len(views) == 2:
        presence.append(presence[0] | presence[1])
    words = [_word_scores(view, present, lengths, names) for view, present in zip(scores, presence)]
    ids = [row[:length] for row, length in zip(token_ids.tolist(), lengths)]
    unknown = oov_index(model.vocab)
    results = []
    for number, sentence_ids in enumerate(ids):
        tokens = (
            [names[index] for index in sentence_ids]
            if sentences is None
            else list(sentences[number])
        )
        outside = [index == unknown for index in sentence_ids]
        results.append(SentenceScores(tokens, outside, *(view[number] for view in words)))
    return results


def _word_scores(
    scores: PlaceScores, present: torch.Tensor, lengths: List[int], names: Dict[int, str]
) -> List[WordScores]:
    flags = present.tolist()
    log_probs = [p if f else None for p, f in zip(scores.log_probs.tolist(), flags)]
    ranks = [r if f else None for r, f in zip(scores.ranks.tolist(), flags)]
    top: List[Optional[List[Tuple[str, float]]]] = []
    if scores.top_ids.size(-1):
        top = [
            [(names[index], probability) for index, probability in zip(ids, probabilities)]
            if flag
            else None
            for ids, probabilities, flag in zip(
                scores.top_ids.tolist(), scores.top_log_probs.exp().tolist(), flags
            )
        ]
    results, begin = [], 0
    for length in lengths:
        end = begin + length
        results.append(WordScores(log_probs[begin:end], ranks[begin:end], top[begin:end]))
        begin = end
    return results


def softmax_of(model: LanguageModel) -> Any:
    """
    # Returns

    `SampledSoftmaxLoss` or `SoftmaxLoss`

    # Raises

    `ConfigurationError`
        If the model has none.
    """
    if model._softmax_loss is None:
        raise ConfigurationError(
            "This language model has no softmax any more (delete_softmax was called, as token "
            "embedders do), so it can't say how probable a word is. Load the archive that was "
            "trained, with allennlp.models.load_archive or TransformerElmo.from_archive."
        )
    return model._softmax_loss


def oov_index(vocab: Vocabulary) -> Optional[int]:
    """The id that all words outside the vocabulary share, if there is one."""
    return vocab.get_token_to_index_vocabulary().get(vocab._oov_token)
