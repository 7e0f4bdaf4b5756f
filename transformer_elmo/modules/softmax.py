"""
From contextual embeddings to the negative log-likelihood of each target word.

Two losses share one exact evaluation:

* `SampledSoftmaxLoss` trains on a few thousand sampled words and evaluates exactly;
* `SoftmaxLoss` trains and evaluates exactly.

Their parameters are named and shaped as AllenNLP's, so that weights carry over in both directions.
"""

import math
from typing import Any, Dict, List, Optional, Tuple, Union

import torch
import torch.distributed as dist
from allennlp.common.checks import ConfigurationError
from allennlp.common.util import is_distributed
from overrides import overrides
from torch.autograd.function import once_differentiable

from transformer_elmo.modules.linear import product
from transformer_elmo.modules.sparse_gradients import rows_averaged_over_processes

# Logits are worked on in blocks of at most this many float32 numbers. On a CPU a block should fit
# in the cache (8 MiB), on a GPU it should keep the card busy (256 MiB).
CPU_LOGITS_IN_MEMORY = 2**21
LOGITS_IN_MEMORY = 2**26
TOKENS_PER_BLOCK = 2048


def _logits_in_memory(device: torch.device) -> int:
    return CPU_LOGITS_IN_MEMORY if device.type == "cpu" else LOGITS_IN_MEMORY


