"""Stable Diffusion's autoencoder (128, 256, 512, 512 channels, float32) against diffusers on the same weights: time,
rounding error and memory of encoding and decoding one image.
"""

import copy
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks.tokenizers.autoencoders import autoencoder, inputs, runs

DIRECTIONS = ("encode", "decode")
# How many times our time diffusers was aimed to take, and the largest difference from it.
AIMS = {"fast": 2.3, "exact": 1.15}
LIMIT = 1e-5


@pytest.fixture(scope="module")
def vae():
    return autoencoder()


def error(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def memory(candidate, direction, pixels):
    """MiB of a fresh process at its peak, and of what the run added; the least of two, for allocators vary."""
    command = [sys.executable, Path(__file__).parent / "autoencoders.py", candidate, direction, str(pixels)]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths}
    outputs = (subprocess.run(command, env=environment, check=True, capture_output=True, text=True) for _ in range(2))
    return min([round(float(number), 1) for number in output.stdout.split()] for output in outputs)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_speed(compare, vae, direction):
    index, data = DIRECTIONS.index(direction), inputs(256)
    candidates = {
        candidate: runs(candidate, vae, *data)[index] for candidate in ("fast", "exact", "plain", "diffusers")
    }
    wide = copy.deepcopy(vae).double()
    truth = runs("diffusers", wide, *(tensor.double() for tensor in data))[index]()
    del wide
    out = {candidate: run() for candidate, run in candidates.items()}
    for candidate in ("fast", "exact", "plain"):
        assert error(out[candidate], out["diffusers"]) < LIMIT
    compare(
        f"{direction} 256 x 256, float32",
        candidates,
        rounds=5,
        aims={"diffusers": AIMS["fast"]},
        limits={"exact, share of diffusers": (lambda ms: ms["exact"] / ms["diffusers"], round(1 / AIMS["exact"], 3))},
        difference_from_diffusers={candidate: error(found, out["diffusers"]) for candidate, found in out.items()},
        error_from_float64={candidate: error(found, truth) for candidate, found in out.items()},
        diffusers=version("diffusers"),
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_sizes_without_compiling(compare, vae, direction):
    """Every round is another size: nothing is prepared for any of them."""
    index = DIRECTIONS.index(direction)
    sizes = [(64, 96), (72, 64), (128, 80), (88, 120), (104, 104), (96, 64)]
    data = {size: [tensor[..., : size[0], : size[1]] for tensor in inputs(128)[:1]] for size in sizes}
    shapes = {size: inputs(8)[1].new_zeros(1, 4, size[0] // 8, size[1] // 8).normal_() for size in sizes}
    made = {
        candidate: iter([runs(candidate, vae, data[size][0], shapes[size])[index] for size in sizes])
        for candidate in ("fast", "diffusers")
    }
    for size in sizes:
        ours, theirs = (runs(candidate, vae, data[size][0], shapes[size])[index]() for candidate in made)
        assert error(ours, theirs) < LIMIT
    compare(
        f"{direction}, another size every time",
        {candidate: lambda queue=queue: next(queue)() for candidate, queue in made.items()},
        rounds=len(sizes) - 1,
        aims={"diffusers": AIMS["fast"]},
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_bfloat16(compare, vae, direction):
    """A small image: processors without bfloat16 arithmetic are slow at it."""
    index, data = DIRECTIONS.index(direction), inputs(64)
    candidates = {candidate: runs(candidate, vae, *data)[index] for candidate in ("bf16", "fast", "diffusers")}
    out = {candidate: run() for candidate, run in candidates.items()}
    assert error(out["bf16"], out["diffusers"]) < 5e-2
    compare(
        f"{direction} 64 x 64, bfloat16 nets",
        candidates,
        rounds=3,
        difference_from_diffusers={candidate: error(found, out["diffusers"]) for candidate, found in out.items()},
    )


@pytest.mark.parametrize("pixels", [256, 512])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_memory(compare, vae, direction, pixels):
    """What a run adds to its process, which also holds the weights; one round, for the time is not the point."""
    found = {candidate: memory(candidate, direction, pixels) for candidate in ("fast", "diffusers")}
    assert found["fast"][1] <= found["diffusers"][1]
    index, data = DIRECTIONS.index(direction), inputs(pixels)
    compare(
        f"{direction} {pixels} x {pixels}, memory",
        {candidate: runs(candidate, vae, *data)[index] for candidate in found},
        rounds=1,
        peak_mib={candidate: whole for candidate, (whole, _) in found.items()},
        peak_of_the_run_mib={candidate: added for candidate, (_, added) in found.items()},
    )
