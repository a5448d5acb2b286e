"""What image-text contrast gives and costs, and whether two halves in one tokenizer keep what each of them can.

python benchmarks/studies/text_and_fusion.py --out benchmarks/results/2026-11-26-text-and-fusion.json

Emoji with their names: one multi-codebook tokenizer over the weight of its text contrast. Fashion-MNIST: a semantic
and a perceptual tokenizer fused by channels and by sequence, with the bits of both, and sharing the bits of one. Three
seeds each. About 30 minutes on one CPU core. Beside the record it writes a plot (.png) and a table (.md) of that name.
--resume   keep the runs that the record holds already with the same recipe
--steps N  shorten every run and measure on few images, to try the program out
"""

from program import begin, report, train
from safetensors.torch import load_file, save_file
from text_and_fusion_figures import figures, fitting_features
from text_and_fusion_plan import FUSED, SEEDS, runs
from text_and_fusion_report import draw, table

from recipes.schema import TokenizerRecipe
from tokenizers_mm.checkpoints import load
from tokenizers_mm.config import parse
from tokenizers_mm.models import Fused

_FITTED = "fitted.safetensors"


def main():
    options, record = begin("text_and_fusion", __doc__)
    few, again = options.steps is not None, set()
    for run in runs(options.steps):
        if options.resume and record.has(run.key, run.recipe) and (options.work / run.key).exists():
            continue
        again.add(run.key)
        record.add(run.key, run.recipe, trained(run, options.work, few))
        _say(run.key, record.data["runs"][run.key])
    for seed in SEEDS:
        for name, (how, *halves) in FUSED.items():
            keys = [f"half-{half}-seed_{seed}" for half in halves]
            key, recipe = f"fused-{name}-seed_{seed}", {"how": how, "halves": keys}
            if not (options.resume and record.has(key, recipe)) or again & set(keys):
                found = fused_figures(how, [options.work / one for one in keys], few)
                record.add(key, recipe, {"group": "fused", "name": name, "seed": seed} | found)
                _say(key, found)
    record.write()
    report(options, record, table, draw)


def trained(run, work, few):
    """Train one tokenizer and measure it on what it has never seen."""
    folder = work / run.key
    recipe = run.recipe if run.start is None else run.recipe | {"start": str(work / run.start)}
    tokenizer, seconds, cpu_seconds = train(run.key, recipe, folder)
    config = parse(TokenizerRecipe, recipe, run.key)
    draws = config.objective.draws or run.start is not None
    fitted = fitting_features(tokenizer, config.data.kind, few)
    save_file(fitted, folder / _FITTED)
    return {
        "group": run.group, "name": run.name, "seed": run.seed, "value": run.value,
        "parameters": sum(p.numel() for p in tokenizer.parameters()),
        "seconds": seconds, "cpu_seconds": cpu_seconds,
        **figures(tokenizer, config.data.kind, draws=draws, few=few, fitted=fitted),
    }  # fmt: skip


def fused_figures(how, folders, few):
    """Join two trained halves and measure what comes out; the probe is fitted on what the semantic half gave."""
    fused = Fused(*(load(folder / "tokenizer") for folder in folders), how=how).eval()
    return figures(fused, "fashion-mnist", few=few, fitted=load_file(folders[0] / _FITTED))


def _say(key, found):
    names = ("psnr", "tokens_folds", "tokens_all", "tokens_probe", "head_folds", "head_all", "zero_shot", "cpu_seconds")
    print(key, ", ".join(f"{name} {found[name]:.2f}" for name in names if name in found), flush=True)


if __name__ == "__main__":
    main()
