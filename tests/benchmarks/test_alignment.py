"""The alignment study: its runs differ in what they say they differ in, and its table says what was measured."""

import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from recipes.schema.recipe import GeneratorRecipe, TokenizerRecipe
from tokenizers_mm.config import parse
from tokenizers_mm.data.labelled import Labelled
from tokenizers_mm.data.sets.fashion import fashion_mnist
from tokenizers_mm.models.autoencoder import build_autoencoder
from tokenizers_mm.store.dataset import TokenDataset

FASHION = Path("/usr/share/datasets/fashion-mnist")


def stripes(count, classes=10):
    """Images of as many kinds of stripes as there are classes."""
    label_N = np.arange(count) % classes
    rows = np.arange(32)[None, :, None]
    grey_NHW = np.broadcast_to((rows * (label_N[:, None, None] + 1) * 20) % 256, (count, 32, 32)).astype(np.uint8)
    names = tuple(str(label) for label in range(classes))
    return Labelled(
        images_NHWC=np.repeat(grey_NHW[..., None], 3, 3),
        captions=tuple(names[label] for label in label_N),
        labels_N=label_N.astype(np.int64),
        classes=names,
        keys=tuple(f"image-{number}" for number in range(count)),
    )


@pytest.fixture
def tokenizer(study):
    torch.manual_seed(0)
    config = parse(TokenizerRecipe, study("alignment_plan").tokenizer_recipe(0.0, 0), "recipe")
    return build_autoencoder(config.model).eval()


def test_tokenizers_differ_in_weight_and_seed_only(study):
    plan = study("alignment_plan")
    shared = []
    for run in plan.runs():
        if run.kind != "tokenizer":
            continue
        parse(TokenizerRecipe, run.recipe, run.key)
        alignment = run.recipe["objective"].get("alignment", {"weight": 0.0})
        assert (alignment["weight"], run.recipe["train"]["seed"]) == (run.weight, run.seed)
        assert run.recipe.get("cache_features", False) == (run.weight > 0)
        assert (run.recipe["model"]["bottleneck"]["dim"], run.recipe["model"]["z_channels"]) == (run.dim, 2 * run.dim)
        shared.append(
            {
                "model": run.recipe["model"] | {"z_channels": 0, "bottleneck": {}},
                "data": run.recipe["data"],
                "objective": {k: v for k, v in run.recipe["objective"].items() if k != "alignment"},
                "train": run.recipe["train"] | {"seed": 0},
            }
        )
    assert all(one == shared[0] for one in shared)
    assert len(shared) == (len(plan.WEIGHTS) + len(plan.COMPARED)) * len(plan.SEEDS) + 1


def test_every_generator_follows_the_tokenizer_it_needs(study):
    plan = study("alignment_plan")
    made = []
    for run in plan.runs(3):
        assert run.recipe["train"]["steps"] == 3
        if run.kind == "generator":
            parse(GeneratorRecipe, run.recipe | {"tokens": "tokens"}, run.key)
            assert run.tokenizer in made
        made.append(run.key)
    assert len(set(made)) == len(made)


def test_losses_are_compared_at_one_weight_and_seed(study):
    plan = study("alignment_plan")
    every = {run.key: run for run in plan.runs()}
    losses = [run for run in every.values() if run.kind == "loss"]
    assert {run.name for run in losses} == {"none", *plan.LOSSES}
    for run in losses:
        parse(TokenizerRecipe, run.recipe, run.key)
        assert (run.recipe["train"]["seed"], run.weight) == (0, 0.0 if run.name == "none" else 0.1)
        assert (run.recipe == every[run.tokenizer].recipe) == (
            run.name in ("none", "cosine") or run.tokenizer == run.key
        )


