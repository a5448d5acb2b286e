"""Everything that is measured of a demo folder: one call, figures with targets and protocols out."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import torch

from recipes.gates import (
    GENERATORS,
    TOKENIZERS,
    Example,
    Figure,
    Findings,
    draw_samples,
    make_evaluator,
    measure_captions,
    measure_copies_control,
    measure_photos,
    measure_samples,
    measure_stores,
    measure_tokenizer,
    merge,
)
from tokenizers_mm.losses import Perceptual
from tokenizers_mm.losses.perceptual import perceptual
from tokenizers_mm.runtime import computes_bfloat16

__all__ = ["Example", "Figure", "Findings", "measure_demo"]

_FEWEST, _WORKERS = 16, 2


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
    _require_runs(folder)
    network = perceptual(perceptual_name) if perceptual_name else None
    threads = torch.get_num_threads()
    try:
        # One thread per task: small networks side by side use two cores better than one network on both.
        with ThreadPoolExecutor(_WORKERS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            parts = _measure(pool, folder, samples, judge_steps, network, progress)
    finally:
        torch.set_num_threads(threads)
    findings = merge([*parts, Findings(seconds=dict(seconds or {}), environment=_environment(network))])
    (folder / "findings.json").write_text(findings.to_json() + "\n", encoding="utf-8")
    return findings


def _measure(
    pool: Executor,
    folder: Path,
    samples: int,
    judge_steps: int,
    network: Perceptual | None,
    progress: Callable[[str], None],
) -> list[Findings]:
    """All parts, measured side by side: the longest task, and the judge that others wait for, come first."""
    flow = pool.submit(draw_samples, folder, "flow", samples, progress)
    judge = pool.submit(make_evaluator, folder, judge_steps, progress)
    autoregressive = pool.submit(draw_samples, folder, "ar", samples, progress)
    others = [
        pool.submit(measure_photos, folder, network, progress),
        pool.submit(measure_captions, folder, samples, progress),
        pool.submit(measure_stores, folder),
    ]
    evaluator = judge.result()
    ceilings = {name: pool.submit(measure_tokenizer, folder, name, evaluator, progress) for name in TOKENIZERS}
    others += [*ceilings.values(), pool.submit(measure_copies_control, evaluator)]
    for drawn in (autoregressive.result(), flow.result()):
        ceiling = ceilings[GENERATORS[drawn.name]].result()
        others.append(pool.submit(measure_samples, drawn, evaluator, ceiling))
    return [evaluator.findings, *(part.result() for part in others)]


def _require_runs(folder: Path) -> None:
    parts = {f"{data}_{name}": "tokenizer" for data in ("photos", "shapes") for name in TOKENIZERS}
    for run, part in (parts | {f"shapes_{name}": "generator" for name in GENERATORS}).items():
        if not (folder / run / part / "config.json").is_file():
            raise ValueError(f"{folder / run}: holds no {part}; let the demo finish training")


def _environment(network: Perceptual | None) -> dict[str, str | int]:
    bfloat16 = "bfloat16 arithmetic" if computes_bfloat16("cpu") else "no bfloat16 arithmetic"
    packages = ("tokenizers-mm", "torch", "torchvision", "timm", "numpy", "pillow")
    return {
        **{package: version(package) for package in packages},
        "python": platform.python_version(),
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {bfloat16}",
        "cores": os.cpu_count() or 1,
        "date": datetime.date.today().isoformat(),
        "perceptual": network.name if network else "",
    }
