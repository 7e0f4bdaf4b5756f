"""
Gradients that have few rows, each with its number, and not the zeros between them.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist


def several_processes() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized()


def rows_averaged_over_processes(
    ids: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The mean over processes of gradients of which each process has some rows; a row that a process
    lacks counts as zero. All processes must call this together. It works with gloo and with NCCL,
    whose own reduction of sparse tensors PyTorch's DistributedDataParallel doesn't offer.

    `ids`: shape `(num_rows,)`: which rows, each once. Their number may differ between processes.
    `values`: shape `(num_rows, dim)`. Returns the union of all processes' ids, sorted, and the mean
    of their values, the same on all of them to the last bit.
    """
    num_processes = dist.get_world_size()
    counts = _gathered(torch.tensor([ids.numel()], device=ids.device))
    longest = max(int(count) for count in counts)
    # Collectives want the same shape everywhere.
    padded_ids = ids.new_zeros(longest)
    padded_ids[: ids.numel()] = ids
    padded_values = values.new_zeros(longest, values.size(1))
    padded_values[: ids.numel()] = values
    all_ids = _gathered(padded_ids)
    all_values = _gathered(padded_values)
    present = [slice(0, int(count)) for count in counts]

    union, row = torch.unique(
        torch.cat([part[rows] for part, rows in zip(all_ids, present)]), return_inverse=True
    )
    mean = values.new_zeros(union.numel(), values.size(1))
    # Process by process, so that the order of the sum is the same everywhere, on a GPU too.
    rows_of_parts = row.split([int(count) for count in counts])
    for part, rows, of_part in zip(all_values, present, rows_of_parts):
        mean[of_part] += part[rows]
    return union, mean.div_(num_processes)


def _gathered(tensor: torch.Tensor) -> list[torch.Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor)
    return parts


def merged_rows(ids: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """
    Adds up the rows of a gradient that belong to the same row of a parameter, without waiting for
    the device to say how many there are.

    `ids`: shape `(num_rows,)`: which rows, some of them more than once. `values`: shape `(num_rows,
    ...)`. Returns shape `(num_rows, ...)`: for each row the sum over all with its number. Rows of
    the same number are equal, so that it doesn't matter which of them is used in the end.
    """
    ascending, order = ids.sort()
    first = torch.ones_like(ascending)
    first[1:] = (ascending[1:] != ascending[:-1]).to(first.dtype)
    # The number of each row's group, in the rows' own order.
    group = torch.empty_like(ids).index_copy_(0, order, first.cumsum(0) - 1)
    sums = torch.zeros_like(values).index_add_(0, group, values)
    return sums.index_select(0, group)


def clip_norm(parameters: Sequence[torch.Tensor], max_norm: float) -> torch.Tensor:
    """
    `torch.nn.utils.clip_grad_norm_`, which knows no sparse gradients, for gradients of both kinds.

    `parameters`: their gradients change in place. Returns shape `()`: the norm of all gradients
    together, as it was.
    """
    values = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            # Entries of the same place add up before they count.
            parameter.grad = parameter.grad.coalesce()
            values.append(parameter.grad.values())
        elif parameter.grad is not None:
            values.append(parameter.grad)
    norm = torch.stack([torch.linalg.vector_norm(v.detach()) for v in values]).norm()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for value in values:
        value.detach().mul_(factor)
    return norm
