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

from prefixes_data import Images
from prefixes_plan import GROUPS, runs
from prefixes_report import draw, table
from program import begin, left_to_do, report, train

_SIZE, _FEW = 32, 24


def main():
    options, record = begin("prefixes", __doc__, GROUPS, "GROUP")
    planned = left_to_do(runs(options.steps), options, record, lambda run: run.kind)
    if planned or "anchors" not in record.data:
        images = Images(_SIZE, None if options.steps is None else _FEW)
        record.data["anchors"] = images.anchors()
        record.write()
    for run in planned:
        record.add(run.key, run.recipe, measured(run, images, options.work / run.key))
    report(options, record, table, draw)


def measured(run, images, folder):
    """Train one tokenizer from scratch and measure it on what it has never seen."""
    tokenizer, _, seconds = train(run.key, run.recipe, folder)
    found = {"kind": run.kind, "seed": run.seed, "train_cpu_seconds": seconds}
    found |= images.frozen(tokenizer) if run.kind.startswith("rae") else images.prefixes(tokenizer)
    psnr = found["psnr"] if isinstance(found["psnr"], list) else [found["psnr"]]
    print(f"{run.key}: {', '.join(f'{value:.2f}' for value in psnr)} dB, {seconds} s", flush=True)
    return found


if __name__ == "__main__":
    main()
