"""
The negative log-likelihood of each token, exact over a whole vocabulary or against sampled words,
without a matrix of logits that outgrows the memory.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from transformer_elmo.nn.kernels.linear import onednn_takes, product
from transformer_elmo.nn.kernels.sparse_gradients import (
    rows_averaged_over_processes,
    several_processes,
)
from transformer_elmo.nn.kernels.weight_casts import products_dtype

# Logits are worked on in blocks of at most this many float32 numbers. On a CPU a block should fit
# in the cache (8 MiB), on a GPU it should keep the card busy (256 MiB).
CPU_LOGITS_IN_MEMORY = 2**21
GPU_LOGITS_IN_MEMORY = 2**26
TOKENS_PER_BLOCK = 2048

_compiles: ContextVar[bool] = ContextVar("compiles", default=False)


@contextmanager
def compiled_softmax() -> Iterator[None]:
    """Within the block, `torch.compile` makes the exact softmax read half-precision logits once."""
    token = _compiles.set(True)
    try:
        yield
    finally:
        _compiles.reset(token)


def logits_in_memory(device: torch.device) -> int:
    """How many float32 logits a block may have on a device."""
    return CPU_LOGITS_IN_MEMORY if device.type == "cpu" else GPU_LOGITS_IN_MEMORY


def _blocks_of_words(
    embeddings: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Weights, in the embeddings' type, and biases of as many words as a block has."""
    block = max(1, logits_in_memory(embeddings.device) // max(1, embeddings.size(0)))
    for words, of_words in zip(weight.split(block), bias.split(block)):
        yield words.to(embeddings.dtype), of_words.float()


def _logits(embeddings: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Of a block of words, shape `(num_tokens, num_words)`, float32."""
    if embeddings.dtype == torch.float32:
        return product(embeddings, weight, bias)
    return torch.mm(embeddings, weight.t()).float().add_(bias)


def blocks_of_logits(
    embeddings: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> Iterator[tuple[int, torch.Tensor]]:
    """
    All logits, block by block of words.

    `embeddings`: shape `(num_tokens, embedding_dim)`, in the precision of the product. `weight`:
    shape `(num_words, embedding_dim)`. `bias`: shape `(num_words,)`. Returns the number of a
    block's first word, and its logits, shape `(num_tokens, words of the block)`, float32.
    """
    start = 0
    for words, of_words in _blocks_of_words(embeddings, weight, bias):
        yield start, _logits(embeddings, words, of_words)
        start += words.size(0)


def exact_token_losses(
    embeddings: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """
    `logsumexp(logits) - logits[target]` over all words, in bounded memory: beyond weights and
    inputs a few blocks of logits, whatever the batch and the vocabulary.

    `embeddings`: shape `(num_tokens, embedding_dim)`. `weight`: shape `(num_words, embedding_dim)`.
    `bias`: shape `(num_words,)`. `targets`: shape `(num_tokens,)`: rows of `weight`. Returns shape
    `(num_tokens,)`, float32, in nats.
    """
    # Blocks of tokens as well as of words, so that a huge batch still has wide blocks of words.
    blocks = zip(embeddings.split(TOKENS_PER_BLOCK), targets.split(TOKENS_PER_BLOCK))
    losses = [_ExactTokenLoss.apply(rows, weight, bias, of_rows) for rows, of_rows in blocks]
    return torch.cat(losses)


def sampled_token_losses(
    embeddings: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    targets: torch.Tensor,
    sampled_ids: torch.Tensor,
    log_counts: torch.Tensor,
    sparse: bool,
) -> torch.Tensor:
    """
    The loss of each target against sampled words (Jean et al. 2015): each logit less the log of its
    word's expected count among the samples.

    `embeddings`: shape `(num_tokens, embedding_dim)`. `weight`: shape `(num_words, embedding_dim)`.
    `bias`: shape `(num_words,)` or `(num_words, 1)`. `targets`: shape `(num_tokens,)`: rows of
    `weight`. `sampled_ids`: shape `(num_samples,)`: distinct and sorted. `log_counts`: shape
    `(num_tokens + num_samples,)`: of the targets and the samples. `sparse`: whether the gradients
    of `weight` and `bias` are sparse. Returns shape `(num_tokens,)`, float32, in nats.
    """
    return _SampledTokenLoss.apply(
        sparse, embeddings, weight, bias, targets, sampled_ids, log_counts
    )


class _ExactTokenLoss(torch.autograd.Function):
    """
    `logsumexp(logits) - logits[target]` without ever holding the whole matrix of logits: the
    forward pass streams over blocks of words, the backward pass computes each block again.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> torch.Tensor:
        embeddings, weight, bias, targets = inputs
        ctx.dtype = products_dtype(embeddings)
        with torch.autocast(embeddings.device.type, enabled=False):
            log_normalizers = _streamed_logsumexp(embeddings.to(ctx.dtype), weight, bias)
            target_logits = (embeddings * weight[targets]).sum(-1, dtype=torch.float32)
            target_logits = target_logits + bias[targets]
        ctx.save_for_backward(*inputs, log_normalizers)
        return log_normalizers - target_logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        embeddings, weight, bias, targets, log_normalizers = ctx.saved_tensors
        needs_embeddings, *needs_words = ctx.needs_input_grad[:3]
        grad = grad.float().unsqueeze(-1)
        cast = embeddings.to(ctx.dtype)
        # The gradient of a logit is its probability, less one for the target: first the former.
        grad_embeddings = torch.zeros_like(cast) if needs_embeddings else None
        grad_weight = torch.empty_like(weight) if any(needs_words) else None
        grad_bias = torch.empty_like(bias)
        with torch.autocast(embeddings.device.type, enabled=False):
            scaled = (cast * grad).to(ctx.dtype)
            start = 0
            for words, of_words in _blocks_of_words(cast, weight, bias):
                logits = _logits(cast, words, of_words)
                probabilities = logits.sub_(log_normalizers.unsqueeze(-1)).exp_()
                here = slice(start, start + words.size(0))
                grad_bias[here] = torch.mv(probabilities.t(), grad.squeeze(-1))
                probabilities = probabilities.to(ctx.dtype)
                if grad_embeddings is not None:
                    grad_embeddings.add_(product(probabilities, words.t()))
                if grad_weight is not None:
                    # In place, and as it lies in memory: a copy the other way round takes longer.
                    grad_words = grad_weight[here]
                    if grad_words.dtype == ctx.dtype and not onednn_takes(scaled):
                        torch.mm(probabilities.t(), scaled, out=grad_words)
                    elif grad_words.stride(0) == 1:
                        grad_words.t().copy_(product(scaled.t(), probabilities.t()))
                    else:
                        grad_words.copy_(product(probabilities.t(), scaled.t()))
                start = here.stop
            if grad_embeddings is not None:
                grad_embeddings = (grad_embeddings - weight[targets]).mul_(grad)
                grad_embeddings = grad_embeddings.to(embeddings.dtype)
            if grad_weight is not None:
                of_targets = (embeddings * grad).to(grad_weight.dtype)
                grad_weight.index_add_(0, targets, of_targets, alpha=-1)
            grad_bias.index_add_(0, targets, grad.squeeze(-1).to(grad_bias.dtype), alpha=-1)
        return grad_embeddings, grad_weight, grad_bias, None


def _streamed_logsumexp(
    embeddings: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Shape `(num_tokens,)`, float32: the log of each token's partition function."""
    total = embeddings.new_full((embeddings.size(0),), -math.inf, dtype=torch.float32)
    if _compiles.get():
        for words, of_words in _blocks_of_words(embeddings, weight, bias):
            logits = product(embeddings, words)
            total = torch.logaddexp(total, _compiled_logsumexp()(logits, of_words))
        return total
    for _, logits in blocks_of_logits(embeddings, weight, bias):
        largest = logits.amax(-1)
        sums = logits.sub_(largest.unsqueeze(-1)).exp_().sum(-1)
        # Before the next block's take their place in memory.
        del logits
        total = torch.logaddexp(total, sums.log_().add_(largest))
    return total


@functools.cache
def _compiled_logsumexp() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    def logsumexp(logits: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """From shapes `(num_tokens, num_words)` and `(num_words,)` to `(num_tokens,)`, float32."""
        return torch.logsumexp(logits.float() + bias, -1)

    # Batches have ever new numbers of tokens, and so have blocks of words.
    return torch.compile(logsumexp, dynamic=True)


class _SampledTokenLoss(torch.autograd.Function):
    """
    The loss of each target against the sampled words, with one matrix of logits that turns into
    probabilities in place, is kept for the backward pass, and is never copied. The gradients of the
    words' weights have one row for each word that was drawn or a target, already summed, and under
    distributed training already averaged over processes.
    """

    @staticmethod
    def forward(ctx: Any, sparse: bool, *inputs: torch.Tensor) -> torch.Tensor:
        embeddings, weight, bias, targets, sampled_ids, log_counts = inputs
        dtype = products_dtype(embeddings)
        of_targets, of_samples = log_counts.split([targets.numel(), sampled_ids.numel()])
        with torch.autocast(embeddings.device.type, enabled=False):
            flat_bias = bias.view(-1)
            target_weight = weight[targets]
            target_logits = (embeddings * target_weight).sum(-1, dtype=torch.float32)
            target_logits = target_logits + flat_bias[targets] - of_targets
            sampled_weight = weight[sampled_ids].to(dtype)
            sampled_bias = flat_bias[sampled_ids].float() - of_samples
            logits = product(embeddings.to(dtype), sampled_weight)
            unscaled, log_normalizers, scale = _probabilities(
                logits, sampled_bias, sampled_ids, targets, target_logits
            )
        # The targets' probabilities less one, without cancellation.
        target_errors = torch.expm1(target_logits - log_normalizers)
        words = (targets, sampled_ids, target_weight, sampled_weight)
        ctx.save_for_backward(embeddings, *words, unscaled, scale, target_errors)
        ctx.shapes, ctx.sparse = (weight.shape, bias.shape), sparse
        return log_normalizers - target_logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        embeddings, *words, unscaled, scale, target_errors = ctx.saved_tensors
        targets, sampled_ids, target_weight, sampled_weight = words
        dtype = unscaled.dtype
        _, needs_embeddings, *needs_words = ctx.needs_input_grad[:4]
        grad = grad.float()
        of_targets = (grad * target_errors).unsqueeze(-1)
        of_samples = (grad * scale).unsqueeze(-1)
        grad_embeddings = grad_weight = grad_bias = None
        with torch.autocast(embeddings.device.type, enabled=False):
            if needs_embeddings:
                grad_embeddings = product(unscaled, sampled_weight.t()) * of_samples
                grad_embeddings.addcmul_(target_weight, of_targets)
                grad_embeddings = grad_embeddings.to(embeddings.dtype)
            if any(needs_words):
                # The bias is one more column of the weights, with a constant one as its input.
                scaled = (embeddings * of_samples).to(dtype)
                sums = torch.mv(unscaled.t(), of_samples.squeeze(-1).to(dtype)).unsqueeze(-1)
                # oneDNN copies what comes first: here the smaller one.
                sampled = torch.cat([product(scaled.t(), unscaled.t()).t(), sums], -1).float()
                target = torch.cat([(embeddings * of_targets).float(), of_targets], -1)
                rows = _gradient_rows(targets, target, sampled_ids, sampled, ctx.sparse)
                grad_weight = _gradient_of_rows(*rows, slice(0, -1), ctx.shapes[0], ctx.sparse)
                grad_bias = _gradient_of_rows(*rows, slice(-1, None), ctx.shapes[1], ctx.sparse)
        return None, grad_embeddings, grad_weight, grad_bias, None, None, None


def _probabilities(
    logits: torch.Tensor,
    bias: torch.Tensor,
    sampled_ids: torch.Tensor,
    targets: torch.Tensor,
    target_logits: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    `logits`: shape `(num_tokens, num_samples)`, without the bias. Probabilities take their place.
    `bias`: shape `(num_samples,)`, float32. `target_logits`: shape `(num_tokens,)`, float32.
    Returns the exponentials of the logits less the token's largest, 0 for a sample that is the
    target; and of shape `(num_tokens,)` the logs of the normalizers, the target's own part
    included, and the factors that make the exponentials probabilities.
    """
    num_tokens, num_samples = logits.shape
    # A sample that happens to be the target would count it twice. Samples are distinct and sorted,
    # so each token has at most one such column, found by bisection.
    column = torch.searchsorted(sampled_ids, targets).clamp_(max=num_samples - 1).unsqueeze(-1)
    hit = sampled_ids[column] == targets.unsqueeze(-1)
    penalty = torch.zeros_like(hit, dtype=torch.float32).masked_fill_(hit, -math.inf)
    log_normalizers, scale = torch.empty_like(target_logits), torch.empty_like(target_logits)
    block = max(1, logits_in_memory(logits.device) // num_samples)
    # Where half-precision logits become float32 for a while; one place for all blocks.
    buffer = None
    if logits.dtype != torch.float32:
        buffer = target_logits.new_empty(min(block, num_tokens), num_samples)
    for start in range(0, num_tokens, block):
        here = slice(start, start + block)
        part = logits[here]
        if buffer is not None:
            part = buffer[: part.size(0)].copy_(part)
        part.add_(bias)
        part.scatter_add_(1, column[here], penalty[here])
        largest = torch.maximum(part.amax(-1), target_logits[here])
        sums = part.sub_(largest.unsqueeze(-1)).exp_().sum(-1)
        normalizers = (target_logits[here] - largest).exp_().add_(sums).log_().add_(largest)
        log_normalizers[here] = normalizers
        scale[here] = torch.exp(largest - normalizers)
        if buffer is not None:
            logits[here] = part
    return logits, log_normalizers, scale


def _gradient_rows(
    targets: torch.Tensor,
    target: torch.Tensor,
    sampled_ids: torch.Tensor,
    sampled: torch.Tensor,
    sparse: bool,
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """
    Which words have a gradient, their gradients, and whether each word comes once. Words that are
    targets more than once are added up here on a CPU, where that halves what follows. Elsewhere the
    host would have to wait for their number, and whoever uses the gradient does it.
    """
    ids = torch.cat([targets, sampled_ids])
    if ids.device.type != "cpu" and not (sparse and several_processes()):
        return ids, torch.cat([target, sampled]), False
    num_tokens = targets.numel()
    word_ids, row = torch.unique(ids, return_inverse=True)
    values = target.new_zeros(word_ids.numel(), target.size(-1))
    # Samples are distinct, targets aren't.
    values[row[num_tokens:]] = sampled
    values.index_add_(0, row[:num_tokens], target)
    if sparse and several_processes():
        word_ids, values = rows_averaged_over_processes(word_ids, values)
    return word_ids, values, True


def _gradient_of_rows(
    word_ids: torch.Tensor,
    values: torch.Tensor,
    distinct: bool,
    columns: slice,
    shape: torch.Size,
    sparse: bool,
) -> torch.Tensor:
    values = values[:, columns].reshape(word_ids.numel(), *shape[1:])
    if sparse:
        return torch.sparse_coo_tensor(
            word_ids.unsqueeze(0), values, shape, is_coalesced=distinct, check_invariants=False
        )
    return values.new_zeros(shape).index_add_(0, word_ids, values)
