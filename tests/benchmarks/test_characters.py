"""The study of characters: equal where it says so, and its controls can tell."""

import json

import pytest

from recipes.schema.recipe import TokenizerRecipe
from tokenizers_mm.config import parse
from tokenizers_mm.models.autoencoder import build_autoencoder


def built(run):
    return build_autoencoder(parse(TokenizerRecipe, run.recipe, run.key).model)


def run_program(study, monkeypatch, name, *arguments):
    monkeypatch.setattr("sys.argv", [name, *arguments])
    study(name).main()


def test_tokenizers_for_characters_differ_in_the_bottleneck_and_its_weight_only(study):
    runs, shared = study("characters_plan").runs(), []
    for run in runs:
        rest = {key: value for key, value in run.recipe.items() if key not in ("model", "objective")}
        model = {key: value for key, value in run.recipe["model"].items() if key != "bottleneck"}
        objective = {key: value for key, value in run.recipe["objective"].items() if key != "bottleneck"}
        shared.append((rest, model, objective))
    assert all(one == shared[0] for one in shared)
    assert len({run.key for run in runs}) == len(runs) == 14


def test_every_discrete_tokenizer_for_characters_has_the_bits_of_its_rate(study):
    for run in study("characters_plan").runs():
        tokenizer = built(run)
        if run.name == "vae":
            assert not tokenizer.spec.discrete
        else:
            bits = tokenizer.spec.bits_per_image / 192
            assert bits == run.bits or (run.name == "multiscale" and 0.99 * run.bits < bits <= run.bits)


def test_the_packaged_recipe_is_the_fsq_of_the_lower_rate(study):
    plan = study("characters_plan")
    packaged = study("recipes.schema.recipe").load_recipe(plan.RECIPE)
    assert packaged.model.bottleneck == plan.bottleneck("fsq", 20)
    assert packaged.model.net.kind == "conv"


def test_codecs_between_qualities_are_interpolated_and_never_extrapolated(study):
    report = study("characters_report")
    points = [
        {"bits_per_image": bits, "accuracy": read, "psnr": psnr}
        for bits, read, psnr in ((100, 0.2, 20.0), (300, 0.6, 24.0))
    ]
    assert report.at_rate(points, 200, "accuracy") == pytest.approx(0.4)
    assert report.at_rate(points, 99, "psnr") is None
    assert report.at_rate(points, 301, "psnr") is None


def test_the_character_study_runs_and_resumes(study, monkeypatch, tmp_path):
    plan, out = study("characters_plan"), tmp_path / "record.json"
    monkeypatch.setattr(plan, "NAMES", ("vae", "fsq"))
    monkeypatch.setattr("recipes.programs.train._CALIBRATION_IMAGES", 64)
    monkeypatch.setattr(study("characters_data"), "QUALITIES", {"jpeg": (30, 95), "webp": (50,)})
    arguments = ("--out", str(out), "--work", str(tmp_path / "work"), "--steps", "2", "--only", "20")
    run_program(study, monkeypatch, "characters", *arguments)
    record = json.loads(out.read_text())
    assert set(record["runs"]) == {"vae-20", "fsq-20"}
    small, large = record["codecs"]["jpeg"][0], record["codecs"]["jpeg"][-1]
    assert (small["quality"], large["quality"]) == (30, 95)
    assert small["bits_per_image"] < large["bits_per_image"]
    assert small["psnr"] < large["psnr"]
    for row in record["runs"].values():
        assert 0 <= row["accuracy"] <= 1
        assert row["bits_per_image"] > 0
    assert record["runs"]["fsq-20"]["bits_per_image"] == 20 * 192
    text = out.with_suffix(".md").read_text()
    assert "| FSQ | 3840 |" in text
    assert "of samples" in text
    assert out.with_suffix(".png").stat().st_size > 5000
    monkeypatch.setattr(study("characters"), "measured", None)  # nothing is left to do
    run_program(study, monkeypatch, "characters", *arguments, "--resume")
    assert json.loads(out.read_text())["runs"] == record["runs"]
