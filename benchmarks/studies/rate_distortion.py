"""Rate and distortion of seven bottlenecks in one encoder and decoder, on emoji and photographs, beside JPEG and WebP.

python benchmarks/studies/rate_distortion.py --out benchmarks/results/2026-11-25-rate-distortion.json

About 30 minutes on one CPU core. Beside the record it writes a plot (.png) and a table (.md) of the same name.
--resume      keep the runs that the record holds already with the same recipe
--only GROUP  emoji, photos-f8, photos-f4 or curve (LFQ and BSQ over their entropy terms); may be repeated
--steps N     shorten every run, to try the program out
"""

from program import begin, left_to_do, report, train
from rate_distortion_data import codecs, figures, images_of
from rate_distortion_plan import runs
from rate_distortion_report import draw, table

GROUPS = ("emoji", "curve", "photos-f8", "photos-f4")
RATES = {"emoji": 0.625, "photos-f8": 0.15625, "photos-f4": 0.625}


def main():
    options, record = begin("rate_distortion", __doc__, GROUPS, "GROUP")
    baselines = record.data.setdefault("codecs", {})
    for group in options.only:
        if group in RATES and group not in baselines:
            baselines[group] = codecs(group, RATES[group])
    for run in left_to_do(runs(options.steps), options, record, lambda run: run.group):
        record.add(run.key, run.recipe, measured(run, options.work / run.key))
    record.write()
    report(options, record, table, draw)


def measured(run, folder):
    """Train one tokenizer from scratch and measure it on what it has never seen."""
    tokenizer, seconds, cpu_seconds = train(run.key, run.recipe, folder)
    row = {
        "group": run.group,
        "name": run.name,
        "change": run.change,
        "parameters": sum(p.numel() for p in tokenizer.parameters()),
        "train_seconds": seconds,
        "train_cpu_seconds": cpu_seconds,
        "held_out": {name: figures(tokenizer, images) for name, images in images_of(run.group).items()},
    }
    said = ", ".join(f"{name} {found['psnr']:.2f} dB" for name, found in row["held_out"].items())
    print(f"{run.key}: {said} ({seconds:.0f} s)", flush=True)
    return row


if __name__ == "__main__":
    main()
