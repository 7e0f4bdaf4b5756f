"""
Where the tokens of a padded batch stand: in the batch, in the matrix that linear layers work on,
and in the sentences that attention reads.
"""

from typing import Any, Optional, Tuple

import torch
from torch.autograd.function import once_differentiable


class _MovedRows(torch.autograd.Function):
    """
    `source.index_select(0, index)`, where each row of `source` that matters goes to one place that
    matters. PyTorch's own gradient must expect repeats, and adds rows up one by one.

    `back` says for each row of `source` which row of the result its gradient comes from. Without
    it, `index` has no repeats, and rows that are not in it have no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, source: torch.Tensor, index: torch.Tensor, back: Optional[torch.Tensor]
    ) -> torch.Tensor:
        ctx.save_for_backward(index, back)
        ctx.num_rows = source.size(0)
        if not ctx.num_rows:
            # A batch of nothing but padding.
            return source.new_zeros(index.numel(), *source.shape[1:])
        return source.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Tuple[Optional[torch.Tensor], ...]:
        index, back = ctx.saved_tensors
        if back is not None:
            return grad.index_select(0, back), None, None
        moved = grad.new_zeros(ctx.num_rows, *grad.shape[1:])
        return moved.index_copy_(0, index, grad), None, None


def _inverse(permutation: torch.Tensor) -> torch.Tensor:
    numbers = torch.arange(permutation.numel(), device=permutation.device)
    return torch.empty_like(permutation).index_copy_(0, permutation, numbers)


class TokenLayout:
    """
    A batch, and both directions' orders of its tokens.

    # Parameters

    mask : `torch.BoolTensor`
        Shape `(batch_size, timesteps)`; `True` for tokens.

    # Attributes

    tokens : `torch.Tensor`
        Shape `(num_tokens,)`: each token's place in the flattened batch, in reading order.
    forward, backward : `ReadingOrder`
        A batch whose sentences are pushed to the left, and for the backward direction reversed
        within their own length. In that order, "causal" means the same for both directions.
    """

    def __init__(self, mask: torch.Tensor) -> None:
        self.mask = mask
        self.timesteps = mask.size(1)
        self.tokens = mask.reshape(-1).nonzero().squeeze(-1)
        rank = mask.long().cumsum(-1)
        length = rank[:, -1:] if self.timesteps else rank
        # Padding goes behind the sentence, so that every place of the batch goes to one.
        behind = length + (~mask).long().cumsum(-1) - 1
        begin = torch.arange(mask.size(0), device=mask.device).unsqueeze(-1) * self.timesteps
        self.forward = ReadingOrder(begin + torch.where(mask, rank - 1, behind), self.tokens)
        self.backward = ReadingOrder(begin + torch.where(mask, length - rank, behind), self.tokens)

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """From shape `(batch_size, timesteps, dim)` to `(num_tokens, dim)`."""
        return _MovedRows.apply(padded.reshape(-1, padded.size(-1)), self.tokens, None)

    def unpack(
        self, forward: torch.Tensor, backward: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """
        From the rows of both directions, each of shape `(num_rows, dim)`, to shape `(batch_size,
        timesteps, 2 * dim)` and the type given; zero at padding.
        """
        halves = [self.forward.batch_of_rows(forward), self.backward.batch_of_rows(backward)]
        batch = torch.cat(halves, -1).to(dtype)
        if self.tokens.numel() < self.mask.numel():
            batch = batch * self.mask.reshape(-1, 1).to(dtype)
        return batch.view(*self.mask.shape, -1)


class ReadingOrder:
    """
    How one direction's layers hold the tokens: as rows of a matrix, from which attention makes
    sentences.

    With much padding, the rows are the tokens alone, and each layer's attention puts them
    in their places and takes them out again. With little, they are all places of the
    batch in the direction's order: a few idle rows cost less than moving all others in every layer.

    # Parameters

    places : `torch.Tensor`
        Shape `(batch_size, timesteps)`: where in this order each place of the batch goes, padding
        included; numbers of places in the flattened batch.
    tokens : `torch.Tensor`
        Shape `(num_tokens,)`: which places of the flattened batch are tokens.
    """

    # Moving the tokens costs about as much as this share of a layer.
    PADDING_WORTH_REMOVING = 0.05

    def __init__(self, places: torch.Tensor, tokens: torch.Tensor) -> None:
        self.shape = places.shape
        num_tokens, num_places = tokens.numel(), places.numel()
        self.padded = num_tokens >= (1.0 - self.PADDING_WORTH_REMOVING) * num_places > 0
        numbers = torch.arange(num_tokens, device=tokens.device)
        token_places = places.reshape(-1).index_select(0, tokens)
        # Idle places get the first token's vector: nothing reads what becomes of it.
        token_of_place = tokens.new_zeros(num_places).index_copy_(0, token_places, numbers)
        self._tokens_to_order = (token_of_place, token_places)
        if self.padded:
            # Row by row of the whole batch.
            self._rows_to_batch = (places.reshape(-1), _inverse(places.reshape(-1)))
        else:
            token_here = tokens.new_zeros(num_places).index_copy_(0, tokens, numbers)
            self._rows_to_batch = (token_here, tokens)

    def rows(self, tokens: torch.Tensor) -> torch.Tensor:
        """From shape `(num_tokens, dim)` to `(num_rows, dim)`."""
        return _MovedRows.apply(tokens, *self._tokens_to_order) if self.padded else tokens

    def sentences(self, rows: torch.Tensor) -> torch.Tensor:
        """From shape `(num_rows, dim)` to `(batch_size, timesteps, dim)`, finite at padding."""
        if not self.padded:
            rows = _MovedRows.apply(rows, *self._tokens_to_order)
        return rows.view(*self.shape, -1)

    def rows_of_sentences(self, sentences: torch.Tensor) -> torch.Tensor:
        """From shape `(batch_size, timesteps, dim)` to `(num_rows, dim)`."""
        rows = sentences.reshape(self.shape.numel(), -1)
        if self.padded:
            return rows
        _, token_places = self._tokens_to_order
        return _MovedRows.apply(rows, token_places, None)

    def batch_of_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """
        From shape `(num_rows, dim)` to `(batch_size * timesteps, dim)`, each token where it stands
        in the batch. What is at padding must not be used.
        """
        return _MovedRows.apply(rows, *self._rows_to_batch)
