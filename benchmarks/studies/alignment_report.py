"""The alignment study as a reader wants it: a Markdown table of every weight, and the curves."""

from statistics import mean

from plots import plt

# What alignment must give, in points of the probe, and may cost, in decibels.
GAIN, LOSS = 4.0, 0.7
_DISTANCES = {"FD-judge": 1, "FD-Lite0": 1, "FD-pixels": 4}  # and the digits that are said
_COLOURS = ("#1f6f8b", "#d1495b")


def table(record):
    """Markdown: the curve over the weight, then the generators."""
    lines = [f"# Alignment, {record['date']}", "", f"`{record['command']}`", "", caption(record), ""]
    for dim, groups in by_dim(record, "tokenizer").items():
        lines += [f"## Tokenizers of {dim} channels", "", *_tokenizers(groups), ""]
    generators = by_dim(record, "generator")
    if generators:
        lines += ["## Generators on their latents", "", *_generators(generators, record.get("real", {})), ""]
    losses = [run for run in record["runs"].values() if run["kind"] == "loss"]
    if losses:
        lines += ["## Losses, on validation images", "", *_losses(losses), ""]
    return "\n".join(lines)


def by_dim(record, kind):
    """Channels -> weight -> the runs of all seeds, in order."""
    rows = [run for run in record["runs"].values() if run["kind"] == kind]
    found = {}
    for run in sorted(rows, key=lambda run: (run["dim"], run["weight"], run["seed"])):
        found.setdefault(run["dim"], {}).setdefault(run["weight"], []).append(run)
    return found


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


def _generators(by_channels, real):
    names = {f"{name}{of}": digits for name, digits in _DISTANCES.items() for of in ("", " of reconstructions")}
    lines = [f"| channels | weight | seeds | {' | '.join(names)} | judged right, % |", "|" + "---|" * (4 + len(names))]
    for dim, groups in by_channels.items():
        for weight, rows in groups.items():
            cells = [spread([row[name] for row in rows], digits) for name, digits in names.items()]
            cells.append(spread([row["judged"] for row in rows], 1))
            lines.append(f"| {dim} | {weight:g} | {len(rows)} | {' | '.join(cells)} |")
    if real:
        cells = [f"{real[name]:.{digits}f} | " for name, digits in _DISTANCES.items()]
        lines.append(f"| real images | | | {' | '.join(cells)} | {real['judged']:.1f} |")
    lines += ["", _about(by_channels), ""]
    for dim, groups in by_channels.items():
        for weight in (weight for weight in groups if weight):
            said = [
                f"{name} {spread(differences(groups, name)[weight], digits)}"
                for name, digits in (_DISTANCES | {"judged": 1}).items()
            ]
            lines.append(f"- {dim} channels, weight {weight:g} against 0: {', '.join(said)}")
    return lines


def _about(by_channels):
    count = next(iter(next(iter(by_channels.values())).values()))[0]["samples"]
    return (
        f"{count} samples, no guidance, equal steps; distances to the test images, less is better. The judge is a "
        "classifier of other real images, FD-judge is the distance in its features, and judged right are samples of "
        "the class that was asked for. Lite0 is the teacher as well."
    )


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
    """Probe against PSNR, and the distances of the generators."""
    tokenizers, generators = by_dim(record, "tokenizer"), by_dim(record, "generator")
    count = 1 + (len(_DISTANCES) if generators else 0)
    figure, places = plt.subplots(1, count, figsize=(3.6 * count + 1, 4.0), squeeze=False)
    for dim, colour in zip(tokenizers, _COLOURS, strict=False):
        _draw_curve(places[0][0], tokenizers[dim], dim, colour)
    places[0][0].set(title="Alignment at these weights", xlabel="PSNR, dB", ylabel="linear probe, %")
    places[0][0].legend(fontsize=8)
    for axes, name in zip(places[0][1:], _DISTANCES, strict=False):
        _draw_distances(axes, generators, name, record.get("real", {}))
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_curve(axes, groups, dim, colour):
    for rows in groups.values():
        axes.plot([r["psnr"] for r in rows], [r["probe"] for r in rows], "o", color=colour, markersize=4, alpha=0.5)
    points = [(mean(r["psnr"] for r in rows), mean(r["probe"] for r in rows)) for rows in groups.values()]
    axes.plot([x for x, _ in points], [y for _, y in points], "-", color=colour, label=f"{dim} channels")
    for weight, point in zip(groups, points, strict=True):
        axes.annotate(f"{weight:g}", point, textcoords="offset points", xytext=(5, 4), fontsize=8)
    axes.grid(alpha=0.3)


def _draw_distances(axes, by_channels, name, real):
    for (dim, groups), colour in zip(by_channels.items(), _COLOURS, strict=False):
        for place, rows in enumerate(groups.values()):
            axes.plot(
                [place] * len(rows), [row[name] for row in rows], "o", color=colour,
                label="" if place else f"samples, {dim} channels",
            )  # fmt: skip
            floor = [row[f"{name} of reconstructions"] for row in rows]
            axes.plot([place] * len(rows), floor, "_", color=colour, label="" if place else "reconstructions")
    if real:
        axes.axhline(real[name], color="#bbbbbb", linewidth=1, label="real images")
    weights = list(next(iter(by_channels.values())))
    axes.set(title=f"{name} of generators", xlabel="weight of the alignment", xlim=(-0.5, len(weights) - 0.5))
    axes.set_ylim(bottom=0)
    axes.set_xticks(range(len(weights)), [f"{weight:g}" for weight in weights])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
