"""
Layer normalization (Ba et al. 2016) with AllenNLP's numbers: it divides by the standard deviation
itself, guarded only against being exactly zero.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from transformer_elmo.nn.kernels.weight_casts import cast_weights

# AllenNLP adds 1e-13 to the deviation; added to the variance, its square has the same effect.
EPSILON = 1e-26


def cast_norms(dtype: torch.dtype, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """
    Gammas and betas for rows of a type. Only a CPU's kernel takes rows and weights of two types.
    """
    if not weights or weights[0].device.type == "cpu":
        return list(weights)
    return cast_weights(dtype, [[weight] for weight in weights])


def layer_norm(tensor: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """
    Layer normalization over the last dimension, in the tensor's own type. Means and deviations
    are float32 inside, whatever that is.

    `tensor`: shape `(..., dim)`. `gamma`, `beta`: shape `(dim,)`, as :func:`cast_norms`
    gives them, or of another type.
    """
    if tensor.device.type != "cpu":
        gamma, beta = gamma.to(tensor.dtype), beta.to(tensor.dtype)
    if not torch.is_autocast_enabled(tensor.device.type):
        return F.layer_norm(tensor, gamma.shape, gamma, beta, EPSILON)
    # Autocast would make the result float32, only to have the next product round it again.
    with torch.autocast(tensor.device.type, enabled=False):
        return layer_norm(tensor, gamma, beta)
