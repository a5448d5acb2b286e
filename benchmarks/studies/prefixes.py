"""Do the first tokens alone make a picture? Nested query tokens on emoji, with two decoders, and their control.

python benchmarks/studies/prefixes.py --out benchmarks/results/2026-11-26-prefixes.json

Three seeds of FlexTok with a pixel decoder, of TiTok, whose tokens have no order, and of a ViT, whose tokens have that
of rows; one of FlexTok with its flow. For every number of tokens the PSNR of held-out emoji, for some the Frechet
distance of the pictures. Beside them RAE, whose latents are a frozen network's features, and RAE of random weights.
About 30 minutes on one CPU core. Beside the record it writes a plot (.png) and a table (.md) of the same name.
--resume   keep the runs that the record holds already with the same recipe
--only     pixels, titok, raster, flow, rae or rae-random; may be repeated
--steps N  shorten every run and measure on few images, to try the program out
"""

import shutil
import time

import torch
from prefixes_data import Images
from prefixes_plan import KINDS, runs
from prefixes_report import draw, table
from record import Record, arguments, write

from recipes.programs import train_tokenizer
from recipes.schema import TokenizerRecipe
from tokenizers_mm.config import parse

_SIZE, _FEW = 32, 24


def main():
    options = arguments(__doc__, "runs/prefixes", KINDS, "KIND")
    torch.set_num_threads(1)
    command = f"python benchmarks/studies/prefixes.py --out benchmarks/results/{options.out.name}"
    record = Record(options.out, command, options.resume)
    planned = [
        run
        for run in runs(options.steps)
        if run.kind in options.only and not (options.resume and record.has(run.key, run.recipe))
    ]
    if planned or "anchors" not in record.data:
        images = Images(_SIZE, None if options.steps is None else _FEW)
        record.data["anchors"] = images.anchors()
        record.write()
    for run in planned:
        record.add(run.key, run.recipe, measured(run, images, options.work / run.key))
    write(options.out.with_suffix(".md"), table(record.data))
    draw(record.data, options.out.with_suffix(".png"))
    print(f"wrote {options.out} and beside it .md and .png")


def measured(run, images, folder):
    """Train one tokenizer from scratch and measure it on what it has never seen."""
    shutil.rmtree(folder, ignore_errors=True)
    cpu = time.process_time()
    tokenizer = train_tokenizer(parse(TokenizerRecipe, run.recipe, run.key), folder).eval()
    found = {"kind": run.kind, "seed": run.seed, "train_cpu_seconds": round(time.process_time() - cpu, 1)}
    found |= images.frozen(tokenizer) if run.kind.startswith("rae") else images.prefixes(tokenizer)
    psnr = found["psnr"] if isinstance(found["psnr"], list) else [found["psnr"]]
    print(f"{run.key}: {', '.join(f'{value:.2f}' for value in psnr)} dB, {found['train_cpu_seconds']} s", flush=True)
    return found


if __name__ == "__main__":
    main()
