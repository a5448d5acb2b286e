"""Draw the newest record of `make bench`: how much faster the quantizers are, and how the search grows.

python benchmarks/plots.py [record.json]     writes quantizers-speed.png and quantizers-growth.png beside the record
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
THEIRS = "vector-quantize-pytorch"
OURS, OTHER, AIM = "#1f6f8b", "#c8d6dc", "#d1495b"


def newest_record():
    """The last record that holds quantizers; records are dated by their names."""
    for path in sorted(RESULTS.glob("????-??-??-*.json"), reverse=True):
        rows = json.loads(path.read_text()).get("comparisons", [])
        if any("sweep" in row for row in rows):
            return path
    raise SystemExit(f"{RESULTS}: no record of the quantizers; run `make bench` first")


def speed(record, path):
    """Bars: their time over ours, with the aim as a tick."""
    rows = [row for row in record["comparisons"] if THEIRS in row.get("times_ours", {}) and row.get("aims")]
    figure, axes = plt.subplots(figsize=(9, 0.28 * len(rows) + 1.2), layout="constrained")
    names, ratios = [row["name"] for row in rows], [row["times_ours"][THEIRS] for row in rows]
    axes.barh(names, ratios, color=OURS)
    axes.plot(
        [row["aims"][THEIRS] for row in rows], names, "|", color=AIM, markersize=11, markeredgewidth=2, label="aim"
    )
    for name, ratio in zip(names, ratios, strict=True):
        axes.text(ratio * 1.06, name, f"{ratio:.3g}x", va="center", fontsize=8)
    axes.set(
        xscale="log", xlim=(1, 3 * max(ratios)), title=f"{THEIRS} takes this many times as long\n{caption(record)}"
    )
    axes.invert_yaxis()
    axes.legend(loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def growth(record, path):
    """Log-log: milliseconds against vectors, rows and channels."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 4), layout="constrained", sharey=True)
    colours = {"native": OURS, "torch path": "#66a182", "cdist, argmin": AIM}
    for axes, sweep in zip(panels, ("N", "K", "d"), strict=True):
        rows = [row for row in record["comparisons"] if row.get("sweep") == sweep]
        for side, colour in colours.items():
            axes.loglog(
                [row["shape"][sweep] for row in rows], [row["ms"][side] for row in rows], "o-", color=colour, label=side
            )
        fixed = ", ".join(f"{key}={value}" for key, value in rows[0]["shape"].items() if key != sweep)
        axes.set(xlabel=f"{sweep}   ({fixed})")
        axes.grid(alpha=0.3, which="both")
    panels[0].set(ylabel="milliseconds")
    panels[0].legend()
    figure.suptitle(f"nearest code, {caption(record)}", fontsize=10)
    figure.savefig(path, dpi=110)


def caption(record):
    threads = {row["threads"] for row in record["comparisons"] if "aims" in row}
    return f"{record['processor']}, {max(threads)} threads, torch {record['versions']['torch']}, {record['date']}"


if __name__ == "__main__":
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else newest_record()
    found = json.loads(source.read_text())
    speed(found, source.parent / "quantizers-speed.png")
    growth(found, source.parent / "quantizers-growth.png")
    print(f"drew {source.name}")
