"""The studies of characters and of prefixes: equal where they say so, and their controls can tell."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from recipes.recipe import TokenizerRecipe
from tokenizers_mm.autoencoder import build_autoencoder
from tokenizers_mm.config import parse
from tokenizers_mm.data.labelled import Labelled

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"


@pytest.fixture
def study(monkeypatch):
    """Function name -> module of the study, which is a program in a folder and no package."""
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module


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
    packaged = study("recipes.recipe").load_recipe(plan.RECIPE)
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
    monkeypatch.setattr("recipes.train._CALIBRATION_IMAGES", 64)
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


def test_variants_of_prefixes_share_everything_but_nesting_and_decoder(study):
    runs = {run.key: run for run in study("prefixes_plan").runs()}
    assert len(runs) == 9
    flow, pixels, titok = (runs[f"{kind}-seed0"] for kind in ("flow", "pixels", "titok"))
    assert flow.recipe["data"] == pixels.recipe["data"] == titok.recipe["data"]
    assert flow.recipe["train"] == pixels.recipe["train"] == titok.recipe["train"]
    nested, plain = pixels.recipe["model"], titok.recipe["model"]
    assert {**nested, "net": {**nested["net"], "nested": False}} == {**plain, "net": {**plain["net"], "nested": False}}
    assert built(flow).generative
    assert not built(pixels).generative
    assert built(pixels).spec.order == built(flow).spec.order == "nested"
    assert built(titok).spec.order == "sequence"
    assert {run.recipe["train"]["seed"] for run in runs.values() if run.kind == "pixels"} == {0, 1, 2}
    seeds = [run.recipe["model"]["net"].get("random_init", False) for run in runs.values() if run.kind == "rae-random"]
    assert seeds == [True]


@pytest.mark.parametrize("kind", ["pixels", "titok"])
def test_a_prefix_of_all_tokens_is_the_reconstruction_and_a_shorter_one_is_not(study, kind):
    data = study("prefixes_data")
    tokenizer = built(next(run for run in study("prefixes_plan").runs() if run.kind == kind)).eval()
    torch.nn.init.normal_(tokenizer.decoder.pixels.project.weight)  # else every picture is nearly grey
    image_BCHW = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean_ND = None if kind == "pixels" else data.mean_vectors(tokenizer, [image_BCHW[:2], image_BCHW[2:]])
    found = dict(data.decoded_prefixes(tokenizer, image_BCHW, (1, 7, 8), mean_ND))
    whole_BCHW = tokenizer.decode(tokenizer.encode(image_BCHW))
    torch.testing.assert_close(found[8], whole_BCHW)
    assert (found[1] - whole_BCHW).abs().max() > 1e-2
    if mean_ND is not None:
        every_BND = tokenizer.vectors(tokenizer.encode(image_BCHW))[0]
        torch.testing.assert_close(mean_ND, every_BND.mean(0))


def test_the_prefix_study_reports_every_length_of_every_seed(study, monkeypatch, tmp_path):
    class Pixels(torch.nn.Module):
        """In place of the pretrained network: mean colour and its square."""

        distance_name = "FD of colours"

        def forward(self, levels_BCHW):
            colours_BC = levels_BCHW.mean((2, 3)) / 255
            return torch.cat([colours_BC, colours_BC**2], 1)

    def few(split, size, folder=None):
        rng = np.random.default_rng(len(split))
        images = rng.integers(0, 256, (40, size, size, 3), dtype=np.uint8)
        keys = tuple(map(str, range(40)))
        return Labelled(images_NHWC=images, captions=keys, labels_N=np.zeros(40, int), classes=("one",), keys=keys)

    plan, out = study("prefixes_plan"), tmp_path / "record.json"
    for module in ("recipes.data", "prefixes_data"):
        monkeypatch.setattr(study(module), "emoji", few)
    monkeypatch.setattr(plan, "SEEDS", {"pixels": (0, 1), "titok": (0,), "flow": (0,)})
    monkeypatch.setattr(plan, "KINDS", ("pixels", "titok", "flow"))
    monkeypatch.setattr(study("prefixes_data"), "extractor", lambda *_, **__: Pixels())
    arguments = ("--out", str(out), "--work", str(tmp_path / "work"), "--steps", "2")
    run_program(study, monkeypatch, "prefixes", *arguments)
    record = json.loads(out.read_text())
    assert set(record["runs"]) == {"pixels-seed0", "pixels-seed1", "titok-seed0", "flow-seed0"}
    for row in record["runs"].values():
        assert row["tokens"] == list(range(1, 9))
        assert len(row["psnr"]) == len(row["distance"]) == 8
        assert row["bits"][-1] == pytest.approx(8 * np.log2(64000))
    text = out.with_suffix(".md").read_text()
    assert "of 2 seeds" in text
    assert "FD of colours" in text
    assert out.with_suffix(".png").stat().st_size > 5000
    assert study("prefixes_report").least_step([1.0, 2.0, 2.5]) == 0.5
    assert study("prefixes_report").least_step([1.0, 2.0, 1.75, 3.0]) == -0.25
