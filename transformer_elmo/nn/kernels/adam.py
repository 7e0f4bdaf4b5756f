"""
A step of Adam, by PyTorch's kernel for the whole update of a tensor, for gradients of both kinds.
"""

from collections import defaultdict
from typing import Any, DefaultDict, Dict, List, MutableMapping, Optional, Tuple

import torch
from torch.optim.adam import adam

from transformer_elmo.nn.kernels.sparse_gradients import merged_rows

# Where PyTorch has one kernel for the whole update of a tensor.
FUSED_DEVICES = ("cpu", "cuda")

# A tensor to update with its gradient and its two moments, all of one shape.
_Update = Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def update_group(
    group: Dict[str, Any],
    states: MutableMapping[torch.Tensor, Any],
    found_inf: Optional[torch.Tensor] = None,
) -> List[Dict[str, Any]]:
    """
    One step of Adam (Kingma and Ba 2015) for the parameters that have a gradient. Of one with a
    sparse gradient, only the rows in it are read and written: the others keep their values, and
    their moments don't decay.

    # Parameters

    group : `Dict[str, Any]`
        The "params", and their "lr", "betas" and "eps".
    states : `MutableMapping[torch.Tensor, Any]`
        For each parameter the number of its steps and its two moments; empty at first.
    found_inf : `torch.Tensor`, optional (default = `None`)
        A scalar on the parameters' device: where it is 1, nothing changes but the numbers of steps.

    # Returns

    `List[Dict[str, Any]]`
        The states of the parameters that had a gradient.
    """
    stepped: List[Dict[str, Any]] = []
    # One kernel takes one device and one number of steps.
    updates: DefaultDict[Tuple[torch.device, int], List[_Update]] = defaultdict(list)
    rows_to_write: List[Tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    for parameter in group["params"]:
        if parameter.grad is None:
            continue
        gradient, state = parameter.grad, states[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        stepped.append(state)
        kept = (parameter, state["exp_avg"], state["exp_avg_sq"])
        if gradient.is_sparse:
            rows, gradient = _rows(gradient)
            touched = tuple(tensor.index_select(0, rows) for tensor in kept)
            rows_to_write.extend((tensor, rows, part) for tensor, part in zip(kept, touched))
            kept = touched
        tensor, exp_avg, exp_avg_sq = kept
        key = (parameter.device, int(state["step"]))
        updates[key].append((tensor, gradient, exp_avg, exp_avg_sq))

    for (device, step), tensors in updates.items():
        _fused_adam(tensors, group, device, step, found_inf)
    for tensor, rows, part in rows_to_write:
        tensor.index_copy_(0, rows, part)
    return stepped


def _rows(gradient: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """
    The rows of a sparse gradient and their values. The update isn't linear in the gradient, so rows
    of the same number have to be added up before it.
    """
    if gradient.is_coalesced() or gradient.device.type == "cpu":
        gradient = gradient.coalesce()
        return gradient._indices()[0], gradient._values()
    rows, values = gradient._indices()[0], gradient._values()
    # All rows of one number get the same update, and are written to the same place.
    return rows, merged_rows(rows, values)


def _fused_adam(
    updates: List[_Update],
    group: Dict[str, Any],
    device: torch.device,
    step: int,
    found_inf: Optional[torch.Tensor],
) -> None:
    beta1, beta2 = group["betas"]
    # The kernel counts the step itself.
    steps = torch.full((len(updates),), step - 1, dtype=torch.float32, device=device)
    parameters, gradients, exp_avgs, exp_avg_sqs = (list(tensors) for tensors in zip(*updates))
    adam(
        parameters,
        gradients,
        exp_avgs,
        exp_avg_sqs,
        [],
        list(steps.unbind()),
        fused=device.type in FUSED_DEVICES,
        found_inf=found_inf,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=0.0,
        # PyTorch adds it after the correction of the bias, AllenNLP before.
        eps=group["eps"] / (1.0 - beta2**step) ** 0.5,
        maximize=False,
    )
