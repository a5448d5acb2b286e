"""What aligning a tokenizer's latents with a pretrained network costs and gives, on Fashion-MNIST.

python benchmarks/studies/alignment.py --out benchmarks/results/2026-11-26-alignment.json

Two questions, three seeds each. How much better does a linear probe read classes off the mean-pooled latents of a
KL-VAE for every tenth of a decibel that alignment costs? And does a generator that learns aligned latents draw better
pictures after the same number of steps, where latents have few channels and where they have many? About 45 minutes on
one CPU core, half of it the generators'. Beside the record it writes a plot (.png) and a table (.md) of the same name.
--resume   keep the runs that the record holds already with the same recipe
--only     tokenizer, generator or loss; may be repeated
--steps N  shorten every run and measure on few images, to try the program out
"""

import shutil
import time
from dataclasses import replace

from alignment_data import (
    Distances,
    Images,
    classes_in_turn,
    fashion_judge,
    reconstructions,
    samples,
    tokenizer_figures,
    write_tokens,
)
from alignment_plan import runs
from alignment_report import draw, table
from program import begin, left_to_do, report

from recipes.programs import train_generator, train_tokenizer, with_features
from recipes.schema import GeneratorRecipe, TokenizerRecipe
from tokenizers_mm.checkpoints import load
from tokenizers_mm.config import parse
from tokenizers_mm.measure import batches_of
from tokenizers_mm.saving import fingerprint

GROUPS = ("tokenizer", "generator", "loss")
_SAMPLES, _FEW = 2000, 100
_SAID = ("probe", "psnr", "FD-judge", "FD-Lite0", "FD-pixels", "judged")


class Study:
    """What all runs share: images, the teacher's features of them, the network that distances are measured in."""

    def __init__(self, work, recipe, few=False):
        self.work, self.few = work, few
        config = parse(TokenizerRecipe, recipe, "recipe")
        self.plain = (replace(config.data, count=_FEW) if few else config.data).source()
        self.taught = with_features(config, self.plain) if config.cache_features else None
        sizes = {"probe": 60, "test": 60} if few else {}
        self.images = Images.read(trained=len(self.plain), **sizes)
        self.validation = Images.read(trained=len(self.plain), part="validation", **sizes)
        self._distances = None

    @property
    def distances(self):
        """Built when first needed: the judge and the features of the real images take a while."""
        if self._distances is None:
            self._distances = Distances(self.images.test, fashion_judge(steps=20 if self.few else 1500))
        return self._distances

    def tokenizer(self, run):
        """Train one tokenizer and measure it on the test images."""
        return tokenizer_figures(self._trained(run), self.images)

    def loss(self, run):
        """Train one with another loss and measure it on the validation images."""
        return {"name": run.name} | tokenizer_figures(self._trained(run), self.validation)

    def generator(self, run):
        """Train one generator on the latents of a tokenizer trained before, and measure what it draws."""
        tokenizer = load(self.work / run.tokenizer / "tokenizer").eval()
        folder = self.work / run.key
        write_tokens(tokenizer, fingerprint(tokenizer), self.plain.data, folder / "tokens")
        config = parse(GeneratorRecipe, run.recipe | {"tokens": str(folder / "tokens")}, run.key)
        generator = train_generator(config, folder / "run").eval()
        count = 60 if self.few else _SAMPLES
        label_N = classes_in_turn(count, generator.config.classes)
        drawn = self.distances.of(samples(generator, tokenizer, label_N, seed=run.seed), label_N)
        real = self.images.probe.subset(range(count))
        floor = self.distances.of(reconstructions(tokenizer, real), real.labels_N)
        return {"samples": count} | drawn | {f"{name} of reconstructions": value for name, value in floor.items()}

    def real_distances(self):
        """Those of real images that nothing was trained on: no generator can expect less."""
        real = self.images.probe.subset(range(60 if self.few else _SAMPLES))
        return self.distances.of(batches_of(real), real.labels_N)

    def _trained(self, run):
        if run.tokenizer != run.key:
            return load(self.work / run.tokenizer / "tokenizer").eval()
        config = parse(TokenizerRecipe, run.recipe, run.key)
        source = self.taught if config.cache_features else self.plain
        return train_tokenizer(config, self.work / run.key, source=source).eval()


def main():
    (options, record), study = begin("alignment", __doc__, GROUPS, "GROUP"), None
    planned = runs(options.steps)
    for run in left_to_do(planned, options, record, lambda run: run.kind):
        study = study or Study(options.work, max(planned, key=lambda one: one.weight).recipe, options.steps is not None)
        shutil.rmtree(options.work / run.key, ignore_errors=True)
        began, cpu = time.perf_counter(), time.process_time()
        found = {"kind": run.kind, "weight": run.weight, "seed": run.seed, "dim": run.dim}
        found |= getattr(study, run.kind)(run)
        found["seconds"], found["cpu_seconds"] = (
            round(now - start, 1) for now, start in ((time.perf_counter(), began), (time.process_time(), cpu))
        )
        if run.kind == "generator" and "real" not in record.data:
            record.data["real"] = study.real_distances()
        record.add(run.key, run.recipe, found)
        said = {name: round(found[name], 3) for name in _SAID if name in found}
        print(run.key, said, f"{found['seconds']:.0f} s", flush=True)
    report(options, record, table, draw)


if __name__ == "__main__":
    main()
