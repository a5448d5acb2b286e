"""The rate-distortion study: what it compares is equal where it says so, and its baseline counts every byte."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

import quantizers
from recipes.schema.recipe import TokenizerRecipe
from tokenizers_mm.config import parse
from tokenizers_mm.data.labelled import Labelled
from tokenizers_mm.measure.rate_distortion import codec_curve
from tokenizers_mm.models.autoencoder import build_autoencoder


def gradients(count, side=32):
    """Smooth coloured images that differ."""
    ramp = np.linspace(0, 255, side)
    mixed = [np.stack([ramp[:, None] * k / count + ramp * (1 - k / count)] * 3, -1) for k in range(count)]
    return np.stack(mixed).astype(np.uint8)


def labelled(images):
    count = len(images)
    keys = tuple(map(str, range(count)))
    return Labelled(images_NHWC=images, captions=keys, labels_N=np.zeros(count, int), classes=("one",), keys=keys)


def test_runs_of_a_group_differ_in_the_bottleneck_and_its_weight_only(study):
    groups = {}
    for run in study("rate_distortion_plan").runs():
        shared = {key: value for key, value in run.recipe.items() if key not in ("model", "objective")}
        model = {key: value for key, value in run.recipe["model"].items() if key not in ("bottleneck", "linear")}
        objective = {key: value for key, value in run.recipe["objective"].items() if key != "bottleneck"}
        groups.setdefault(run.group, []).append((shared, model, objective))
    assert set(groups) == {"emoji", "curve", "photos-f8", "photos-f4"}
    for rows in groups.values():
        assert all(row == rows[0] for row in rows)


def test_every_run_can_be_built_and_has_the_rate_of_its_group(study):
    pixels = {"emoji": 16, "curve": 16, "photos-f4": 16, "photos-f8": 64}
    keys = []
    for run in study("rate_distortion_plan").runs():
        keys.append(run.key)
        tokenizer = build_autoencoder(parse(TokenizerRecipe, run.recipe, run.key).model)
        if run.name == "vae":
            assert not tokenizer.spec.discrete
            continue
        rate, wanted = tokenizer.spec.bits_per_pixel, 10 / pixels[run.group]
        assert rate == pytest.approx(wanted) or (run.name == "multiscale" and 0.99 * wanted < rate <= wanted)
    assert len(set(keys)) == len(keys)


def test_curves_change_one_number_each_and_steps_shorten_every_run(study):
    plan = study("rate_distortion_plan")
    for run in plan.runs():
        changed = {name: value for name, value in run.change.items() if name != "linear"}
        assert run.recipe["model"]["linear"] == ("linear" not in run.change)
        assert run.group == "curve" if run.change else run.group != "curve"
        assert len(changed) <= 1
        for name, value in changed.items():
            assert quantizers.build(run.recipe["model"]["bottleneck"], name).options()[name] == value
    assert {run.recipe["train"]["steps"] for run in plan.runs(3)} == {3}


@pytest.mark.parametrize("codec", ["jpeg", "webp"])
def test_a_codec_pays_one_header_for_all_tiles(study, codec):
    data = study("rate_distortion_data")
    images, qualities = gradients(64), data.QUALITIES[codec][::8]
    curve = codec_curve(images, codec, qualities, below=4.0)
    one = codec_curve(images[:1], codec, qualities)
    assert curve[0].bpp < one[0].bpp / 4
    best = data.best_within(curve, 1.0)
    assert best["bpp"] <= 1.0
    assert best["psnr"] == max(point.psnr for point in curve if point.bpp <= 1.0)
    assert best["psnr"] <= best["interpolated"] + 1e-9
    assert data.best_within(curve, 1e-4) is None


def test_the_table_names_usage_of_the_worst_stream_and_the_codecs_at_the_rate(study):
    found = {"psnr": 21.0, "psnr_of_mean_error": 20.5, "ssim": 0.8, "bits_per_pixel": 0.625}
    codes = {"entropy_per_pixel": 0.5, "usage": [1.0, 0.25], "perplexity": [30.0, 8.0], "tokens": 640}
    latent = {"psnr_of_samples": 20.0}
    row = {"group": "emoji", "change": {}, "train_cpu_seconds": 60.0}
    record = {
        "date": "2026-11-25", "command": "python study", "processor": "a CPU", "threads": 1,
        "versions": {"torch": "2"},
        "runs": {
            "emoji-rvq": row | {"name": "rvq", "held_out": {"emoji": found | codes}},
            "emoji-vae": row | {"name": "vae", "held_out": {"emoji": found | latent}},
        },
        "codecs": {"emoji": {f"emoji/{c}": {"at_rate": {"bpp": 0.6, "psnr": 19.5}} for c in ("jpeg", "webp")}},
    }  # fmt: skip
    lines = study("rate_distortion_report").table(record).splitlines()
    rvq, vae, jpeg = (next(line for line in lines if line.startswith(f"| {name} ")) for name in ("RVQ", "VAE", "JPEG"))
    assert "25 %" in rvq
    assert "0.500" in rvq
    assert "21.00 (20.00 sampled)" in vae
    assert "19.50" in jpeg


def test_the_program_records_every_run_and_goes_on_where_it_stopped(study, tmp_path, monkeypatch, capsys):
    program, data = study("rate_distortion"), study("rate_distortion_data")
    few = [run for run in study("rate_distortion_plan").runs(1) if run.key in ("emoji-multiscale", "emoji-vae")]
    monkeypatch.setattr(program, "runs", lambda steps: few)
    for module in (data, study("recipes.schema.data")):
        monkeypatch.setattr(module, "emoji", lambda split, size, folder=None: labelled(gradients(12, size)))
    monkeypatch.setattr("recipes.programs.train._CALIBRATION_IMAGES", 12)
    out = tmp_path / "record.json"
    command = ["study", "--out", str(out), "--work", str(tmp_path / "runs"), "--only", "emoji", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", command)
    program.main()
    record = json.loads(out.read_text())
    assert set(record["runs"]) == {"emoji-multiscale", "emoji-vae"}
    assert record["runs"]["emoji-multiscale"]["held_out"]["emoji"]["bits_per_pixel"] == pytest.approx(0.625, abs=0.001)
    vae = record["runs"]["emoji-vae"]["held_out"]["emoji"]
    assert vae["psnr_of_samples"] < vae["psnr"]
    assert set(record["codecs"]["emoji"]) == {"emoji/jpeg", "emoji/webp"}
    assert out.with_suffix(".md").read_text().count("\n| VAE |") == 1
    assert out.with_suffix(".png").stat().st_size > 1000
    capsys.readouterr()
    few[1] = replace(few[1], recipe=few[1].recipe | {"objective": {"l1": 0, "l2": 1, "bottleneck": 0.5}})
    monkeypatch.setattr(sys, "argv", [*command, "--resume"])
    program.main()
    said = capsys.readouterr().out
    assert "emoji-multiscale: recorded already" in said
    assert "emoji-vae: emoji " in said, "another recipe is another run"