def test_the_probe_reads_classes_and_needs_the_labels(study, tokenizer):
    data, measure = study("alignment_data"), study("alignment_data").tokenizer_figures
    probe, test = stripes(80), stripes(40)
    found = measure(tokenizer, data.Images(probe=probe, test=test))
    assert found["probe"] > 90
    assert found["chance"] == pytest.approx(10)
    assert 0 < found["psnr"] < 60
    shuffled = np.random.default_rng(0).permutation(probe.labels_N)
    control = Labelled(**vars(probe) | {"labels_N": shuffled, "families_N": None})
    assert measure(tokenizer, data.Images(probe=control, test=test))["probe"] < 50


def test_a_token_store_holds_the_latents_and_labels_of_its_images(study, tokenizer, tmp_path):
    images = stripes(12)
    study("alignment_data").write_tokens(tokenizer, "00", images, tmp_path / "tokens")
    batch = TokenDataset(tmp_path / "tokens").batch(list(range(12)))
    assert batch.labels_B.tolist() == images.labels_N.tolist()
    wanted = tokenizer.encode(images.tensor()).data
    torch.testing.assert_close(batch.tokens.data.float(), wanted, rtol=1e-2, atol=1e-2)


def test_the_table_compares_runs_of_one_seed(study):
    report = study("alignment_report")
    figures = {"chance": 10.0, "kl_bits_per_pixel": 0.5}
    measured = {
        (0.0, 0): (50.0, 25.0), (0.0, 1): (60.0, 26.0), (0.1, 0): (56.0, 24.5), (0.1, 1): (64.0, 25.5),
        (0.3, 0): (70.0, 20.0),
    }  # fmt: skip
    runs = {
        f"{w}-{s}": figures | {"kind": "tokenizer", "dim": 16, "weight": w, "seed": s, "probe": probe, "psnr": psnr}
        for (w, s), (probe, psnr) in measured.items()
    }
    record = {
        "date": "2026-11-25", "command": "python study", "processor": "a CPU", "threads": 1,
        "versions": {"torch": "2"}, "runs": runs,
    }  # fmt: skip
    lines = report.table(record).splitlines()
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("| 0")}
    assert "| 5.0 (4.0..6.0) |" in rows["0.1"]
    assert "| -0.50 (-0.50..-0.50) |" in rows["0.1"]
    assert rows["0.1"].endswith("| yes |")
    assert rows["0.3"].endswith("| no |")  # gains more, and costs 5 dB
    assert "Generators" not in "\n".join(lines)


@pytest.mark.skipif(not FASHION.exists(), reason="needs Debian's dataset-fashion-mnist")
def test_the_program_writes_record_table_and_picture(study, monkeypatch, tmp_path, capsys):
    plan, program = study("alignment_plan"), study("alignment")
    few = tuple(run for run in plan.runs(1) if (run.seed, run.weight, run.dim) == (0, 0.0, 16))
    monkeypatch.setattr(program, "runs", lambda steps: few)
    read_once = cache(fashion_mnist)
    for module in ("alignment_data", "recipes.schema.data"):
        monkeypatch.setattr(study(module), "fashion_mnist", read_once)
    out = tmp_path / "record.json"
    monkeypatch.setattr(
        sys, "argv", ["alignment.py", "--out", str(out), "--work", str(tmp_path / "runs"), "--steps", "1"]
    )
    program.main()
    record = json.loads(out.read_text())
    assert set(record["runs"]) == {"tokenizer-16-0-seed0", "generator-16-0-seed0", "loss-none-16-0-seed0"}
    drawn = record["runs"]["generator-16-0-seed0"]
    assert drawn["FD-Lite0"] > drawn["FD-Lite0 of reconstructions"] > 0  # nothing was learned in one step
    assert drawn["FD-judge"] > drawn["FD-judge of reconstructions"]
    assert 0 <= drawn["judged"] <= 100
    assert out.with_suffix(".png").stat().st_size > 1000
    assert "FD-pixels" in out.with_suffix(".md").read_text()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--resume"])
    capsys.readouterr()
    program.main()
    assert "seed0 {" not in capsys.readouterr().out  # recorded already
