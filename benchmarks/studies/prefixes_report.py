"""The prefix study as a reader wants it: Markdown tables, and PSNR and distance over the number of tokens."""

from itertools import pairwise

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TITLES = {
    "pixels": "nested, pixel decoder",
    "titok": "not nested (TiTok), pixel decoder",
    "flow": "nested, flow decoder",
    "rae": "RAE, Lite0",
    "rae-random": "RAE, random weights",
}
COLOURS = {"pixels": "#1f6f8b", "titok": "#999999", "flow": "#d1495b"}


def table(record):
    """Markdown: every number of tokens, then what frozen features give."""
    lines = [f"# Prefixes, {record['date']}", "", f"`{record['command']}`", "", caption(record), ""]
    prefixes = {kind: rows for kind, rows in _by_kind(record).items() if "tokens" in rows[0]}
    if prefixes:
        tokens = next(iter(prefixes.values()))[0]["tokens"]
        lines += [f"| tokens kept | {' | '.join(map(str, tokens))} | rises with every token |"]
        lines += ["|" + "---|" * (len(tokens) + 2)]
        for kind, rows in prefixes.items():
            least = min(least_step(row["psnr"]) for row in rows)
            rises = (
                f"{sum(least_step(row['psnr']) > 0 for row in rows)} of {len(rows)} seeds, least step {least:+.3f} dB"
            )
            lines.append(f"| {TITLES[kind]}, PSNR dB | {' | '.join(_spread(rows, 'psnr', 2))} | {rises} |")
            lines.append(f"| {TITLES[kind]}, distance | {' | '.join(_spread(rows, 'distance', 1))} | |")
        lines.append("")
    frozen = {kind: rows for kind, rows in _by_kind(record).items() if "probe" in rows[0]}
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


def draw(record, path):
    """PSNR and distance over the number of tokens; lines are means over seeds, bands from least to most."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    anchors = record["anchors"]
    for axes, name, label in zip(panels, ("psnr", "distance"), ("PSNR, dB", anchors["distance_name"]), strict=True):
        for kind, rows in _by_kind(record).items():
            if "tokens" not in rows[0]:
                continue
            found = zip(rows[0]["tokens"], zip(*(row[name] for row in rows), strict=True), strict=True)
            places, values = zip(*((place, v) for place, v in found if None not in v), strict=True)
            axes.plot(places, [sum(v) / len(v) for v in values], "o-", color=COLOURS[kind], label=TITLES[kind])
            axes.fill_between(places, list(map(min, values)), list(map(max, values)), color=COLOURS[kind], alpha=0.2)
        axes.set(xlabel="tokens kept, 16 bits each", ylabel=label)
        axes.grid(alpha=0.3)
    panels[0].axhline(anchors["mean_picture_psnr"], color="#bbbbbb", linewidth=1, label="mean picture")
    panels[1].axhline(anchors["training_images_distance"], color="#bbbbbb", linewidth=1, label="other real emoji")
    for axes in panels:
        axes.legend(fontsize=7)
    figure.suptitle("Held-out emoji, 32x32, from the first tokens alone", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def caption(record):
    """What the numbers stand beside."""
    anchors = record["anchors"]
    return (
        f"{record['processor']}, {record['threads']} thread, torch {record['versions']['torch']}. "
        f"{anchors['images']} held-out emoji, 32x32; mean over seeds (least to most). Distance: "
        f"{anchors['distance_name']} of as many reconstructions; other real emoji are at "
        f"{anchors['training_images_distance']:.1f}. One mean picture for all has "
        f"{anchors['mean_picture_psnr']:.2f} dB. Without nesting, missing tokens are replaced by their means."
    )


def _by_kind(record):
    found = {}
    for kind in TITLES:
        rows = [row for row in record["runs"].values() if row["kind"] == kind]
        if rows:
            found[kind] = sorted(rows, key=lambda row: row["seed"])
    return found


def _spread(rows, name, digits):
    for values in zip(*(row[name] for row in rows), strict=True):
        if None in values:
            yield ""
            continue
        mean = f"{sum(values) / len(values):.{digits}f}"
        yield mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def least_step(values):
    """The least that one more token adds; positive where the values rise with every one."""
    return min(b - a for a, b in pairwise(values))
