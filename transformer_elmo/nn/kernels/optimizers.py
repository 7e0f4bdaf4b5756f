"""
A step of Muon, for all matrices of one shape together. Taken one by one, as `torch.optim.Muon`
does, they are some twenty small kernels each, which a GPU's host takes longer to launch than the
GPU to run.

A step of Adam, by PyTorch's kernel for the whole update of a tensor, for gradients of both kinds.
"""

from collections import defaultdict
from collections.abc import MutableMapping
from functools import reduce
from typing import Any

import torch
from torch.optim.adam import adam

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.nn.kernels.sparse_gradients import merged_rows

# Where PyTorch has one kernel for the whole update of a tensor.
FUSED_DEVICES = ("cpu", "cuda")


def update_group(
    group: dict[str, Any],
    states: MutableMapping[torch.Tensor, Any],
    found_inf: torch.Tensor | None = None,
) -> list[dict[str, Any]]:
    """
    One step of Adam (Kingma and Ba 2015) for the parameters that have a gradient. Of one with a
    sparse gradient, only the rows in it are read and written: the others keep their values, and
    their moments don't decay.

    `group`: the "params", and their "lr", "betas" and "eps". `states`: for each parameter the
    number of its steps and its two moments; empty at first. `found_inf`: a scalar on the
    parameters' device: where it is 1, nothing changes but the numbers of steps. Returns the states
    of the parameters that had a gradient.
    """
    stepped: list[dict[str, Any]] = []
    # One kernel takes one device and one number of steps: for each tensor to update, the gradient
    # and the two moments, all of one shape.
    updates: defaultdict[tuple[torch.device, int], list[Any]] = defaultdict(list)
    rows_to_write: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
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
        kept = [parameter, state["exp_avg"], state["exp_avg_sq"]]
        if gradient.is_sparse:
            rows, gradient = _rows(gradient)
            touched = [tensor.index_select(0, rows) for tensor in kept]
            rows_to_write.extend((tensor, rows, part) for tensor, part in zip(kept, touched))
            kept = touched
        updates[parameter.device, int(state["step"])].append((kept[0], gradient, *kept[1:]))

    beta1, beta2 = group["betas"]
    for (device, step), tensors in updates.items():
        # The kernel counts the step itself.
        steps = torch.full((len(tensors),), step - 1, dtype=torch.float32, device=device)
        parameters, gradients, averages, squares = map(list, zip(*tensors))
        adam(
            parameters,
            gradients,
            averages,
            squares,
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
    for tensor, rows, part in rows_to_write:
        tensor.index_copy_(0, rows, part)
    return stepped


def _rows(gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A sparse gradient's rows and values, added up first, for an update isn't linear in them."""
    if gradient.is_coalesced() or gradient.device.type == "cpu":
        gradient = gradient.coalesce()
        return gradient._indices()[0], gradient._values()
    rows, values = gradient._indices()[0], gradient._values()
    # All rows of one number get the same update, and are written to the same place.
    return rows, merged_rows(rows, values)


# Of the polynomial that is applied again and again. It brings small singular values up fast, and
# leaves all of them near 1, not at it.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
# Against a division by zero.
_SMALLEST_NORM = 1e-7

# The iteration needs no more than the first two digits. Few CPUs have fast products for that.
HALF_PRECISION_DEVICES = ("cuda",)

# Products: of m by n numbers, 20 m n^2 + 10 n^3 multiplications become 4 m n^2 + 34 n^3.
SQUARES_PAY_FROM = 1.5


def orthogonalized(matrices: torch.Tensor) -> torch.Tensor:
    """
    Matrices with about the same singular vectors, and singular values between 0.7 and 1.2: by the
    Newton-Schulz iteration of Jordan et al. (2024).

    `matrices`: shape (number, rows, columns). Returns of the same shape; in bfloat16 on a GPU.
    """
    norms = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)
    result = matrices / norms.clamp(min=_SMALLEST_NORM)
    if matrices.device.type in HALF_PRECISION_DEVICES:
        return _iterated(result.bfloat16())
    shorter, longer = sorted(result.shape[1:])
    # More products of smaller matrices, each of which is one thing more to launch on a device.
    pays = matrices.device.type == "cpu" and longer >= SQUARES_PAY_FROM * shorter
    return _by_squares(result) if pays else _iterated(result)


def _iterated(matrices: torch.Tensor) -> torch.Tensor:
    """As the formula has it."""
    a, b, c = COEFFICIENTS
    is_tall = matrices.size(1) > matrices.size(2)
    for _ in range(ITERATIONS):
        square = _square(matrices)
        factor = torch.baddbmm(square, square, square, beta=b, alpha=c)
        one, other = (matrices, factor) if is_tall else (factor, matrices)
        matrices = torch.baddbmm(matrices, one, other, beta=a)
    return matrices


def _by_squares(matrices: torch.Tensor) -> torch.Tensor:
    """
    The same by products of the small squares alone. A step's factor is a polynomial of the square,
    so the two commute: the next square is factor * square * factor, and all steps together are one
    matrix. Squares have half the digits, which are too few in bfloat16.
    """
    a, b, c = COEFFICIENTS
    square = _square(matrices)
    factors: list[torch.Tensor] = []
    for _ in range(ITERATIONS):
        if factors:
            square = factors[-1] @ square @ factors[-1]
        factor = torch.baddbmm(square, square, square, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        factors.append(factor)
    whole = reduce(torch.matmul, factors)
    return matrices @ whole if matrices.size(1) > matrices.size(2) else whole @ matrices


def _square(matrices: torch.Tensor) -> torch.Tensor:
    """The smaller of the two, so that nothing need be transposed."""
    is_tall = matrices.size(1) > matrices.size(2)
    return matrices.mT @ matrices if is_tall else matrices @ matrices.mT


def update_matrices(
    group: dict[str, Any],
    states: MutableMapping[torch.Tensor, Any],
    found_inf: torch.Tensor | None = None,
) -> None:
    """
    One step of Muon (Jordan et al. 2024), with Nesterov's momentum, for the matrices that have a
    gradient. The update of a matrix is as large in the root of its mean square as Adam's usually
    is (Liu et al. 2025), so that Adam's learning rates fit.

    `group`: the "params", of two dimensions each, and their "lr" and "momentum". `states`: for each
    parameter the moving average of its gradient; empty at first. `found_inf`: a scalar on the
    parameters' device: where it is 1, nothing changes. Raises `ConfigurationError` if a gradient is
    sparse.
    """
    alike: defaultdict[tuple[Any, ...], list[torch.Tensor]] = defaultdict(list)
    for parameter in group["params"]:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            raise ConfigurationError(
                "Muon takes no matrices with sparse gradients, such as those of an embedding: got "
                f"one of {tuple(parameter.shape)}. Name the matrices of linear layers alone."
            )
        alike[parameter.device, parameter.dtype, parameter.shape].append(parameter)
    for (_, _, shape), parameters in alike.items():
        for parameter in parameters:
            if not states[parameter]:
                states[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        kept = [states[parameter]["momentum_buffer"] for parameter in parameters]
        gradients = torch.stack([p.grad for p in parameters if p.grad is not None])
        averages = torch.stack(kept)
        if found_inf is not None:
            # The average of a number and itself is that number.
            gradients = torch.where(found_inf > 0, averages, gradients)
        averages.lerp_(gradients, 1.0 - group["momentum"])
        updates = orthogonalized(gradients.lerp(averages, group["momentum"])).to(gradients.dtype)
        if found_inf is not None:
            updates = updates * (found_inf == 0)
        torch._foreach_copy_(kept, list(averages.unbind()))
        rate = group["lr"] * 0.2 * max(shape) ** 0.5
        torch._foreach_add_(parameters, list(updates.unbind()), alpha=-rate)
