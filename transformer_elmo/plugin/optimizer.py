"""
Adam for a model most of whose parameters a step doesn't touch: the rows of the softmax.
"""

from collections import defaultdict
from typing import Any, Callable, DefaultDict, Dict, List, Optional, Tuple

import torch
from allennlp.training.optimizers import Optimizer, ParameterGroupsType, make_parameter_groups
from overrides import overrides
from torch.optim.adam import adam

from transformer_elmo.nn.kernels.sparse_gradients import merged_rows

# Where PyTorch has one kernel for the whole update of a tensor.
FUSED_DEVICES = ("cpu", "cuda")

# A tensor to update with its gradient and its two moments, all of one shape.
_Update = Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@Optimizer.register("dense_sparse_adam", exist_ok=True)
class DenseSparseAdam(Optimizer, torch.optim.Optimizer):
    """
    Adam (Kingma and Ba 2015) for dense and sparse gradients. Of a parameter with sparse gradients,
    a step reads and writes only the rows that have one: the others keep their values, and their
    moments don't decay.

    The same function as AllenNLP's optimizer of this name, with the same state, so that a run begun
    with one can go on with the other. Dense parameters are updated by PyTorch's fused kernel
    instead of operation by operation, and so are the rows of sparse ones.

    Registered as an `Optimizer` with name "dense_sparse_adam".

    # Parameters

    model_parameters : `List[Tuple[str, torch.nn.Parameter]]`, required.
    parameter_groups : `List[Tuple[List[str], Dict[str, Any]]]`, optional (default = `None`)
    lr : `float`, optional (default = `1e-3`)
    betas : `Tuple[float, float]`, optional (default = `(0.9, 0.999)`)
        Decay of the moving averages of the gradient and of its square.
    eps : `float`, optional (default = `1e-8`)
        Added to the root of the second moment, before the correction of its bias.

    # Raises

    `ValueError`
        If a value is out of range.
    """

    def __init__(
        self,
        model_parameters: List[Tuple[str, torch.nn.Parameter]],
        parameter_groups: Optional[ParameterGroupsType] = None,
        lr: float = 1e-3,
        betas: Tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps)):
            if value < 0.0:
                raise ValueError(f"{name} must not be negative, got {value}.")
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas must be at least 0 and less than 1, got {betas}.")
        super().__init__(
            make_parameter_groups(model_parameters, parameter_groups),
            {"lr": lr, "betas": betas, "eps": eps},
        )
        self.found_inf: Optional[torch.Tensor] = None
        """
        If given, a scalar on the parameters' device: the next step has no effect where it is 1, and
        :meth:`take_back_step` is to be called after it.
        """
        self._stepped: List[Dict[str, Any]] = []

    @overrides(check_signature=False)
    def step(self, closure: Optional[Callable[[], Any]] = None) -> Any:
        """
        # Parameters

        closure : `Callable`, optional (default = `None`)
            Evaluates the model again and returns the loss.

        # Returns

        What `closure` returns.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._stepped = []
        with torch.no_grad():
            for group in self.param_groups:
                self._update_group(group)
        return loss

    def take_back_step(self) -> None:
        """Forgets the last step, which had no effect, in the count of steps."""
        for state in self._stepped:
            state["step"] -= 1
        self._stepped = []

    def _update_group(self, group: Dict[str, Any]) -> None:
        # One kernel takes one device and one number of steps.
        updates: DefaultDict[Tuple[torch.device, int], List[_Update]] = defaultdict(list)
        rows_to_write: List[Tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            gradient, state = parameter.grad, self.state[parameter]
            if not state:
                state["step"] = 0
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["step"] += 1
            self._stepped.append(state)
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
            _fused_adam(tensors, group, device, step, self.found_inf)
        for tensor, rows, part in rows_to_write:
            tensor.index_copy_(0, rows, part)


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
