"""How the cost of the search grows with vectors, rows and channels; drawn by `benchmarks/plots.py`."""

import pytest
import torch

from quantizers import kernels

START = {"N": 4096, "K": 4096, "d": 32}
SWEEPS = {"N": [2**e for e in range(6, 17, 2)], "K": [2**e for e in range(6, 17, 2)], "d": [4, 8, 16, 64, 256, 1024]}


@torch.inference_mode()
@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in SWEEPS.items() for value in values])
def test_nearest(compare, ties, name, value):
    shape = START | {name: value}
    z, rows = torch.randn(shape["N"], shape["d"]), torch.randn(shape["K"], shape["d"])

    def plain():
        return torch.cdist(z, rows).argmin(-1)

    def in_torch():
        with kernels.using("torch"):
            return kernels.nearest(z, rows)

    ties(kernels.nearest(z, rows), plain(), z, rows)
    compare(
        "nearest, " + ", ".join(f"{key}={number}" for key, number in shape.items()),
        {"native": lambda: kernels.nearest(z, rows), "torch path": in_torch, "cdist, argmin": plain},
        rounds=5,
        sweep=name,
        shape=shape,
    )
