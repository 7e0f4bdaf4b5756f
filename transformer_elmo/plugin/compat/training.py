"""Clipping of gradients that are sparse, which AllenNLP's trainer leaves to torch, which can't."""

from typing import Callable, List

import torch
from allennlp.training import gradient_descent_trainer

from transformer_elmo.nn.kernels.sparse_gradients import clip_norm
from transformer_elmo.plugin.patches import wrap


def install() -> None:
    """Wraps the functions."""
    wrap(
        gradient_descent_trainer,
        "clip_grad_norm_",
        _clip_grad_norm,
        "grad_norm with sparse gradients",
    )


def _clip_grad_norm(
    stock: Callable[..., torch.Tensor], parameters: List[torch.Tensor], max_norm: float
) -> torch.Tensor:
    parameters = list(parameters)
    if not any(p.grad is not None and p.grad.is_sparse for p in parameters):
        return stock(parameters, max_norm)
    return clip_norm(parameters, max_norm)
