"""Functions timed in turns, in one process; a table at the end and a dated record of the run.

All candidates must give the same result before they are timed: a test asserts that first, and a run in which anything
failed records nothing. The machine may be busy, but all candidates meet the same load, so the ratios are what counts.
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
from torch.profiler import ProfilerActivity, profile

PACKAGES = ("tokenizers-mm", "torch", "numpy", "pyarrow", "vector-quantize-pytorch", "faiss-cpu", "diffusers")
ROWS = pytest.StashKey[list]()
torch.set_num_threads(1)


@pytest.fixture
def compare(benchmark, request):
    """Function (name, {candidate: function}, rounds, **notes) that times all alternately; the first one is ours.

    Notes go into the record. Two of them mean something here: `aims`, {candidate: the ratio to ours that was aimed at},
    and `limits`, {name: (milliseconds from the measured ones, the most that ours should take of that)}.
    """

    def timed(name, candidates, *, rounds=7, aims=None, limits=None, **notes):
        (ours, run_ours), *others = candidates.items()
        seconds = {candidate: [] for candidate in candidates}

        def the_others():
            for candidate, run in others:
                began = time.perf_counter()
                run()
                seconds[candidate].append(time.perf_counter() - began)

        benchmark.pedantic(run_ours, setup=the_others, rounds=rounds, warmup_rounds=1)
        if not benchmark.enabled:
            return
        assert all(len(seconds[candidate]) == 1 + rounds for candidate, _ in others), (
            "the first of each candidate is the warm-up"
        )
        ms = {ours: 1e3 * benchmark.stats.stats.median}
        ms |= {candidate: 1e3 * statistics.median(seconds[candidate][1:]) for candidate, _ in others}
        row = {
            "name": name,
            "threads": torch.get_num_threads(),
            "rounds": rounds,
            "ms": {candidate: round(value, 4) for candidate, value in ms.items()},
            "times_ours": {candidate: round(ms[candidate] / ms[ours], 3) for candidate, _ in others},
            **({"aims": aims} if aims else {}),
            **notes,
        }
        if limits:
            row["of_limit"] = {key: round(found(ms), 3) for key, (found, _) in limits.items()}
            row["of_limit_aims"] = {key: aim for key, (_, aim) in limits.items()}
        if "images" in notes:
            row["images_per_second"] = {
                candidate: round(1e3 * notes["images"] / value) for candidate, value in ms.items()
            }
        benchmark.extra_info.update(row)
        request.config.stash[ROWS].append(row)

    return timed


def peak_mib(function):
    """Most memory in MiB that one call held beyond what was there before.

    The larger of what torch allocated and of what the process grew by: the first misses other allocators, the second
    misses memory that the process had kept.
    """
    function()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _high_water()
    function()
    grown = (_high_water() - before) / 1024
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).cumsum(0)
    return round(max(grown, int(held.max()) / 2**20 if len(held) else 0.0), 2)


def _high_water():
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@pytest.fixture
def peak():
    return peak_mib


@pytest.fixture(autouse=True)
def _same_random_numbers():
    torch.manual_seed(0)


def pytest_configure(config):
    config.stash[ROWS] = []


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    rows = config.stash[ROWS]
    if not rows:
        return
    terminalreporter.section("medians in ms; times ours above 1: ours is faster")
    terminalreporter.write_line(table(rows))
    if exitstatus:
        terminalreporter.write_line("not recorded: something failed")
        return
    # All comparisons, or one folder of them, which has a record of its own.
    here = Path(__file__).parent
    suites = {here: ""} | {path: f"-{path.name}" for path in here.iterdir() if (path / "conftest.py").exists()}
    asked = [Path(name).resolve() for name in config.args]
    if config.getoption("keyword") or len(asked) != 1 or asked[0] not in suites:
        terminalreporter.write_line("not recorded: a part of the comparisons would replace the whole")
        return
    cpu, today = processor(), datetime.date.today().isoformat()
    record = {
        "date": today,
        "processor": cpu,
        "flags": sorted(set(re.findall(r"\b(?:avx2|fma|avx512f|avx512bw|avx512_bf16|amx_tile)\b", _cpuinfo()))),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "comparisons": rows,
    }
    slug = re.sub(r"[^a-z0-9]+", "-", cpu.lower()).strip("-")
    path = Path(__file__).parent / "results" / f"{today}-{slug}{suites[asked[0]]}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    terminalreporter.write_line(f"recorded in {path}")


def table(rows):
    """Markdown: one line a candidate other than ours."""
    lines = ["| comparison | ours, ms | other | other, ms | times ours | aim |", "|---|--:|---|--:|--:|--:|"]
    for row in rows:
        ours = next(iter(row["ms"].values()))
        for candidate, ratio in row["times_ours"].items():
            aim = row.get("aims", {}).get(candidate, "")
            lines.append(
                f"| {row['name']} | {ours:.4g} | {candidate} | {row['ms'][candidate]:.4g} | {ratio:.2f} | {aim} |"
            )
        for name, share in row.get("of_limit", {}).items():
            aim = row["of_limit_aims"][name]
            lines.append(f"| {row['name']} | {ours:.4g} | {name} | | takes {share:.2f} of it | {aim} |")
    return "\n".join(lines)


def processor():
    """Model of the processor, not the name of the machine."""
    found = re.search(r"model name\s*:\s*(.+)", _cpuinfo())
    return found[1] if found else platform.machine()


def _cpuinfo():
    info = Path("/proc/cpuinfo")
    return info.read_text() if info.exists() else ""
