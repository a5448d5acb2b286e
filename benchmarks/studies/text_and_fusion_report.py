"""The study of text contrast and fused halves as a reader wants it: Markdown tables, and one picture."""

from plots import plt, save

FIGURES = {
    "psnr": "PSNR dB", "tokens_folds": "probe, 5 folds", "tokens_all": "probe, 5 folds of all",
    "tokens_probe": "probe, from training images",
    "head_folds": "head, 5 folds", "head_all": "head, 5 folds of all", "head_probe": "head, from training images",
    "zero_shot": "zero-shot",
    "usage": "usage", "bits_per_image": "bits/image",
}  # fmt: skip
_FUSED_BARS = "Bar: probe within 2 points of semantic-only, PSNR within .3 dB of perceptual-only."


def table(record):
    """Markdown: every group that was measured."""
    runs = list(record["runs"].values())
    lines = [f"# Text contrast and fused halves, {record['date']}", "", f"`{record['command']}`", ""]
    lines += [f"{record['processor']}, {record['threads']} thread, torch {record['versions']['torch']}. Means over "
              "seeds (lowest to highest). Probes and zero-shot in percent of held-out images.", ""]  # fmt: skip
    sections = {
        "Emoji: the weight of the text contrast": (_of(runs, "text"), _text_notes),
        "Emoji: BSQ with contrast, and a semantic head on frozen codes": (_of(runs, "emoji"), _other_notes),
        "Fashion-MNIST: the halves": (_of(runs, "half"), lambda rows: []),
        "Fashion-MNIST: fused": (_of(runs, "fused"), lambda rows: _fused_notes(rows, _of(runs, "half"))),
    }
    for title, (rows, notes) in sections.items():
        if rows:
            lines += [f"## {title}", "", *_rows(rows), "", *notes(rows), ""]
    return "\n".join(lines)


def by_name(rows):
    """Runs of one name, in order, whatever their seed."""
    found = {}
    for row in rows:
        found.setdefault(row["name"], []).append(row)
    return found


def mean(rows, figure):
    """Mean over the runs that have it, None where none has."""
    values = [row[figure] for row in rows if row.get(figure) is not None]
    return sum(values) / len(values) if values else None


def gains(rows, figure, base="0"):
    """Change of a figure against the runs called `base`, of the same seeds only: name -> [change of each seed]."""
    named = by_name(rows)
    start = {row["seed"]: row[figure] for row in named.get(base, []) if row.get(figure) is not None}
    return {name: [row[figure] - start[row["seed"]] for row in group if row["seed"] in start]
            for name, group in named.items() if name != base}  # fmt: skip


def _of(runs, group):
    return [row for row in runs if row["group"] == group]


def _rows(rows):
    shown = [figure for figure in FIGURES if any(row.get(figure) is not None for row in rows)]
    lines = [f"| | {' | '.join(FIGURES[figure] for figure in shown)} | seeds |", "|" + "---|" * (len(shown) + 2)]
    for name, group in by_name(rows).items():
        cells = [_cell(group, figure) for figure in shown]
        lines.append(f"| {name} | {' | '.join(cells)} | {len(group)} |")
    return lines


def _cell(rows, figure):
    values = [row[figure] for row in rows if row.get(figure) is not None]
    if not values:
        return ""
    if figure == "bits_per_image":
        return f"{values[0]:.0f}"
    if figure == "usage":
        return f"{100 * min(values):.0f} %"
    digits = 2 if figure == "psnr" else 1
    spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.{digits}f}{spread}"


def _text_notes(rows):
    lines = [f"Always saying the most frequent group: {mean(rows, 'majority'):.1f} %. Against weight 0, pairs of runs "
             "with one seed:", ""]  # fmt: skip
    psnrs = gains(rows, "psnr")
    for name in psnrs:
        said = []
        for figure in ("tokens_folds", "tokens_all", "tokens_probe"):
            changes = gains(rows, figure)[name]
            said.append(f"{FIGURES[figure]} {_signed(changes, 1)} points")
        lines.append(f"- weight {name}: {_signed(psnrs[name], 2)} dB, {', '.join(said)}")
    return [
        *lines,
        "",
        "Bar: at least +5 points (5 folds) for at most .5 dB. Folds of the held-out images alone are small, "
        "and their figures scatter most.",
    ]


def _signed(values, digits):
    if not values:
        return "(not measured)"
    return f"{sum(values) / len(values):+.{digits}f} ({min(values):+.{digits}f} to {max(values):+.{digits}f})"


def _other_notes(rows):
    lines = []
    for row in by_name(rows).get("toklip", []):
        changes = [f"{row[f'tokens_{how}']:.1f} % and {row[f'head_{how}']:.1f} % ({FIGURES[f'tokens_{how}']})"
                   for how in ("folds", "all", "probe") if f"head_{how}" in row]  # fmt: skip
        lines.append("The codes under toklip are those of weight 0 above. Without and with the semantic encoder the "
                     f"probe gives {', '.join(changes)}.")  # fmt: skip
    return lines


def _fused_notes(rows, halves):
    named, lines = by_name(halves), [_FUSED_BARS, ""]
    semantic, perceptual = (named.get(name, []) for name in ("semantic", "perceptual"))
    for name, group in by_name(rows).items():
        losses = []
        for figure, base in (("tokens_probe", semantic), ("psnr", perceptual)):
            start = {row["seed"]: row[figure] for row in base}
            losses.append([row[figure] - start[row["seed"]] for row in group if row["seed"] in start])
        lines.append(f"- {name}: probe {_signed(losses[0], 1)} points, {_signed(losses[1], 2)} dB")
    return lines


def draw(record, path):
    """Probe against PSNR: the text contrast by weight, and halves and what they give together."""
    runs = list(record["runs"].values())
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
    text = by_name(_of(runs, "text"))
    for name, marker in (("tokens_folds", "o"), ("tokens_all", "^"), ("tokens_probe", "s")):
        places = [(mean(rows, "psnr"), mean(rows, name)) for rows in text.values()]
        if places:
            left.plot(*zip(*places, strict=True), marker=marker, label=FIGURES[name])
        for weight, place in zip(text, places, strict=True):
            left.annotate(weight, place, textcoords="offset points", xytext=(5, 4), fontsize=7)
    left.set(title="Emoji: pooled tokens, by the weight of the text contrast", xlabel="PSNR, dB", ylabel="probe, %")
    halves = by_name(_of(runs, "half"))
    for name, colour in (("semantic", "#d1495b"), ("perceptual", "#1f6f8b")):
        rows = halves.get(name, [])
        if mean(rows, "tokens_probe") is not None:
            right.axhline(mean(rows, "tokens_probe"), color=colour, linestyle=":", label=f"probe of {name}-only")
        if mean(rows, "psnr") is not None:
            right.axvline(mean(rows, "psnr"), color=colour, linestyle="--", label=f"PSNR of {name}-only")
    for (name, rows), marker in zip(by_name(_of(runs, "fused")).items(), "osD^", strict=False):
        right.scatter([row["psnr"] for row in rows], [row["tokens_probe"] for row in rows], marker=marker, label=name)
    right.set(title="Fashion-MNIST: fused halves", xlabel="PSNR, dB", ylabel="probe, %")
    for axes in (left, right):
        axes.title.set_fontsize(9)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    save(figure, path)
