"""Which tokenizers keep characters? Words in several fonts, sizes and colours, read by a reader that trained on none.

python benchmarks/studies/characters.py --out benchmarks/results/2026-11-25-characters.json

Seven bottlenecks in one encoder and decoder at two rates, one seed, against JPEG and WebP. A network that was trained
on other words, and never on a reconstruction, reads the reconstructions of held-out words. About 10 minutes on one CPU
core, a third of it for the reader. Beside the record it writes a plot (.png) and a table (.md) of the same name.
--resume   keep the runs that the record holds already with the same recipe
--only     20 or 40, bits a position; may be repeated
--steps N  shorten every run, the reader's as well, and read few words, to try the program out
"""

from characters_data import COUNT, Reading
from characters_plan import BITS, runs
from characters_report import draw, table
from program import begin, left_to_do, report, train

_FEW = 20


def main():
    options, record = begin("characters", __doc__, BITS, "BITS")
    planned = left_to_do(runs(options.steps), options, record, lambda run: run.bits)
    if planned or "anchors" not in record.data:
        reading = Reading(options.work, COUNT if options.steps is None else _FEW, options.steps)
        record.data["anchors"] = reading.anchors()
        record.data["codecs"] = {name: reading.codec(name) for name in ("jpeg", "webp")}
        record.write()
    for run in planned:
        record.add(run.key, run.recipe, measured(run, reading, options.work / run.key))
    report(options, record, table, draw)


def measured(run, reading, folder):
    """Train one tokenizer from scratch and have its reconstructions read."""
    tokenizer, _, seconds = train(run.key, run.recipe, folder)
    found = {"name": run.name, "bits": run.bits, "train_cpu_seconds": seconds} | reading.figures(tokenizer)
    print(f"{run.key}: {100 * found['accuracy']:.1f} % read, {found['psnr']:.2f} dB, {seconds} s", flush=True)
    return found


if __name__ == "__main__":
    main()
