"""The alignment study as a reader wants it: a Markdown table of every weight, and the curves."""

from statistics import mean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# What alignment must give, in points of the probe, and may cost, in decibels.
GAIN, LOSS = 4.0, 0.7
_DISTANCES = {"FD-Lite0": 1, "FD-pixels": 4}  # and the digits that are said


def table(record):
    """Markdown: the curve over the weight, then the generators."""
    lines = [f"# Alignment, {record['date']}", "", f"`{record['command']}`", "", caption(record), ""]
    lines += ["## Tokenizers", "", *_tokenizers(by_weight(record, "tokenizer")), ""]
    generators = by_weight(record, "generator")
    if generators:
        lines += ["## Generators on their latents", "", *_generators(generators, record.get("real", {})), ""]
    losses = [run for run in record["runs"].values() if run["kind"] == "loss"]
    if losses:
        lines += ["## Losses, on validation images", "", *_losses(losses), ""]
    return "\n".join(lines)


def by_weight(record, kind):
    """Weight -> the runs of all seeds, in order of weight."""
    rows = sorted((run for run in record["runs"].values() if run["kind"] == kind), key=lambda run: run["weight"])
    return {
        weight: [run for run in rows if run["weight"] == weight] for weight in dict.fromkeys(r["weight"] for r in rows)
    }


def differences(groups, name):
    """Weight -> the difference to weight 0 with the same seed, of every seed that has both."""
    start = {run["seed"]: run[name] for run in groups.get(0.0, [])}
    return {
        weight: [run[name] - start[run["seed"]] for run in rows if run["seed"] in start]
        for weight, rows in groups.items()
    }


def caption(record):
    """What was done, in two sentences."""
    return (
        f"{record['processor']}, {record['threads']} thread, torch {record['versions']['torch']}. Means over seeds, "
        "the range in brackets; differences are between runs of one seed. Fashion-MNIST's test set; the probe reads "
        "mean-pooled latents, and was fitted on training images that the tokenizer has not seen."
    )


def _tokenizers(groups):
    gains, costs = differences(groups, "probe"), differences(groups, "psnr")
    lines = ["| weight | seeds | probe, % | gained, points | PSNR, dB | change, dB | KL, bit/pixel | met |"]
    lines.append("|" + "---|" * 8)
    for weight, rows in groups.items():
        gain, cost, rate = gains[weight], costs[weight], mean(run["kl_bits_per_pixel"] for run in rows)
        met = gain and mean(gain) >= GAIN and -mean(cost) <= LOSS
        lines.append(
            f"| {weight:g} | {len(rows)} | {spread([r['probe'] for r in rows], 1)} | {spread(gain, 1)} | "
            f"{spread([r['psnr'] for r in rows], 2)} | {spread(cost, 2)} | {rate:.3f} | "
            f"{'yes' if met and weight else 'no' if weight else ''} |"
        )
    first = next(iter(groups.values()))[0]
    wanted = f"met: at least {GAIN:g} points gained for at most {LOSS:g} dB"
    return [*lines, "", f"Chance {first['chance']:.1f} %; {wanted}."]


def _generators(groups, real):
    names = {f"{name}{of}": digits for name, digits in _DISTANCES.items() for of in ("", " of reconstructions")}
    lines = [f"| weight | seeds | {' | '.join(names)} |", "|" + "---|" * (2 + len(names))]
    for weight, rows in groups.items():
        cells = [spread([row[name] for row in rows], digits) for name, digits in names.items()]
        lines.append(f"| {weight:g} | {len(rows)} | {' | '.join(cells)} |")
    if real:
        lines.append(f"| real images | | {real['FD-Lite0']:.1f} | | {real['FD-pixels']:.4f} | |")
    count = next(iter(groups.values()))[0]["samples"]
    said = f"{count} samples, no guidance; distances to the test images, less is better. Lite0 is the teacher as well."
    changes = [
        f"- {name} at weight {weight:g} against weight 0: {spread(change, digits)}"
        for name, digits in _DISTANCES.items()
        for weight, change in differences(groups, name).items()
        if weight and change
    ]
    return [*lines, "", said, "", *changes]


def _losses(rows):
    lines = ["| loss | weight | probe, % | PSNR, dB |", "|---|---|---|---|"]
    lines += [f"| {row['name']} | {row['weight']:g} | {row['probe']:.1f} | {row['psnr']:.2f} |" for row in rows]
    return [*lines, "", "One seed. Projection by an MLP where nothing else is said; margins .25 and .5."]


def spread(values, digits):
    """Mean and range."""
    if not values:
        return ""
    said = f"{mean(values):.{digits}f}"
    return said if len(values) == 1 else f"{said} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def draw(record, path):
    """Probe against PSNR, and both distances of the generators."""
    tokenizers, generators = by_weight(record, "tokenizer"), by_weight(record, "generator")
    figure, places = plt.subplots(1, 3 if generators else 1, figsize=(12 if generators else 5.5, 4.2), squeeze=False)
    _draw_curve(places[0][0], tokenizers)
    for axes, name in zip(places[0][1:], _DISTANCES, strict=False):
        _draw_distances(axes, generators, name, record.get("real", {}))
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_curve(axes, groups):
    for rows in groups.values():
        axes.plot([r["psnr"] for r in rows], [r["probe"] for r in rows], "o", color="#3aa0c0", markersize=4, alpha=0.6)
    points = [(mean(r["psnr"] for r in rows), mean(r["probe"] for r in rows)) for rows in groups.values()]
    axes.plot([x for x, _ in points], [y for _, y in points], "-", color="#1f6f8b")
    for weight, point in zip(groups, points, strict=True):
        axes.annotate(f"{weight:g}", point, textcoords="offset points", xytext=(5, 4), fontsize=8)
    if 0.0 in groups:
        x, y = points[0]
        axes.axhline(y + GAIN, color="#bbbbbb", linewidth=1)
        axes.axvline(x - LOSS, color="#bbbbbb", linewidth=1)
    axes.set(title="Alignment at these weights", xlabel="PSNR, dB", ylabel="linear probe, %")
    axes.grid(alpha=0.3)


def _draw_distances(axes, groups, name, real):
    for place, rows in enumerate(groups.values()):
        axes.plot(
            [place] * len(rows), [row[name] for row in rows], "o", color="#1f6f8b", label="" if place else "samples"
        )
        floor = [row[f"{name} of reconstructions"] for row in rows]
        axes.plot([place] * len(rows), floor, "_", color="#d1495b", label="" if place else "reconstructions")
    if real:
        axes.axhline(real[name], color="#bbbbbb", linewidth=1, label="real images")
    axes.set(
        title=f"{name} of generators", xlabel="weight of the alignment", xlim=(-0.5, len(groups) - 0.5), ylim=(0, None)
    )
    axes.set_xticks(range(len(groups)), [f"{weight:g}" for weight in groups])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
