"""Two functions timed in turns, in one process, on one thread; a table at the end and a dated record of the run.

Both sides must give the same result before they are timed: a test asserts that first, and a run in which anything
failed records nothing. The machine may be busy, but both sides meet the same load, so the ratio is what counts.
"""

import datetime
import json
import platform
import re
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

PACKAGES = ("tokenizers-mm", "torch", "numpy", "pyarrow", "vector-quantize-pytorch")
ROWS = pytest.StashKey[list]()
torch.set_num_threads(1)


@pytest.fixture
def compare(benchmark, request):
    """Function (name, A, B, a, b, rounds) that times B and A alternately; B / A above 1 says that A is faster."""

    def timed(name, ours, theirs, run_ours, run_theirs, *, rounds=7, **notes):
        seconds = []

        def other():
            began = time.perf_counter()
            run_theirs()
            seconds.append(time.perf_counter() - began)

        benchmark.pedantic(run_ours, setup=other, rounds=rounds, warmup_rounds=1)
        if not benchmark.enabled:
            return
        assert len(seconds) == 1 + rounds, "the first of each side is the warm-up"
        a, b = benchmark.stats.stats.median, statistics.median(seconds[1:])
        row = {
            "name": name,
            "A": ours,
            "B": theirs,
            "A_ms": round(1e3 * a, 3),
            "B_ms": round(1e3 * b, 3),
            "B_over_A": round(b / a, 2),
            "rounds": rounds,
            **notes,
        }
        if "images" in notes:
            row |= {
                "A_images_per_second": round(notes["images"] / a),
                "B_images_per_second": round(notes["images"] / b),
            }
        benchmark.extra_info.update(row)
        request.config.stash[ROWS].append(row)

    return timed


@pytest.fixture(autouse=True)
def _same_random_numbers():
    torch.manual_seed(0)


def pytest_configure(config):
    config.stash[ROWS] = []


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    rows = config.stash[ROWS]
    if not rows:
        return
    terminalreporter.section("medians in ms; B / A above 1: A is faster")
    terminalreporter.write_line(table(rows))
    if exitstatus:
        terminalreporter.write_line("not recorded: something failed")
        return
    cpu, today = processor(), datetime.date.today().isoformat()
    record = {
        "date": today,
        "processor": cpu,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "comparisons": rows,
    }
    slug = re.sub(r"[^a-z0-9]+", "-", cpu.lower()).strip("-")
    path = Path(__file__).parent / "results" / f"{today}-{slug}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    terminalreporter.write_line(f"recorded in {path}")


def table(rows):
    """Markdown."""
    lines = ["| comparison | A | B | A, ms | B, ms | B / A |", "|---|---|---|--:|--:|--:|"]
    for row in rows:
        cells = (row["name"], row["A"], row["B"], f"{row['A_ms']:.4g}", f"{row['B_ms']:.4g}", f"{row['B_over_A']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def processor():
    """Model of the processor, not the name of the machine."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.machine()
