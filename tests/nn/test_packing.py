"""Where tokens stand, against what a mask says by itself, a sentence at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.nn.kernels.comparing import MANY, seeds
from transformer_elmo.nn.batch import PackedBatch

DIM = 3


@MANY
@given(seeds, st.integers(0, 6), st.integers(0, 9), st.sampled_from([0.0, 0.5, 0.97, 1.0]))
def test_tokens_come_and_go(seed, batch_size, timesteps, share):
    """With much padding, and with so little that it stays."""
    torch.manual_seed(seed)
    mask = torch.rand(batch_size, timesteps) < share
    packing = PackedBatch(mask)
    padded = torch.randn(*mask.shape, DIM, requires_grad=True)
    tokens = packing.pack(padded)
    assert torch.equal(tokens, padded[mask])
    for order in (packing.forward, packing.backward):
        rows = order.rows(tokens)
        assert rows.shape == (mask.numel() if order.padded else mask.sum(), DIM)
        batch = order.batch_of_rows(rows).view(*mask.shape, DIM)
        assert torch.equal(batch[mask], tokens)
        numbers = torch.randperm(tokens.size(0))[: tokens.size(0) // 2]
        assert torch.equal(order.tokens_of_rows(rows, numbers), tokens[numbers])

    both = packing.unpack(
        packing.forward.rows(tokens), 2 * packing.backward.rows(tokens), torch.float64
    )
    assert both.dtype == torch.float64
    assert torch.equal(both[mask].float(), torch.cat([tokens, 2 * tokens], -1))
    assert not both[~mask].any()
    weights = torch.randn(*mask.shape, 2 * DIM, dtype=torch.float64)
    (both * weights).sum().backward()
    wanted = (weights[..., :DIM] + 2 * weights[..., DIM:]).float() * mask.unsqueeze(-1)
    assert padded.grad is not None and torch.allclose(padded.grad, wanted, atol=1e-6)


@MANY
@given(st.lists(st.integers(0, 7), max_size=5), st.integers(0, 2))
def test_neighbours_and_lengths_that_the_host_knows(lengths, spare):
    """Tokens with another one behind them, and with one before them, in their sentence."""
    timesteps = max(lengths, default=0) + spare
    mask = torch.arange(timesteps) < torch.tensor(lengths, dtype=torch.long)[:, None]
    begins = np.cumsum([0, *lengths])
    with_next = [n for b, size in zip(begins, lengths) for n in range(b, b + size - 1)]
    for packing in (PackedBatch(mask), PackedBatch(mask, np.array(lengths, dtype=np.int64))):
        assert packing.with_next.tolist() == with_next
        assert packing.with_previous.tolist() == [number + 1 for number in with_next]
        assert torch.equal(packing.tokens, mask.flatten().nonzero().flatten())


@pytest.mark.parametrize("padding, padded", [(0, True), (5, True), (6, False)])
def test_little_padding_stays(padding, padded):
    mask = torch.arange(100).view(10, 10) < 100 - padding
    packing = PackedBatch(mask)
    assert packing.forward.padded == packing.backward.padded == padded
