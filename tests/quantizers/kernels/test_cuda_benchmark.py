"""`make gpu` says so where there is no GPU; what it does is tried on the CPU, where the same public functions run."""

import functools
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
SMALL = {
    "search": [(64, 32, 8)],
    "residual": [(64, 2, 16, 8)],
    "vectors": [128],
    "bits": 6,
    "square": 64,
    "copy": 1024,
    "seconds": 0.0,
}


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu

    yield gpu
    for name in ("gpu", "gpu_parity"):
        sys.modules.pop(name, None)


@pytest.fixture
def few_checks(gpu, monkeypatch):
    import gpu_parity

    monkeypatch.setattr(gpu_parity, "SEARCHES", [(40, 30, 5), (1100, 64, 16)])
    monkeypatch.setattr(gpu_parity, "RESIDUALS", [(40, 2, 30, 5)])
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    return gpu_parity


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said_in_one_line(gpu, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [gpu.__file__])
    with pytest.raises(SystemExit) as end:  # a text: it goes to stderr, and the status is 1
        runpy.run_path(gpu.__file__, run_name="__main__")
    assert re.fullmatch(r"make gpu: no NVIDIA GPU[^\n]*", end.value.code)
    assert capsys.readouterr() == ("", "")


def test_make_has_the_target():
    makefile = (BENCHMARKS.parent / "Makefile").read_text()
    assert re.search(r"^gpu: \.venv/ready .*\n\t\$\(BIN\)/python benchmarks/gpu\.py$", makefile, re.MULTILINE)


def test_a_whole_run(gpu, few_checks, capsys):
    record = json.loads(json.dumps(gpu.run("cpu", SMALL)))
    works = {row["work"] for row in record["rows"]}
    assert len(works) == 5
    assert all(row["ms"] > 0 for row in record["rows"])
    assert {row["side"] for row in record["rows"]} >= {gpu.OURS, gpu.THEIRS, "product float32, argmin"}
    ours = [row for row in record["rows"] if row["side"] == gpu.OURS]
    assert all(row["times_ours"] == 1 and row["gb_per_s"] > 0 for row in ours)
    roof, first = record["roof"], ours[0]
    assert first["tflop_per_s"] == pytest.approx(2 * 64 * 32 * 8 / first["ms"] / 1e9)
    assert first["of_tf32"] == pytest.approx(3 * first["tflop_per_s"] / roof["tf32_tflop_per_s"])
    assert first["of_copy"] == pytest.approx(first["gb_per_s"] / roof["copy_gb_per_s"])
    assert len(record["parity"]) > 15
    assert "FAILED" not in capsys.readouterr().out


def wrong_nearest(z, codebook, *, metric="euclidean"):
    return torch.full((len(z),), len(codebook) - 1)


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("nearest", wrong_nearest, "wrong codes"),
        ("residual_encode", lambda z, e: (torch.zeros(len(z), len(e), dtype=torch.int64), z), "wrong codes"),
        ("scalar_quantize", lambda z, *rest: (z, torch.zeros(len(z), dtype=torch.int64)), None),
    ],
)
def test_nothing_is_timed_after_a_failure(gpu, few_checks, monkeypatch, name, wrong, said):
    if said is None:  # the reference is asked for by the same name, so here it has to be the switch that changes it
        monkeypatch.setattr(few_checks, "same", lambda *_, **__: "3 values differ")
        said = "3 values differ"
    else:
        monkeypatch.setattr(few_checks, name, wrong)
    monkeypatch.setattr(gpu, "Bench", None)
    with pytest.raises(SystemExit, match=f"parity failed.*{said}.*nothing was timed"):
        gpu.run("cpu", SMALL)


def test_same_tells_a_difference(few_checks):
    from quantizers.kernels import backend

    def depends(z):
        return (z, torch.full((len(z),), int(backend(z.device) == "torch")))

    assert few_checks.same(lambda z: (z, z), torch.ones(3)) is None
    if backend(torch.device("cpu")) != "torch":
        assert few_checks.same(depends, torch.ones(3)) == "3 values differ from the torch reference"


def test_ties_are_excused_and_errors_are_not(few_checks):
    z, codebook = torch.randn(50, 8), torch.randn(40, 8)
    codebook[7] = codebook[3]
    best = torch.cdist(z.double(), codebook.double()).argmin(1)
    assert few_checks.untied(best, z, codebook) == (0, 0)
    swapped = torch.where(best == 3, 7, best)
    assert few_checks.untied(swapped, z, codebook)[0] == 0
    assert few_checks.untied((best + 1) % 40, z, codebook)[0] > 40


def test_table(gpu):
    rows = [
        {"work": "a", "side": "ours", "ms": 1.23456, "times_ours": 1.0, "extra_mib": 2.5, "of_copy": 0.5},
        {"work": "a", "side": "theirs", "ms": gpu.NO_MEMORY, "extra_mib": None},
    ]
    head, rule, *lines = gpu.table(rows).splitlines()
    assert head.count("|") == rule.count("|") == lines[0].count("|") == lines[1].count("|")
    assert lines[0] == "| a | ours | 1.235 | 1 | 2.5 |  |  |  | 50% |"
    assert "out of memory" in lines[1]


def test_a_side_that_does_not_fit_memory_is_named_so(gpu, monkeypatch):
    def too_large():
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    bench = gpu.Bench("cpu", SMALL)
    bench.compare("work", {gpu.OURS: lambda: None, "large": too_large}, flop=10, traffic=10)
    ours, large = bench.rows
    assert large["ms"] == gpu.NO_MEMORY
    assert "times_ours" not in large
    assert ours["times_ours"] == 1
