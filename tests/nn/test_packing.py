"""Where tokens stand, against what a mask says by itself, a sentence at a time."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.nn.kernels.comparing import MANY, seeds
from transformer_elmo.nn import batch as batches
from transformer_elmo.nn.batch import PackedBatch
from transformer_elmo.nn.kernels.dropout import Dropout

masks = st.integers(0, 6).flatmap(
    lambda timesteps: st.lists(
        st.lists(st.booleans(), min_size=timesteps, max_size=timesteps), min_size=0, max_size=5
    ).map(lambda rows: torch.tensor(rows, dtype=torch.bool).view(len(rows), timesteps))
)
# Little padding goes another way than much.
nearly_full = st.tuples(st.integers(3, 6), st.integers(7, 9), st.integers(0, 20)).map(
    lambda sizes: torch.arange(sizes[0] * sizes[1]).view(sizes[:2]) != sizes[2]
)
DIM = 3


def in_reading_order(padded, mask, backward):
    """Sentences pushed to the left, and reversed; zero behind them."""
    result = torch.zeros_like(padded)
    for row, present in enumerate(mask):
        words = padded[row, present]
        result[row, : len(words)] = words.flip(0) if backward else words
    return result


@MANY
@given(seeds, st.one_of(masks, nearly_full))
def test_tokens_come_and_go(seed, mask):
    torch.manual_seed(seed)
    packing = PackedBatch(mask)
    padded = torch.randn(*mask.shape, DIM, requires_grad=True)
    tokens = packing.pack(padded)
    assert torch.equal(tokens, padded[mask])
    lengths = mask.sum(-1)
    behind = torch.arange(mask.size(1)) < lengths[:, None]
    for order, backward in ((packing.forward, False), (packing.backward, True)):
        rows = order.rows(tokens)
        assert rows.shape == (mask.numel() if order.padded else mask.sum(), DIM)
        # Attention finds each sentence in order.
        several = rows.repeat(1, 6) * torch.arange(1, 7).repeat_interleave(DIM)
        with mock.patch.object(batches, "causal_attention", side_effect=lambda q, *_: q) as called:
            again = order.attended(several, 2, Dropout(0.0))
        heads = called.call_args.args[:3]
        placed = in_reading_order(padded, mask, backward)
        for number, head in enumerate(heads):
            assert head.shape == (mask.size(0), 2, mask.size(1), DIM)
            for which in range(2):
                wanted = placed * (2 * number + which + 1)
                assert torch.equal(head[:, which][behind], wanted[behind])
            assert head.isfinite().all()
        # And it goes back to where it came from.
        assert again.shape == (rows.size(0), 2 * DIM)
        batch = order.batch_of_rows(again).view(*mask.shape, 2 * DIM)
        assert torch.equal(batch[mask][:, :DIM], tokens)
        assert torch.equal(batch[mask][:, DIM:], 2 * tokens)
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
    rows = packing.backward.rows(torch.randn(100 - padding, 1))
    assert len(rows) == (100 if padded else 94)
