"""
Causal scaled dot-product attention (Vaswani et al. 2017), by the quickest way on the hardware at
hand.
"""

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

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


def causal_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: Dropout
) -> torch.Tensor:
    """
    `query`, `key`, `value`: shape `(batch_size, num_heads, timesteps, dim)`. `dropout`: on the
    attention probabilities. Returns the same shape. Each position has looked at itself and those
    before it.
    """
    if _better_written_out(query, dropout):
        return written_out_attention(query, key, value, dropout)
    backends: Any = nullcontext()
    if query.device.type == "cuda":
        backends = sdpa_kernel(_FOR_SHORT if query.size(2) <= SHORT else _FOR_LONG)
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
