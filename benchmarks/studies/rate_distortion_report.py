"""The rate-distortion study as a reader wants it: a Markdown table of every group, and one picture."""

import math

from plots import COLOURS, LABELS, plt, save

from tokenizers_mm.measure import pareto_front

TITLES = {
    "emoji": "Held-out emoji, 32x32, f4",
    "photos-f8": "Held-out photographs, f8",
    "photos-f4": "Held-out photographs, f4",
}


def table(record):
    """Markdown: every group, then the curves."""
    lines = [f"# Rate and distortion, {record['date']}", "", f"`{record['command']}`", "", caption(record), ""]
    for group, title in TITLES.items():
        rows = [row for row in record["runs"].values() if row["group"] == group]
        if rows:
            lines += [f"## {title}", "", *_group_table(rows, record["codecs"].get(group, {})), ""]
    curve = [row for row in record["runs"].values() if row["group"] == "curve"]
    if curve:
        lines += ["## LFQ and BSQ over their entropy terms", "", *_curve_table(curve), ""]
    return "\n".join(lines)


def _group_table(rows, codecs):
    sets = list(rows[0]["held_out"])
    head = [f"{'' if len(sets) == 1 else name + ', '}PSNR dB" for name in sets]
    lines = [f"| bottleneck | bit/pixel | entropy | usage | {' | '.join(head)} | SSIM | train CPU s |"]
    lines.append("|" + "---|" * (6 + len(sets)))
    for row in rows:
        found = list(row["held_out"].values())
        psnr = [f"{one['psnr']:.2f}{_sampled(one)}" for one in found]
        lines.append(
            f"| {LABELS[row['name']]} | {_mean(found, 'bits_per_pixel'):.3f} | {_entropy(found)} | {_usage(found)} | "
            f"{' | '.join(psnr)} | {_mean(found, 'ssim'):.3f} | {row['train_cpu_seconds']:.0f} |"
        )
    for codec in ("jpeg", "webp"):
        points = [codecs[f"{name}/{codec}"]["at_rate"] for name in sets if f"{name}/{codec}" in codecs]
        if len(points) == len(sets) and all(points):
            rates, values = (
                _mean(points, "bpp"),
                " | ".join(f"{point['psnr']:.2f}{_between(point)}" for point in points),
            )
            lines.append(f"| {LABELS[codec]} | {rates:.3f} | | | {values} | | |")
    return lines


def _curve_table(rows):
    lines = ["| bottleneck | change | usage | entropy, bit/pixel | PSNR dB |", "|---|---|---|---|---|"]
    for row in rows:
        found = row["held_out"]["emoji"]
        change = ", ".join(_words(name, value) for name, value in row["change"].items())
        lines.append(
            f"| {LABELS[row['name']]} | {change} | {100 * min(found['usage']):.0f} % | "
            f"{found['entropy_per_pixel']:.3f} | {found['psnr']:.2f} |"
        )
    return lines


def _words(name, value):
    return "no linear start" if name == "linear" else f"{name} {value:g}"


def _mean(found, name):
    return sum(one[name] for one in found) / len(found)


def _between(point):
    return f" ({point['interpolated']:.2f} interpolated)" if "interpolated" in point else ""


def _sampled(found):
    return f" ({found['psnr_of_samples']:.2f} sampled)" if "psnr_of_samples" in found else ""


def _usage(found):
    return f"{100 * min(min(one['usage']) for one in found):.0f} %" if "usage" in found[0] else ""


def _entropy(found):
    return f"{_mean(found, 'entropy_per_pixel'):.3f}" if "usage" in found[0] else ""


