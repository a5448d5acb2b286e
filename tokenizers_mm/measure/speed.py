"""Throughput and peak memory of encoding and decoding: true of one machine at one moment.

Shape letters: B batch.
"""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tokenizers_mm.measure.protocol import Measurement, Protocol

__all__ = ["Speed"]


class Speed:
    """Seconds of encoding and decoding by batch. The first batch warms up and is left out where there are others."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.batches: dict[str, list[tuple[int, float]]] = {"encode": [], "decode": []}
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    @contextmanager
    def timed(self, what: str, images: int) -> Iterator[None]:
        """Time the block, in which so many images are encoded or decoded."""
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self.batches[what].append((images, time.perf_counter() - start))

    def measurements(self, protocol: Protocol) -> list[Measurement]:
        """Images per second and peak memory."""
        figures = []
        for what, batches in self.batches.items():
            counted = batches[1:] or batches
            if counted:
                rate = sum(images for images, _ in counted) / sum(seconds for _, seconds in counted)
                figures.append(Measurement(f"Speed, {what}", rate, "images/s", protocol, self.note))
        return [*figures, Measurement("Peak memory", self._peak(), "MiB", protocol, self.note)]

    @property
    def note(self) -> str:
        """Where the figures hold."""
        if self.device.type == "cuda":
            return f"speed and memory: {torch.cuda.get_device_name(self.device)}; another machine gives others"
        threads = torch.get_num_threads()
        return (
            f"speed: {platform.machine()} processor, {threads} thread{'s' if threads > 1 else ''}; memory: the whole "
            "process; another machine gives others"
        )

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _peak(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        # Bytes on macOS, KiB elsewhere.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
