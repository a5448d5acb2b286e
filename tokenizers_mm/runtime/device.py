"""Choice of device: a name from the command line becomes a device that is there."""

from __future__ import annotations

import torch

__all__ = ["choose_device"]


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """`auto` (the first CUDA device where there is one, else the CPU), `cpu`, `cuda` or `cuda:N`; a device as it is.

    Raises `ValueError` naming the value and what this machine has.
    """
    if isinstance(name, torch.device):
        return name
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda", 0) if count else torch.device("cpu")
    kind, colon, number = name.partition(":")
    index = int(number) if number.isdecimal() else 0 if not colon else -1
    if name == "cpu":
        return torch.device(name)
    if kind == "cuda" and 0 <= index < count:
        return torch.device(kind, index)
    cards = ", ".join(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(count)) or "no CUDA device"
    raise ValueError(f"device {name!r}: expected auto, cpu, cuda or cuda:N; this machine has the CPU and {cards}")