def draw(record, path):
    """Rate against PSNR for every group that was measured, then the curves of LFQ and BSQ."""
    groups = [group for group in TITLES if any(row["group"] == group for row in record["runs"].values())]
    curve = [row for row in record["runs"].values() if row["group"] == "curve"]
    panels = len(groups) + (2 if curve else 0)
    if not panels:
        return
    columns = min(panels, 3)
    figure, axes = plt.subplots(
        math.ceil(panels / columns), columns, figsize=(4.6 * columns, 3.9 * math.ceil(panels / columns)),
        layout="constrained", squeeze=False,
    )  # fmt: skip
    spare = iter(axes.flat)
    for group in groups:
        _draw_group(next(spare), record, group)
    for title, change in (("entropy weight", "entropy"), ("temperature", "temperature")) if curve else ():
        _draw_curve(next(spare), record, title, change)
    for unused in spare:
        unused.axis("off")
    figure.suptitle(caption(record), fontsize=9)
    save(figure, path)


def _draw_group(axes, record, group):
    rows = [row for row in record["runs"].values() if row["group"] == group]
    sets = list(rows[0]["held_out"])
    for codec in ("jpeg", "webp"):
        curves = [_front(record["codecs"][group][f"{name}/{codec}"]["curve"]) for name in sets]
        for points in curves:
            axes.plot([p["bpp"] for p in points], [p["psnr"] for p in points], color=COLOURS[codec], zorder=1,
                      label=LABELS[codec] if points is curves[0] else None)  # fmt: skip
    for row in rows:
        found = list(row["held_out"].values())
        for number, one in enumerate(found):
            axes.scatter(one["bits_per_pixel"], one["psnr"], color=COLOURS[row["name"]], marker="os^"[number], zorder=3,
                         s=30, label=None if number else LABELS[row["name"]])  # fmt: skip
            if "entropy_per_pixel" in one:
                axes.plot([one["entropy_per_pixel"], one["bits_per_pixel"]], [one["psnr"]] * 2, ":", zorder=2,
                          color=COLOURS[row["name"]], linewidth=1)  # fmt: skip
    shapes = (
        ""
        if len(sets) == 1
        else f" ({', '.join(f'{m} {n}' for m, n in zip(('circle', 'square'), sets, strict=False))})"
    )
    axes.set(
        title=TITLES[group] + shapes,
        xlabel="bits per pixel (dotted: down to the entropy of the codes)",
        ylabel="PSNR, dB",
    )
    axes.title.set_fontsize(9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _front(points):
    return pareto_front(points, lambda point: (point["bpp"], point["psnr"]))


def _draw_curve(axes, record, title, change):
    twin, values = axes.twinx(), []
    for name in ("lfq", "bsq"):
        points = _curve_points(record, name, change)
        places = [value for value, _ in points]
        used = [100 * min(found["usage"]) for _, found in points]
        psnr = [found["psnr"] for _, found in points]
        axes.plot(places, used, "o-", color=COLOURS[name], label=LABELS[name])
        twin.plot(places, psnr, "s--", color=COLOURS[name], markersize=4)
        values += psnr
    axes.axhline(80, color="#cccccc", linewidth=1)
    if change == "temperature":
        axes.set_xscale("log")
    else:
        axes.set_xscale("symlog", linthresh=2e-3)
        axes.set_xlim(left=-3e-4)
    axes.set(title=f"Emoji: usage and PSNR over {title}", xlabel=title, ylabel="usage in % (solid)", ylim=(0, 103))
    twin.set(ylabel="PSNR, dB (dashed)", ylim=(min(values) - 1.5, max(values) + 0.5))
    axes.title.set_fontsize(9)
    axes.legend(fontsize=7, loc="lower right")


def _curve_points(record, name, change):
    """Pairs (value, figures) by value; what the recipe itself says is a point of every curve."""
    rows = [row for row in record["runs"].values() if row["group"] == "curve" and row["name"] == name]
    table = record["runs"].get(f"emoji-{name}", {}).get("recipe", {}).get("model")
    chosen = [row for row in rows if set(row["change"]) == {change} or row["recipe"]["model"] == table]
    points = {row["recipe"]["model"]["bottleneck"][change]: row["held_out"]["emoji"] for row in chosen}
    return sorted(points.items())


def caption(record):
    return (
        f"{record['processor']}, {record['threads']} thread, torch {record['versions']['torch']}, one seed; "
        "equal encoder, decoder and steps within a group"
    )
