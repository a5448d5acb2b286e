"""The study of text contrast and fused halves: runs differ where it says so, bits are counted, gains are paired."""

import numpy as np
import pytest

from recipes.schema.recipe import TokenizerRecipe, load_recipe
from tokenizers_mm import Fused, build_autoencoder
from tokenizers_mm.config import parse
from tokenizers_mm.data.labelled import Labelled


def without(recipe, *path):
    """The recipe with one value taken out."""
    head, *rest = path
    left = dict(recipe)
    taken = left.pop(head)
    return left | {head: without(taken, *rest)} if rest else left


def model_of(run, **changes):
    """The tokenizer of a run; a tower has random weights, which changes no geometry."""
    model = dict(run.recipe["model"])
    if model["net"].get("kind") == "tower":
        model["net"] = model["net"] | {"random_init": True}
    return build_autoencoder(parse(TokenizerRecipe, run.recipe | {"model": model}, run.key).model).eval()


def test_runs_with_one_name_differ_in_their_seed_and_weights_in_nothing_else(study):
    runs = study("text_and_fusion_plan").runs()
    assert len({run.key for run in runs}) == len(runs)
    text = [run for run in runs if run.group == "text"]
    assert len({run.value for run in text}) >= 4
    assert 0 in {run.value for run in text}
    bare = [without(without(run.recipe, "train", "seed"), "objective", "text") for run in text]
    assert all(recipe == bare[0] for recipe in bare)
    for run in text:
        assert (run.recipe["objective"]["text"], run.recipe["train"]["seed"]) == (run.value, run.seed)
    halves = {}
    for run in runs:
        if run.group == "half":
            halves.setdefault(run.name, []).append(without(run.recipe, "train", "seed"))
    assert all(len(recipes) == 3 and recipes[0] == recipes[1] == recipes[2] for recipes in halves.values())


def test_halves_that_share_have_the_bits_of_one_whole_and_all_go_together(study):
    plan, figures = study("text_and_fusion_plan"), study("text_and_fusion_figures")
    tokenizers = {run.name: model_of(run) for run in plan.runs() if run.group == "half" and run.seed == 0}
    whole = tokenizers["perceptual"].spec.bits_per_image
    assert tokenizers["semantic"].spec.bits_per_image == whole
    for name, (how, *halves) in plan.FUSED.items():
        fused = Fused(*(tokenizers[half] for half in halves), how=how)
        assert figures.bits_per_image(fused) == (whole if "shared" in name else 2 * whole)


def test_fused_recipes_are_the_halves_that_share(study):
    runs = {run.name: run for run in study("text_and_fusion_plan").runs() if run.group == "half" and run.seed == 0}
    for name, half in (("fused_channel", "semantic-channel"), ("fused_sequence", "semantic-sequence")):
        recipe = load_recipe(name)
        assert f"fused_{recipe.how}" == name
        assert parse(TokenizerRecipe, runs[half].recipe, "run").model == recipe.semantic.model
        assert parse(TokenizerRecipe, runs["perceptual-part"].recipe, "run").model == recipe.perceptual.model


def test_a_run_that_goes_on_names_one_made_before_it(study):
    made = set()
    for run in study("text_and_fusion_plan").runs(3):
        assert run.recipe["train"]["steps"] == 3
        assert run.start is None or run.start in made
        made.add(run.key)


def test_figures_of_a_fused_tokenizer_are_those_of_its_halves(study, monkeypatch):
    module = study("text_and_fusion_figures")
    rng = np.random.default_rng(0)
    data = Labelled(
        images_NHWC=rng.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8), captions=("x",) * 30,
        labels_N=np.arange(30) % 3, classes=("a", "b", "c"), keys=tuple(map(str, range(30))),
    )  # fmt: skip
    monkeypatch.setattr(module, "images_of", lambda kind, few: (data, data))
    runs = {run.name: run for run in study("text_and_fusion_plan").runs() if run.seed == 0}
    semantic, perceptual = model_of(runs["0"]), model_of(runs["perceptual-part"])
    alone, drawn = (module.figures(one, "fashion-mnist", draws=True) for one in (semantic, perceptual))
    fused = module.figures(Fused(semantic, perceptual).eval(), "fashion-mnist")
    assert fused["tokens_probe"] == alone["tokens_probe"]
    assert fused["head_probe"] == alone["head_probe"]
    assert fused["psnr"] == drawn["psnr"] != alone["psnr"]
    assert "tokens_folds" not in fused
    assert "zero_shot" in alone
    assert "psnr" not in module.figures(semantic, "fashion-mnist", draws=False)


def text_row(weight, seed, psnr, folds):
    probes = dict.fromkeys(("tokens_folds", "tokens_all", "tokens_probe"), folds)
    about = {"majority": 40.0, "usage": 1.0, "bits_per_image": 512.0}
    return {"group": "text", "name": weight, "seed": seed, "psnr": psnr} | probes | about


def record_of(rows):
    about = {"date": "2026-11-25", "command": "python study", "processor": "a CPU", "threads": 1}
    runs = {f"{row['group']}-{row['name']}-{row['seed']}": row for row in rows}
    return about | {"versions": {"torch": "2"}, "runs": runs}


def test_gains_are_between_runs_with_one_seed_and_the_table_says_them(study, tmp_path):
    report = study("text_and_fusion_report")
    rows = [text_row("0", 0, 20.0, 60.0), text_row("0", 1, 21.0, 62.0), text_row("0.1", 0, 19.5, 66.0)]
    rows += [text_row("0.1", 1, 20.7, 66.0), text_row("0.1", 2, 5.0, 5.0)]
    assert report.gains(rows, "psnr")["0.1"] == pytest.approx([-0.5, -0.3])
    half = {"group": "half", "seed": 0, "usage": 1.0}
    rows += [half | {"name": "semantic", "tokens_probe": 80.0}]
    rows += [half | {"name": "perceptual", "tokens_probe": 60.0, "psnr": 24.0}]
    rows += [half | {"group": "fused", "name": "channel, bits shared", "tokens_probe": 77.5, "psnr": 23.9}]
    text = report.table(record_of(rows))
    assert "weight 0.1: -0.40 (-0.50 to -0.30) dB, probe, 5 folds +5.0 (+4.0 to +6.0) points" in text
    assert "channel, bits shared: probe -2.5 (-2.5 to -2.5) points, -0.10 (-0.10 to -0.10) dB" in text
    report.draw(record_of(rows), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_a_table_of_nothing_has_no_sections(study):
    assert "##" not in study("text_and_fusion_report").table(record_of([]))
