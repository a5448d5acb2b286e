"""Rate and distortion of seven bottlenecks in one encoder and decoder, on emoji and photographs, beside JPEG and WebP.

python benchmarks/studies/rate_distortion.py --out benchmarks/results/2026-11-25-rate-distortion.json

About 30 minutes on one CPU core. Beside the record it writes a plot (.png) and a table (.md) of the same name.
--resume      keep the runs that the record holds already with the same recipe
--only GROUP  emoji, photos-f8, photos-f4 or curve (LFQ and BSQ over their entropy terms); may be repeated
--steps N     shorten every run, to try the program out
"""

import shutil
import time

import torch
from rate_distortion_data import codecs, figures, images_of
from rate_distortion_plan import runs
from rate_distortion_report import draw, table
from record import Record, arguments, write

from recipes.programs import train_tokenizer
from recipes.schema import TokenizerRecipe
from tokenizers_mm.config import parse

GROUPS = ("emoji", "curve", "photos-f8", "photos-f4")
RATES = {"emoji": 0.625, "photos-f8": 0.15625, "photos-f4": 0.625}


def main():
    options = arguments(__doc__, "runs/rate-distortion", GROUPS, "GROUP")
    torch.set_num_threads(1)
    command = f"python benchmarks/studies/rate_distortion.py --out benchmarks/results/{options.out.name}"
    record = Record(options.out, command, with_runs=options.resume)
    baselines = record.data.setdefault("codecs", {})
    for group in options.only:
        if group in RATES and group not in baselines:
            baselines[group] = codecs(group, RATES[group])
    for run in runs(options.steps):
        if run.group not in options.only:
            continue
        if options.resume and record.has(run.key, run.recipe):
            print(f"{run.key}: recorded already", flush=True)
            continue
        record.add(run.key, run.recipe, measured(run, options.work / run.key))
    record.write()
    write(options.out.with_suffix(".md"), table(record.data))
    draw(record.data, options.out.with_suffix(".png"))
    print(f"wrote {options.out} and beside it .md and .png")


def measured(run, folder):
    """Train one tokenizer from scratch and measure it on what it has never seen."""
    shutil.rmtree(folder, ignore_errors=True)
    began, cpu = time.perf_counter(), time.process_time()
    tokenizer = train_tokenizer(parse(TokenizerRecipe, run.recipe, run.key), folder).eval()
    row = {
        "group": run.group,
        "name": run.name,
        "change": run.change,
        "parameters": sum(p.numel() for p in tokenizer.parameters()),
        "train_seconds": round(time.perf_counter() - began, 1),
        "train_cpu_seconds": round(time.process_time() - cpu, 1),
        "held_out": {name: figures(tokenizer, images) for name, images in images_of(run.group).items()},
    }
    said = ", ".join(f"{name} {found['psnr']:.2f} dB" for name, found in row["held_out"].items())
    print(f"{run.key}: {said} ({row['train_seconds']:.0f} s)", flush=True)
    return row


if __name__ == "__main__":
    main()
