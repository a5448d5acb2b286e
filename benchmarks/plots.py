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
    """Bars: their time over that of our kernel and of our whole module, with the aim as a tick."""
    rows = [row for row in record["comparisons"] if THEIRS in row.get("times_ours", {}) and row.get("aims")]
    figure, axes = plt.subplots(figsize=(9, 0.36 * len(rows) + 1.2), layout="constrained")
    for at, row in enumerate(rows):
        theirs, (module, *_) = row["ms"][THEIRS], row["ms"].values()
        kernel = row["ms"].get("nearest") or row["ms"].get("kernel")
        bars = [(theirs / module, OTHER if kernel else OURS, 0.2)] + ([(theirs / kernel, OURS, -0.2)] if kernel else [])
        for ratio, colour, shift in bars:
            axes.barh(at + (shift if kernel else 0), ratio, 0.38 if kernel else 0.6, color=colour)
            axes.text(ratio * 1.05, at + (shift if kernel else 0), f"{ratio:.3g}x", va="center", fontsize=7)
    names = [row["name"] for row in rows]
    axes.plot([row["aims"][THEIRS] for row in rows], range(len(rows)), "|", color=AIM, markersize=12, markeredgewidth=2)
    axes.set(yticks=range(len(rows)), yticklabels=names, xscale="log", xlim=(1, 600))
    axes.set_title(f"{THEIRS} (module, eval) takes this many times as long\n{caption(record)}", fontsize=10)
    keys = {"our kernel, or step": OURS, "our whole module": OTHER, "aim": AIM}
    axes.legend([plt.Rectangle((0, 0), 1, 1, color=colour) for colour in keys.values()], keys, loc="upper right")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)


def growth(record, path):
    """Log-log: milliseconds against vectors, rows and channels."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 4), layout="constrained", sharey=True)
    colours = {"native": OURS, "torch path": "#66a182", "cdist, argmin": AIM}
    for axes, sweep in zip(panels, ("N", "K", "d"), strict=True):
        rows = [row for row in record["comparisons"] if row.get("sweep") == sweep]
        for candidate, colour in colours.items():
            axes.loglog(
                [row["shape"][sweep] for row in rows],
                [row["ms"][candidate] for row in rows],
                "o-",
                color=colour,
                label=candidate,
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
