"""Dropout whose random numbers don't cost more on a CPU than the layer around them."""

from typing import Optional

import torch
from overrides import overrides

# Probabilities are rounded to this many levels: a rate of 0.1 becomes 0.100006.
_LEVELS = 2**16


def dropout_factors(tensor: torch.Tensor, p: float) -> torch.Tensor:
    """
    What inverted dropout multiplies a tensor by: `1 / (1 - p)`, or, with probability `p`, zero.

    PyTorch draws such numbers on a CPU one by one, at 10 ns each. Sixteen random bits decide just
    as well, and one draw has four times as many.

    # Parameters

    tensor : `torch.Tensor`
        Says shape, type and device.
    p : `float`
        At least 0 and less than 1.

    # Returns

    `torch.Tensor`
        Of the tensor's shape.
    """
    drop_below = round(p * _LEVELS)
    bits = torch.empty((tensor.numel() + 3) // 4, dtype=torch.int64, device=tensor.device)
    bits.random_(-(2**63), None)
    kept = bits.view(torch.int16)[: tensor.numel()] >= drop_below - _LEVELS // 2
    scale = torch.tensor(_LEVELS / max(_LEVELS - drop_below, 1), dtype=tensor.dtype)
    return torch.where(kept, scale, torch.zeros_like(scale)).view(tensor.shape)


class Dropout(torch.nn.Dropout):
    """
    `torch.nn.Dropout`, faster on a CPU, and with an optional tensor to add the result to.

    # Parameters

    p : `float`, optional (default = `0.5`)
        The probability of an element to become zero.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)

    @overrides(check_signature=False)
    def forward(
        self, tensor: torch.Tensor, residual: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        """
        # Parameters

        tensor : `torch.Tensor`
        residual : `torch.Tensor`, optional (default = `None`)
            Of the same shape: added to what remains of `tensor`.

        # Returns

        `torch.Tensor`
            Of the same shape.
        """
        if self.training and 0.0 < self.p < 1.0 and tensor.device.type == "cpu":
            factors = dropout_factors(tensor, self.p)
            if residual is None or residual.dtype != tensor.dtype:
                tensor = tensor * factors
            else:
                return torch.addcmul(residual, tensor, factors)
        else:
            tensor = super().forward(tensor)
        return tensor if residual is None else residual + tensor
