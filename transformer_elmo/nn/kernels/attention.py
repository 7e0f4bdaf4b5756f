"""
Causal scaled dot-product attention (Vaswani et al. 2017), by the quickest way on the hardware at
hand.
"""

import functools
import inspect
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from transformer_elmo.nn.kernels.compiled import taken
from transformer_elmo.nn.kernels.dropout import Dropout

# Without dropout, attention in bfloat16 is written out on a CPU up to so many scores (64 MiB).
SCORES_IN_MEMORY = 2**25

# On an H100, PyTorch's first choice in half precision is cuDNN's attention, which makes a plan for
# every new shape on the host: 6 ms a call with batches of ever different lengths, against 0.1 ms
# for these. Flash attention's gradient works on blocks of 128 tokens, however short sentences are:
# with 32,000 tokens in sentences of some 25, a whole training step takes 65 ms with it and 57 ms
# with the other one.
SHORT = 64
_FOR_SHORT = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_FOR_LONG = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


# Where attention may take sentences one behind the other, without padding between them. It is meant
# for batches of sentences of different lengths; whether it is faster there hasn't been measured.
DEVICES_WITHOUT_PADDING = ("cuda",)


def causal_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: Dropout
) -> torch.Tensor:
    """
    `query`, `key`, `value`: shape `(batch_size, num_heads, timesteps, dim)`. `dropout`: on the
    attention probabilities. Returns the same shape. Each position has looked at itself and those
    before it.
    """
    if _better_written_out(query, dropout):
        taken("attention", "written out")
        return written_out_attention(query, key, value, dropout)
    backends: Any = nullcontext()
    if query.device.type == "cuda":
        is_short = query.size(2) <= SHORT
        taken("attention", "fused for short sentences" if is_short else "fused for long ones")
        backends = sdpa_kernel(_FOR_SHORT if is_short else _FOR_LONG)
    else:
        taken("attention", "fused")
    with backends:
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, dropout_p=dropout.p if dropout.training else 0.0
        )


def _better_written_out(query: torch.Tensor, dropout: Dropout) -> bool:
    """
    PyTorch has no fused CPU kernel with dropout, and what it does instead passes over the matrix of
    scores more often. Without dropout, its fused one takes twice as long as separate products in
    bfloat16, as long as their scores don't ask for much memory.
    """
    if query.device.type != "cpu":
        return False
    if dropout.training and dropout.p:
        return True
    num_scores = query.size(0) * query.size(1) * query.size(2) ** 2
    return query.dtype == torch.bfloat16 and num_scores <= SCORES_IN_MEMORY


def written_out_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: Dropout
) -> torch.Tensor:
    """What `causal_attention` computes, in separate steps."""
    timesteps, dim = query.shape[-2:]
    # Shape `(timesteps, timesteps)`
    future = query.new_full((timesteps, timesteps), -math.inf).triu_(1)
    scores = torch.baddbmm(
        future,
        query.flatten(0, 1),
        key.flatten(0, 1).transpose(1, 2),
        alpha=1.0 / math.sqrt(dim),
    )
    probabilities = dropout(scores.softmax(-1))
    return torch.bmm(probabilities, value.flatten(0, 1)).view_as(query)


@functools.lru_cache(maxsize=1)
def attention_of_sentences() -> Callable[..., torch.Tensor] | None:
    """PyTorch's attention without padding, made causal; `None` where PyTorch has none yet."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    # Its parameter for that has changed with PyTorch's versions.
    attention: Any = varlen_attn
    for name, value in (("window_size", (-1, 0)), ("is_causal", True)):
        if name in inspect.signature(attention).parameters:
            return functools.partial(attention, **{name: value})
    return None


def can_skip_padding(rows: torch.Tensor, num_heads: int, dropout: Dropout) -> bool:
    """
    Whether `unpadded_attention` can be used: in half precision on a GPU, without dropout and
    without gradients.

    `rows`: shape `(num_tokens, 3 * num_heads * dim)`: queries, keys and values.
    """
    return (
        rows.device.type in DEVICES_WITHOUT_PADDING
        and rows.dtype in (torch.float16, torch.bfloat16)
        and not (dropout.training and dropout.p)
        and not torch.is_grad_enabled()
        and attention_of_sentences() is not None
        and _is_right_without_padding(rows.device, rows.dtype, rows.size(-1) // (3 * num_heads))
    )


@functools.cache
def _is_right_without_padding(device: torch.device, dtype: torch.dtype, dim: int) -> bool:
    """
    Tried once, against attention written out: the kernel is new in PyTorch, and not every GPU and
    every width has it.
    """
    lengths = [3, 5]
    numbers = torch.randn(sum(lengths), 3, 2, dim, generator=torch.Generator().manual_seed(0))
    heads = numbers.to(device, dtype)
    bounds = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32).to(device)
    attention = attention_of_sentences()
    assert attention is not None
    try:
        found = attention(*heads.unbind(1), bounds, bounds, max(lengths), max(lengths))
    except (RuntimeError, TypeError, ValueError):
        return False
    expected = [
        written_out_attention(query, key, value, Dropout(0.0))[0]
        for sentence in heads.float().split(lengths)
        for query, key, value in [sentence.permute(1, 2, 0, 3).unsqueeze(1)]
    ]
    difference = found.float() - torch.cat(expected, dim=1).transpose(0, 1)
    return bool((difference.abs() < 0.05).all())


def unpadded_attention(heads: torch.Tensor, bounds: torch.Tensor, longest: int) -> torch.Tensor:
    """
    What `causal_attention` computes without dropout, for sentences one behind the other.

    `heads`: shape `(num_tokens, 3, num_heads, dim)`: queries, keys and values. `bounds`: shape
    `(num_sentences + 1,)`, 32-bit integers: where each sentence begins, and the end. `longest`: how
    many tokens the longest one has. Returns shape `(num_tokens, num_heads, dim)`.
    """
    taken("attention", "without padding")
    attention = attention_of_sentences()
    assert attention is not None
    return attention(*heads.unbind(1), bounds, bounds, longest, longest)
