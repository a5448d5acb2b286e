"""The prefix study as a reader wants it: Markdown tables, and PSNR and distance over the number of tokens."""

from itertools import pairwise

from plots import plt, save

TITLES = {
    "pixels": "nested, pixel decoder",
    "titok": "not nested (TiTok), pixel decoder",
    "raster": "raster (ViT), pixel decoder",
    "flow": "nested, flow decoder",
    "rae": "RAE, Lite0",
    "rae-random": "RAE, random weights",
}
COLOURS = {"pixels": "#1f6f8b", "titok": "#999999", "raster": "#c98b2b", "flow": "#d1495b"}


def table(record):
    """Markdown: every share of the tokens, then what frozen features give."""
    lines = [f"# Prefixes, {record['date']}", "", f"`{record['command']}`", "", caption(record), ""]
    kinds = _by_kind(record)
    prefixes = {kind: rows for kind, rows in kinds.items() if "tokens" in rows[0]}
    if prefixes:
        lines += [f"| eighths of the tokens kept | {' | '.join(map(str, range(1, 9)))} | rises with every token |"]
        lines += ["|" + "---|" * 10]
        for kind, rows in prefixes.items():
            least = min(least_step(row["psnr"]) for row in rows)
            rises = (
                f"{sum(least_step(row['psnr']) > 0 for row in rows)} of {len(rows)} seeds, least step {least:+.3f} dB"
            )
            lines.append(f"| {TITLES[kind]}, PSNR dB | {' | '.join(_spread(rows, 'psnr', 2))} | {rises} |")
            lines.append(f"| {TITLES[kind]}, distance | {' | '.join(_spread(rows, 'distance', 1))} | |")
        lines += ["", *_ahead(prefixes), ""]
    frozen = {kind: rows for kind, rows in kinds.items() if "probe" in rows[0]}
    if frozen:
        lines += ["| frozen encoder | PSNR dB | distance | probe of the mean latent | most frequent group |"]
        lines += ["|---|---|---|---|---|"]
        for kind, rows in frozen.items():
            for row in rows:
                lines.append(
                    f"| {TITLES[kind]} | {row['psnr']:.2f} | {row['distance']:.1f} | {row['probe']:.1f} % | "
                    f"{row['majority']:.1f} % |"
                )
        lines.append("")
    return "\n".join(lines)


def _ahead(kinds):
    """How far nested tokens are ahead of the others, where a quarter of the tokens is kept and where all are."""
    for kind in ("titok", "raster"):
        if kind in kinds and "pixels" in kinds:
            seeds = {row["seed"]: row["psnr"] for row in kinds[kind]}
            pairs = [(row["psnr"], seeds[row["seed"]]) for row in kinds["pixels"] if row["seed"] in seeds]
            quarter, whole = (
                [ours[len(ours) // share - 1] - theirs[len(theirs) // share - 1] for ours, theirs in pairs]
                for share in (4, 1)
            )
            said = ", ".join(
                f"{sum(gains) / len(gains):+.2f} dB ({min(gains):+.2f} to {max(gains):+.2f}) {where}"
                for gains, where in ((quarter, "with a quarter of the tokens"), (whole, "with all"))
                if gains
            )
            yield f"- nested against {TITLES[kind].split(',')[0]}: {said}"


def draw(record, path):
    """PSNR and distance over the bits; lines are means over seeds, bands from least to most."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    anchors = record["anchors"]
    for axes, name, label in zip(panels, ("psnr", "distance"), ("PSNR, dB", anchors["distance_name"]), strict=True):
        for kind, rows in _by_kind(record).items():
            if "tokens" not in rows[0]:
                continue
            found = zip(rows[0]["bits"], zip(*(row[name] for row in rows), strict=True), strict=True)
            places, values = zip(*((place, v) for place, v in found if None not in v), strict=True)
            axes.plot(places, [sum(v) / len(v) for v in values], "o-", color=COLOURS[kind], label=TITLES[kind])
            axes.fill_between(places, list(map(min, values)), list(map(max, values)), color=COLOURS[kind], alpha=0.2)
        axes.set(xlabel="bits kept", ylabel=label)
        axes.grid(alpha=0.3)
    panels[0].axhline(anchors["mean_picture_psnr"], color="#bbbbbb", linewidth=1, label="mean picture")
    panels[1].axhline(anchors["training_images_distance"], color="#bbbbbb", linewidth=1, label="other real emoji")
    for axes in panels:
        axes.legend(fontsize=7)
    figure.suptitle("Held-out emoji, 32x32, from the first tokens alone", fontsize=9)
    save(figure, path)


def caption(record):
    """What the numbers stand beside."""
    anchors = record["anchors"]
    return (
        f"{record['processor']}, {record['threads']} thread, torch {record['versions']['torch']}. "
        f"{anchors['images']} held-out emoji, 32x32; mean over seeds (least to most). Distance: "
        f"{anchors['distance_name']} of as many reconstructions; other real emoji are at "
        f"{anchors['training_images_distance']:.1f}. One mean picture for all has "
        f"{anchors['mean_picture_psnr']:.2f} dB. Without nesting, missing tokens are replaced by their means; "
        "a raster has twice as many tokens of half the bits."
    )


def _by_kind(record):
    found = {}
    for kind in TITLES:
        rows = [row for row in record["runs"].values() if row["kind"] == kind]
        if rows:
            found[kind] = sorted(rows, key=lambda row: row["seed"])
    return found


def _spread(rows, name, digits):
    """Mean and range over seeds at every eighth of the tokens."""
    step = len(rows[0][name]) // 8
    for values in list(zip(*(row[name] for row in rows), strict=True))[step - 1 :: step]:
        if None in values:
            yield ""
            continue
        mean = f"{sum(values) / len(values):.{digits}f}"
        yield mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def least_step(values):
    """The least that one more token adds; positive where the values rise with every one."""
    return min(b - a for a, b in pairwise(values))
