"""From a source to micro-batches: what one process of a training run fetches, step after step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from tokenizers_mm.data.sources import Draw, Fetched, Source, draws_for, fetch
from tokenizers_mm.runtime import leave_signals_to_the_main_process


@dataclass(frozen=True, kw_only=True)
class DataPosition:
    """Position in the data of one process: a function of the step alone.

    batch_size  examples in one optimiser step, over all processes and accumulation; micro_size of them per micro-batch
    """

    seed: int
    steps: int
    batch_size: int
    accumulate: int
    micro_size: int
    process: int = 0
    processes: int = 1


class _Draws(Sampler[list[Draw]]):
    """The draws of each micro-batch of this process, from a step on."""

    def __init__(self, length: int, position: DataPosition, start: int) -> None:
        self.length, self.position, self.start = length, position, start

    def __iter__(self) -> Iterator[list[Draw]]:
        p = self.position
        for step in range(self.start, p.steps):
            for micro in range(p.accumulate):
                first = step * p.batch_size + (micro * p.processes + p.process) * p.micro_size
                yield draws_for(self.length, p.seed, first, p.micro_size)


class _Fetch(Dataset[Fetched]):
    """Lets DataLoader workers fetch whole batches."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, draws: list[Draw]) -> Fetched:
        return fetch(self.source, draws)


def micro_batches(source: Source, position: DataPosition, start: int, *, workers: int = 0) -> Iterator[Fetched]:
    """This process's micro-batches from step `start` on; the same for any number of workers."""
    loader: DataLoader[Fetched] = DataLoader(
        _Fetch(source),
        sampler=_Draws(len(source), position, start),
        batch_size=None,
        num_workers=workers,
        collate_fn=_unchanged,
        # Else it would draw its seed from the random numbers of the objective, again in every resumed run.
        generator=torch.Generator(),
        persistent_workers=workers > 0,
        worker_init_fn=leave_signals_to_the_main_process,
    )
    return iter(loader)


def _unchanged(batch: Any) -> Any:
    return batch
