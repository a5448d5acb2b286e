"""The character study as a reader wants it: a Markdown table, and accuracy over bits."""

import numpy as np
from plots import COLOURS, LABELS, plt, save


def table(record):
    """Markdown: what the reader reads of originals, then every tokenizer, and the codecs at the same bits."""
    lines = [f"# Characters that survive, {record['date']}", "", f"`{record['command']}`", "", caption(record), ""]
    lines += ["| bottleneck | bits an image | characters read | PSNR dB | train CPU s |", "|---|---|---|---|---|"]
    for row in sorted(record["runs"].values(), key=lambda row: (row["bits"], row["bits_per_image"])):
        lines.append(
            f"| {LABELS[row['name']]} | {row['bits_per_image']:.0f} | {100 * row['accuracy']:.1f} %{_sampled(row)} | "
            f"{row['psnr']:.2f} | {row['train_cpu_seconds']:.0f} |"
        )
    for rate in sorted({row["bits_per_image"] for row in record["runs"].values() if row["name"] == "fsq"}):
        for codec, points in record["codecs"].items():
            accuracy, psnr = (at_rate(points, rate, name) for name in ("accuracy", "psnr"))
            if accuracy is not None:
                lines.append(f"| {LABELS[codec]}, interpolated | {rate:.0f} | {100 * accuracy:.1f} % | {psnr:.2f} | |")
    return "\n".join([*lines, ""])


def at_rate(points, bits, name):
    """The value of the codec at just this rate, between its qualities; None outside them."""
    places = [point["bits_per_image"] for point in points]
    if not places[0] <= bits <= places[-1]:
        return None
    return float(np.interp(bits, places, [point[name] for point in points]))


def draw(record, path):
    """Accuracy over bits an image, with the reader on originals and on shuffled pictures as lines."""
    figure, axes = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
    anchors = record["anchors"]
    for name, style, side in (("originals", "-", "top"), ("shuffled", ":", "bottom")):
        axes.axhline(100 * anchors[name], color="#bbbbbb", linestyle=style, linewidth=1)
        axes.text(0.01, 100 * anchors[name], f"reader on {name}", va=side, fontsize=7, color="#777777",
                  transform=axes.get_yaxis_transform())  # fmt: skip
    for codec, points in record["codecs"].items():
        axes.plot([p["bits_per_image"] for p in points], [100 * p["accuracy"] for p in points], color=COLOURS[codec],
                  label=LABELS[codec], zorder=1)  # fmt: skip
    for name in dict.fromkeys(row["name"] for row in record["runs"].values()):
        rows = sorted((row for row in record["runs"].values() if row["name"] == name), key=lambda row: row["bits"])
        axes.plot([r["bits_per_image"] for r in rows], [100 * r["accuracy"] for r in rows], "o-", color=COLOURS[name],
                  label=LABELS[name], linewidth=1, zorder=3)  # fmt: skip
    axes.set(xlabel="bits an image (VAE: KL)", ylabel="characters read, %", ylim=(0, 103), xscale="log")
    axes.set_title("Characters of held-out words that a reader finds in reconstructions, 32x96, f4", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower center")
    save(figure, path)


def caption(record):
    """What the numbers stand beside."""
    anchors = record["anchors"]
    return (
        f"{record['processor']}, {record['threads']} thread, torch {record['versions']['torch']}, one seed. "
        f"{anchors['characters']} characters of held-out words; the reader, which was trained on other words and on no "
        f"reconstruction, reads {100 * anchors['originals']:.1f} % of the originals, {100 * anchors['shuffled']:.1f} % "
        f"where pictures and words are shuffled, {100 * anchors['blank']:.1f} % of blank pictures."
    )


def _sampled(row):
    return f" ({100 * row['accuracy_of_samples']:.1f} % of samples)" if "accuracy_of_samples" in row else ""
