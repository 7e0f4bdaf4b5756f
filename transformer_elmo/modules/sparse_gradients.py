"""
What processes that train together tell each other about a parameter whose gradient has few rows:
those rows, and not the zeros between them.
"""

from typing import List, Tuple

import torch
import torch.distributed as dist


def rows_averaged_over_processes(
    ids: torch.Tensor, values: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """
    The mean over processes of gradients of which each process has some rows; a row that a process
    lacks counts as zero. All processes must call this together. It works with gloo and with NCCL,
    whose own reduction of sparse tensors PyTorch's DistributedDataParallel doesn't offer.

    # Parameters

    ids : `torch.Tensor`
        Shape `(num_rows,)`: which rows, each once. Their number may differ between processes.
    values : `torch.Tensor`
        Shape `(num_rows, dim)`.

    # Returns

    `Tuple[torch.Tensor, torch.Tensor]`
        The union of all processes' ids, sorted, and the mean of their values, the same on all of
        them to the last bit.
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


def _gathered(tensor: torch.Tensor) -> List[torch.Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor)
    return parts