def _words_per_block(num_tokens: int, device: torch.device) -> int:
    return max(1, _logits_in_memory(device) // max(1, num_tokens))


def _product_dtype(embeddings: torch.Tensor) -> torch.dtype:
    """Autograd functions don't take part in autocast, so what it would do is asked for."""
    device_type = embeddings.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return embeddings.dtype


def _logits(embeddings: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """
    Float32, shape `(num_tokens, num_words)`, with the product itself in the embeddings' precision.
    """
    if embeddings.dtype == torch.float32:
        return product(embeddings, weight.float(), bias)
    return torch.mm(embeddings, weight.to(embeddings.dtype).t()).float().add_(bias)


class _ExactTokenLoss(torch.autograd.Function):
    """
    `logsumexp(logits) - logits[target]` without ever holding the whole matrix of logits: the
    forward pass streams over blocks of words, the backward pass computes each block again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        targets: torch.Tensor,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        with torch.autocast(embeddings.device.type, enabled=False):
            log_normalizers = _streamed_logsumexp(embeddings.to(dtype), weight, bias)
            target_logits = (embeddings * weight[targets]).sum(-1, dtype=torch.float32)
            target_logits = target_logits + bias[targets]
        ctx.save_for_backward(embeddings, weight, bias, targets, log_normalizers)
        ctx.dtype = dtype
        return log_normalizers - target_logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Tuple[Optional[torch.Tensor], ...]:
        embeddings, weight, bias, targets, log_normalizers = ctx.saved_tensors
        needs_embeddings, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad = grad.float().unsqueeze(-1)
        cast = embeddings.to(ctx.dtype)
        # The gradient of a logit is its probability, less one for the target: first the former.
        grad_embeddings = torch.zeros_like(cast) if needs_embeddings else None
        grad_weight = torch.empty_like(weight) if needs_weight else None
        grad_bias = torch.empty_like(bias) if needs_bias else None
        block = _words_per_block(embeddings.size(0), embeddings.device)
        with torch.autocast(embeddings.device.type, enabled=False):
            scaled = (cast * grad).to(ctx.dtype)
            for start in range(0, weight.size(0), block):
                words = weight[start : start + block].to(ctx.dtype)
                logits = _logits(cast, words, bias[start : start + block])
                probabilities = logits.sub_(log_normalizers.unsqueeze(-1)).exp_()
                if grad_bias is not None:
                    grad_bias[start : start + block] = torch.mv(probabilities.t(), grad.squeeze(-1))
                probabilities = probabilities.to(ctx.dtype)
                if grad_embeddings is not None:
                    grad_embeddings.addmm_(probabilities, words)
                if grad_weight is not None:
                    grad_weight[start : start + block] = torch.mm(probabilities.t(), scaled)
            if grad_embeddings is not None:
                grad_embeddings = (grad_embeddings - weight[targets]).mul_(grad)
                grad_embeddings = grad_embeddings.to(embeddings.dtype)
            if grad_weight is not None:
                of_targets = (embeddings * grad).to(grad_weight.dtype)
                grad_weight.index_add_(0, targets, of_targets, alpha=-1)
            if grad_bias is not None:
                grad_bias.index_add_(0, targets, grad.squeeze(-1).to(grad_bias.dtype), alpha=-1)
        return grad_embeddings, grad_weight, grad_bias, None, None


def _streamed_logsumexp(
    embeddings: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Shape `(num_tokens,)`, float32: the log of each token's partition function."""
    num_tokens, num_words = embeddings.size(0), weight.size(0)
    block = _words_per_block(num_tokens, embeddings.device)
    total = embeddings.new_full((num_tokens,), -math.inf, dtype=torch.float32)
    for start in range(0, num_words, block):
        words = slice(start, start + block)
        logits = _logits(embeddings, weight[words], bias[words])
        largest = logits.amax(-1)
        sums = logits.sub_(largest.unsqueeze(-1)).exp_().sum(-1)
        # Before the next block's take their place in memory.
        del logits
        total = torch.logaddexp(total, sums.log_().add_(largest))
    return total


class _SampledTokenLoss(torch.autograd.Function):
    """
    The loss of each target against the sampled words, with one matrix of logits that turns into
    probabilities in place, is kept for the backward pass, and is never copied. The gradients of the
    words' weights have one row for each word that was drawn or a target, already summed, and under
    distributed training already averaged over processes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        targets: torch.Tensor,
        target_log_counts: torch.Tensor,
        sampled_ids: torch.Tensor,
        sampled_log_counts: torch.Tensor,
        dtype: torch.dtype,
        sparse: bool,
    ) -> torch.Tensor:
        num_tokens, num_samples = targets.numel(), sampled_ids.numel()
        with torch.autocast(embeddings.device.type, enabled=False):
            flat_bias = bias.view(-1)
            target_weight = weight[targets]
            target_logits = (embeddings * target_weight).sum(-1, dtype=torch.float32)
            target_logits = target_logits + flat_bias[targets] - target_log_counts
            sampled_weight = weight[sampled_ids].to(dtype)
            sampled_bias = flat_bias[sampled_ids].float() - sampled_log_counts
            cast = embeddings.to(dtype)

            # A sample that happens to be the target would count it twice. Samples are distinct
            # and sorted, so each token has at most one such column, found by bisection.
            column = torch.searchsorted(sampled_ids, targets).clamp_(max=num_samples - 1)
            hit = sampled_ids[column] == targets
            column = column.unsqueeze(-1)
            penalty = target_logits.new_zeros(num_tokens).masked_fill_(hit, -math.inf).unsqueeze(-1)

            # exp(logit - the token's largest): probabilities but for one factor a token.
            unscaled = product(cast, sampled_weight)
            log_normalizers = torch.empty_like(target_logits)
            scale = torch.empty_like(target_logits)
            block = max(1, _logits_in_memory(embeddings.device) // num_samples)
            # Where half-precision logits become float32 for a while; one place for all blocks.
            buffer = None
            if dtype != torch.float32:
                buffer = target_logits.new_empty(min(block, num_tokens), num_samples)
            for start in range(0, num_tokens, block):
                here = slice(start, start + block)
                logits = unscaled[here]
                if buffer is not None:
                    logits = buffer[: logits.size(0)].copy_(logits)
                logits.add_(sampled_bias)
                logits.scatter_add_(1, column[here], penalty[here])
                largest = torch.maximum(logits.amax(-1), target_logits[here])
                sums = logits.sub_(largest.unsqueeze(-1)).exp_().sum(-1)
                normalizers = (target_logits[here] - largest).exp_().add_(sums).log_().add_(largest)
                log_normalizers[here] = normalizers
                scale[here] = torch.exp(largest - normalizers)
                if buffer is not None:
                    unscaled[here] = logits
        # The targets' probabilities less one, without cancellation.
        target_errors = torch.expm1(target_logits - log_normalizers)
        ctx.save_for_backward(
            embeddings,
            targets,
            sampled_ids,
            sampled_weight,
            target_weight,
            unscaled,
            scale,
            target_errors,
        )
        ctx.shapes, ctx.sparse = (weight.shape, bias.shape), sparse
        return log_normalizers - target_logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Tuple[Optional[torch.Tensor], ...]:
        (
            embeddings,
            targets,
            sampled_ids,
            sampled_weight,
            target_weight,
            unscaled,
            scale,
            target_errors,
        ) = ctx.saved_tensors
        dtype, num_tokens = unscaled.dtype, targets.numel()
        needs_embeddings, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad = grad.float()
        of_targets = (grad * target_errors).unsqueeze(-1)
        of_samples = (grad * scale).unsqueeze(-1)
        grad_embeddings = grad_weight = grad_bias = None
        with torch.autocast(embeddings.device.type, enabled=False):
            if needs_embeddings:
                grad_embeddings = product(unscaled, sampled_weight.t()) * of_samples
                grad_embeddings.addcmul_(target_weight, of_targets)
                grad_embeddings = grad_embeddings.to(embeddings.dtype)
            if needs_weight or needs_bias:
                word_ids, row = torch.unique(torch.cat([targets, sampled_ids]), return_inverse=True)
                # The bias is one more column of the weights, with a constant one as its input.
                values = of_targets.new_zeros(word_ids.numel(), embeddings.size(-1) + 1)
                weights, biases = values[:, :-1], values[:, -1]
                # Samples are distinct, targets aren't.
                scaled = (embeddings * of_samples).to(dtype)
                weights[row[num_tokens:]] = torch.mm(unscaled.t(), scaled).float()
                biases[row[num_tokens:]] = torch.mv(
                    unscaled.t(), of_samples.squeeze(-1).to(dtype)
                ).float()
                weights.index_add_(0, row[:num_tokens], (embeddings * of_targets).float())
                biases.index_add_(0, row[:num_tokens], of_targets.squeeze(-1))
                if ctx.sparse and is_distributed():
                    word_ids, values = rows_averaged_over_processes(word_ids, values)
                    weights, biases = values[:, :-1], values[:, -1]
                grad_weight = _gradient_of_rows(word_ids, weights, ctx.shapes[0], ctx.sparse)
                grad_bias = _gradient_of_rows(word_ids, biases, ctx.shapes[1], ctx.sparse)
        return grad_embeddings, grad_weight, grad_bias, None, None, None, None, None, None


def _gradient_of_rows(
    word_ids: torch.Tensor, values: torch.Tensor, shape: torch.Size, sparse: bool
) -> torch.Tensor:
    values = values.reshape(word_ids.numel(), *shape[1:])
    if sparse:
        return torch.sparse_coo_tensor(
            word_ids.unsqueeze(0), values, shape, is_coalesced=True, check_invariants=False
        )
    return values.new_zeros(shape).index_copy_(0, word_ids, values)


class _WordClassifier(torch.nn.Module):
    """What both losses share: a weight row and a bias for each word, the exact loss over them."""

    # Kept for code written against AllenNLP's losses, which ask for it.
    tie_embeddings = False

    def word_weights(self) -> Tuple[torch.Tensor, torch.Tensor]:
        """
        # Returns

        `Tuple[torch.Tensor, torch.Tensor]`
            The weights, shape `(num_words, embedding_dim)`, and the biases, shape `(num_words,)`.
        """
        raise NotImplementedError

    def exact_token_losses(self, embeddings: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """
        The exact negative log-likelihood of each target, over the whole vocabulary, in bounded
        memory: beyond weights and inputs it takes a few times `LOGITS_IN_MEMORY` numbers,
        whatever the batch and the vocabulary.

        # Parameters

        embeddings : `torch.Tensor`
            Shape `(num_tokens, embedding_dim)`.
        targets : `torch.Tensor`
            Shape `(num_tokens,)`; word ids from 0, without the vocabulary's padding entry.

        # Returns

        `torch.Tensor`
            Shape `(num_tokens,)`, float32, in nats.
        """
        weight, bias = self.word_weights()
        targets = targets.long()
        # Blocks of tokens as well as of words, so that a huge batch still uses wide blocks of
        # words.
        dtype = _product_dtype(embeddings)
        losses = [
            _ExactTokenLoss.apply(rows, weight, bias, row_targets, dtype)
            for rows, row_targets in zip(
                embeddings.split(TOKENS_PER_BLOCK), targets.split(TOKENS_PER_BLOCK)
            )
        ]
        return torch.cat(losses) if losses else embeddings.new_zeros(0, dtype=torch.float32)

    def token_losses(self, embeddings: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """
        The loss of each token: exact, unless a subclass trains on something cheaper.

        # Parameters

        embeddings : `torch.Tensor`
            Shape `(num_tokens, embedding_dim)`.
        targets : `torch.Tensor`
            Shape `(num_tokens,)`; word ids from 0, without the vocabulary's padding entry.

        # Returns

        `torch.Tensor`
            Shape `(num_tokens,)`, float32, in nats.
        """
        return self.exact_token_losses(embeddings, targets)

    @overrides(check_signature=False)
    def forward(self, embeddings: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The sum of `token_losses`, a scalar, as AllenNLP's losses return it."""
        return self.token_losses(embeddings, targets).sum()


class SampledSoftmaxLoss(_WordClassifier):
    """
    Trains against a sample of the vocabulary, evaluates against all of it.

    Words are drawn without repeats, with probabilities that fall as their rank rises (log-uniform:
    `P(id) = log((id + 2) / (id + 1)) / log(num_words + 1)`, for a vocabulary sorted by falling
    frequency), as TensorFlow's `log_uniform_candidate_sampler` and AllenNLP's loss do.

    # Parameters

    num_words : `int`, required.
        Size of the vocabulary, without its padding entry.
    embedding_dim : `int`, required.
    num_samples : `int`, required.
        How many distinct words to draw for a training step. Must be less than `num_words`.
    sparse : `bool`, optional (default = `False`)
        Weights as `torch.nn.Embedding`s with sparse gradients: a step then costs nothing for the
        words that were neither drawn nor targets. Needs an optimizer that knows sparse gradients.

    # Raises

    `ConfigurationError`
        If `num_samples` isn't less than `num_words`.
    """

    def __init__(
        self, num_words: int, embedding_dim: int, num_samples: int, sparse: bool = False
    ) -> None:
        super().__init__()
        if not 0 < num_samples < num_words:
            raise ConfigurationError(
                "num_samples must be positive and less than the number of words in the vocabulary: "
                f"got num_samples = {num_samples} and {num_words} words. Lower model.num_samples, "
                "or leave it out to train on the full softmax."
            )
        # In place: with 800,000 words, a second copy would be the peak of a whole run's memory.
        weight = torch.randn(num_words, embedding_dim).div_(math.sqrt(embedding_dim))
        self.softmax_w: Union[torch.nn.Embedding, torch.nn.Parameter]
        self.softmax_b: Union[torch.nn.Embedding, torch.nn.Parameter]
        if sparse:
            self.softmax_w = torch.nn.Embedding.from_pretrained(weight, freeze=False, sparse=True)
            self.softmax_b = torch.nn.Embedding.from_pretrained(
                torch.zeros(num_words, 1), freeze=False, sparse=True
            )
        else:
            self.softmax_w = torch.nn.Parameter(weight)
            self.softmax_b = torch.nn.Parameter(torch.zeros(num_words))
        self.sparse = sparse
        self.num_samples = num_samples
        self._probabilities: Optional[torch.Tensor] = None
        self._same_everywhere = False

    def _parameters_of_words(self) -> Tuple[torch.Tensor, torch.Tensor]:
        if isinstance(self.softmax_w, torch.nn.Embedding):
            assert isinstance(self.softmax_b, torch.nn.Embedding)
            return self.softmax_w.weight, self.softmax_b.weight
        assert isinstance(self.softmax_b, torch.nn.Parameter)
        return self.softmax_w, self.softmax_b

    @overrides
    def word_weights(self) -> Tuple[torch.Tensor, torch.Tensor]:
        weight, bias = self._parameters_of_words()
        return weight, bias.view(-1)

    @overrides
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
        if self.sparse and is_distributed() and not self._same_everywhere:
            # DistributedDataParallel leaves these to us, so we begin alike as it does.
            for parameter in (weight, bias):
                dist.broadcast(parameter.data, src=0)
            self._same_everywhere = True
        sampled_ids, log_threshold = self.draw(embeddings.device)
        return _SampledTokenLoss.apply(
            embeddings,
            weight,
            bias,
            targets,
            self.log_expected_count(targets, log_threshold),
            sampled_ids,
            self.log_expected_count(sampled_ids, log_threshold),
            _product_dtype(embeddings),
            self.sparse,
        )

    @torch.no_grad()
    def draw(self, device: torch.device) -> Tuple[torch.Tensor, torch.Tensor]:
        """
        Draws `num_samples` distinct words on `device`, without waiting for it.

        Each word gets an exponential arrival time with its probability as the rate, and the first
        arrivals win: that has the distribution of drawing one word after the other
        with replacement and keeping the first `num_samples` distinct ones. The arrival time of
        the first loser plays the part of AllenNLP's number of tries.

        # Returns

        `Tuple[torch.Tensor, torch.Tensor]`
            The words' ids, sorted, shape `(num_samples,)`; and the log of the threshold, a scalar.
        """
        probabilities = self._probabilities_of_all(device)
        arrivals = torch.empty_like(probabilities).exponential_().div_(probabilities)
        times, order = torch.topk(arrivals, self.num_samples + 1, largest=False, sorted=True)
        return order[:-1].sort().values, times[-1].log()

    def _probabilities_of_all(self, device: torch.device) -> torch.Tensor:
        num_words = self.word_weights()[0].size(0)
        kept = self._probabilities
        if kept is None or kept.device != device or kept.numel() != num_words:
            kept = self._probabilities = self.probability(torch.arange(num_words, device=device))
        return kept

    def probability(self, word_ids: torch.Tensor) -> torch.Tensor:
        """
        The chance that one draw gives each word, float32. `log1p(1 / (id + 1))` is exact where
        `log((id + 2) / (id + 1))` loses several per cent at ids near 800,000.
        """
        num_words = self.word_weights()[0].size(0)
        return torch.log1p(1.0 / (word_ids.double() + 1.0)).float() / math.log(num_words + 1)

    def log_expected_count(
        self, word_ids: torch.Tensor, log_threshold: torch.Tensor
    ) -> torch.Tensor:
        """
        The log of the chance that each word is among the sampled ones, given the threshold:
        `log(1 - exp(-threshold * P(id)))`. With the first loser's arrival time as the threshold,
        one over this chance weights the samples without bias (Duffield, Lund and Thorup 2007,
        "Priority sampling for estimation of arbitrary subset sums", for exponential ranks).
        """
        return torch.log(-torch.expm1(-log_threshold.exp() * self.probability(word_ids)))

    @overrides(check_signature=False)
    def _load_from_state_dict(
        self, state_dict: Dict[str, torch.Tensor], prefix: str, *args: Any
    ) -> None:
        """Accepts the sparse and the dense layout, and that of `SoftmaxLoss`."""
        w, b = prefix + "softmax_w", prefix + "softmax_b"
        weight, bias = _taken_out(state_dict, w), _taken_out(state_dict, b)
        suffix = ".weight" if self.sparse else ""
        own_weight, own_bias = self.word_weights()
        if weight is not None:
            state_dict[w + suffix] = _transposed_to_fit(weight, own_weight.shape)
        if bias is not None:
            if bias.numel() == own_bias.numel():
                bias = bias.reshape((-1, 1) if self.sparse else (-1,))
            state_dict[b + suffix] = bias
        super()._load_from_state_dict(state_dict, prefix, *args)


class SoftmaxLoss(_WordClassifier):
    """
    The full softmax, in training and in evaluation.

    # Parameters

    num_words : `int`, required.
        Size of the vocabulary, without its padding entry.
    embedding_dim : `int`, required.
    """

    def __init__(self, num_words: int, embedding_dim: int) -> None:
        super().__init__()
        self.softmax_w = torch.nn.Parameter(
            torch.randn(embedding_dim, num_words).div_(math.sqrt(embedding_dim))
        )
        self.softmax_b = torch.nn.Parameter(torch.zeros(num_words))

    @overrides
    def word_weights(self) -> Tuple[torch.Tensor, torch.Tensor]:
        return self.softmax_w.t(), self.softmax_b

    @overrides(check_signature=False)
    def _load_from_state_dict(
        self, state_dict: Dict[str, torch.Tensor], prefix: str, *args: Any
    ) -> None:
        """Accepts the layouts of `SampledSoftmaxLoss` as well."""
        w, b = prefix + "softmax_w", prefix + "softmax_b"
        weight, bias = _taken_out(state_dict, w), _taken_out(state_dict, b)
        if weight is not None:
            state_dict[w] = _transposed_to_fit(weight, self.softmax_w.shape)
        if bias is not None:
            state_dict[b] = bias.reshape(-1)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _taken_out(state_dict: Dict[str, torch.Tensor], name: str) -> Optional[torch.Tensor]:
    """A parameter under its name in the sparse layout or in the dense one."""
    return state_dict.pop(name + ".weight", state_dict.pop(name, None))


def _transposed_to_fit(weight: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The full softmax keeps its weights the other way round from the sampled one."""
    if weight.shape != shape and weight.t().shape == shape:
        return weight.t()
    return weight


def concatenated_token_losses(
    softmax: _WordClassifier, directions: List[Tuple[torch.Tensor, torch.Tensor]]
) -> List[torch.Tensor]:
    """
    The token losses of several directions at once: one draw and one product serve them all.

    # Parameters

    softmax : `SampledSoftmaxLoss` or `SoftmaxLoss`
    directions : `List[Tuple[torch.Tensor, torch.Tensor]]`
        Embeddings, shape `(num_tokens, embedding_dim)`, and targets, shape `(num_tokens,)`.

    # Returns

    `List[torch.Tensor]`
        Shapes `(num_tokens,)`, float32, in the order given.
    """
    embeddings = torch.cat([rows for rows, _ in directions])
    targets = torch.cat([ids for _, ids in directions])
    losses = softmax.token_losses(embeddings, targets)
    return list(losses.split([ids.numel() for _, ids in directions]))
