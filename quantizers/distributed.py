"""Statistics that agree over processes: each function gives every process what one process would get from the batches
joined in the order of their ranks. Without torch.distributed they do nothing.

Shape letters: N vectors of this process, M of all, R rows wanted, D channels.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """Return how many processes work together; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Sum in place over all processes."""
    if processes() > 1:
        dist.all_reduce(tensor)
    return tensor


def from_first_process(tensor: Tensor) -> Tensor:
    """Overwrite in place with the first process's values, random numbers for instance."""
    if processes() > 1:
        dist.broadcast(tensor, src=0)
    return tensor


def offset_and_total(count: int, device: torch.device) -> tuple[int, int]:
    """Where this process's vectors start in the joined batch, and the length of that.

    While compiling, all processes must have equally many: asking the others would break the graph.
    """
    if processes() == 1:
        return 0, count
    if torch.compiler.is_compiling():
        return dist.get_rank() * count, processes() * count
    counts = torch.zeros(processes(), dtype=torch.int64, device=device)
    counts[dist.get_rank()] = count
    every = sum_over_processes(counts).tolist()
    return sum(every[: dist.get_rank()]), sum(every)


def sample_rows(flat_ND: Tensor, mask_N: Tensor | None, wanted: int, offset: int, total: int) -> Tensor:
    """Rows [R, D] drawn without replacement from the joined batch (total > 0); repeated where it has fewer than R.

    mask_N         True where a vector may be drawn; without any such vector the rows are arbitrary
    offset, total  what `offset_and_total` gave
    """
    device, count = flat_ND.device, len(flat_ND)
    key_M = from_first_process(torch.rand(total, device=device))
    available: Tensor | int = total
    if mask_N is not None:
        drawable_M = torch.zeros(total, device=device)
        drawable_M[offset : offset + count] = mask_N.float()
        sum_over_processes(drawable_M)
        key_M = torch.where(drawable_M > 0, key_M, 2.0)
        available = drawable_M.sum().long().clamp(min=1)
    pick_R = key_M.argsort()[torch.arange(wanted, device=device) % available]
    if processes() == 1:
        return flat_ND[pick_R]
    mine_R = (pick_R >= offset) & (pick_R < offset + count)
    row_RD = flat_ND.new_zeros(wanted, flat_ND.shape[1])
    if count:
        row_RD = torch.where(mine_R[:, None], flat_ND[(pick_R - offset).clamp(0, count - 1)], row_RD)
    return sum_over_processes(row_RD)


def segment_sums(flat_ND: Tensor, index_N: Tensor, mask_N: Tensor | None, size: int) -> tuple[Tensor, Tensor]:
    """Sums [K, D] and counts [K] of the vectors of every segment k < size, over all processes."""
    weight_N = torch.ones_like(flat_ND[:, 0]) if mask_N is None else mask_N.to(flat_ND.dtype)
    count_K = flat_ND.new_zeros(size).index_add_(0, index_N, weight_N)
    weighted_ND = flat_ND if mask_N is None else flat_ND * weight_N[:, None]
    sum_KD = flat_ND.new_zeros(size, flat_ND.shape[1]).index_add_(0, index_N, weighted_ND)
    return sum_over_processes(sum_KD), sum_over_processes(count_K)
