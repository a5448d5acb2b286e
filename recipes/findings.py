"""Measure everything a demo folder holds: one call, figures with targets and protocols out."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch

from recipes.figures import Example, Figure, Findings, merge
from recipes.findings_generators import GENERATORS, measure_captions, measure_copies_control, measure_generator
from recipes.findings_photos import TOKENIZERS, measure_photos
from recipes.findings_shapes import make_bench, measure_stores, measure_tokenizer
from tokenizers_mm.losses.perceptual import perceptual

__all__ = ["Example", "Figure", "Findings", "measure_demo"]

_FEWEST = 16


@torch.no_grad()
def measure_demo(
    folder: Path,
    *,
    samples: int = 512,
    perceptual_name: str | None = "lite0",
    judge_steps: int = 600,
    progress: Callable[[str], None] = lambda what: None,
    seconds: Mapping[str, float] | None = None,
) -> Findings:
    """Measure the demo in `folder` and write folder/findings.json and folder/pictures.

    samples          pictures each generator draws, captions it writes for each split; even
    perceptual_name  network of the perceptual distance on photographs; None leaves the measure out
    judge_steps      training of the judge; with fewer its own gate is missed, and says so
    seconds          time of every stage so far, kept with the findings

    Raises `ValueError` for too few samples and for a folder in which a run is missing or broken.
    """
    if samples < _FEWEST or samples % 2:
        raise ValueError(f"samples={samples}: expected an even number, at least {_FEWEST}")
    network = perceptual(perceptual_name) if perceptual_name else None
    photos = measure_photos(folder, network, progress)
    with torch.enable_grad():
        bench = make_bench(folder, judge_steps=judge_steps, progress=progress)
    progress("shapes: reconstructions, random tokens, stores")
    tokenizers = {name: measure_tokenizer(folder, name, bench) for name in TOKENIZERS}
    parts = [photos, bench.findings, *tokenizers.values(), measure_stores(folder)]
    parts.append(measure_captions(folder, samples, progress))
    for name, tokenizer in GENERATORS.items():
        parts.append(measure_generator(folder, name, samples, bench, tokenizers[tokenizer], progress))
    parts.append(measure_copies_control(bench))
    parts.append(Findings(seconds=dict(seconds or {}), environment=_environment(perceptual_name, network)))
    findings = merge(parts)
    (folder / "findings.json").write_text(findings.to_json() + "\n", encoding="utf-8")
    return findings


def _environment(perceptual_name: str | None, network: torch.nn.Module | None) -> dict[str, str | int]:
    packages = ("tokenizers-mm", "torch", "torchvision", "timm", "numpy", "pillow")
    return {
        **{package: version(package) for package in packages},
        "python": platform.python_version(),
        "cores": os.cpu_count() or 1,
        "date": datetime.date.today().isoformat(),
        "perceptual": str(network.name) if network is not None else "",
    }
