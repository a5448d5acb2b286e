"""The prefix study: what it compares is alike where it says so, and its table says what was measured."""

import json

import numpy as np
import pytest
import torch

from recipes.schema.recipe import TokenizerRecipe
from tokenizers_mm.config import parse
from tokenizers_mm.data.labelled import Labelled
from tokenizers_mm.models.autoencoder import build_autoencoder


def built(recipe):
    return build_autoencoder(parse(TokenizerRecipe, recipe, "recipe").model).eval()


def test_decoders_of_pixels_are_compared_with_one_training_and_nearly_the_same_bits(study):
    runs = {run.key: run for run in study("prefixes_plan").runs()}
    compared = [run for run in runs.values() if run.kind in ("pixels", "titok", "raster")]
    assert len(compared) == 9
    for run in compared:
        assert run.recipe["train"] | {"seed": 0} == runs["pixels-seed0"].recipe["train"]
        assert run.recipe["data"] == runs["pixels-seed0"].recipe["data"]
        assert run.recipe["objective"] == {"l1": 0, "l2": 1, "bottleneck": 0}
    specs = {kind: built(runs[f"{kind}-seed0"].recipe).spec for kind in ("pixels", "titok", "raster")}
    assert {kind: spec.layout for kind, spec in specs.items()} == {
        "pixels": "nested",
        "titok": "sequence",
        "raster": "raster",
    }
    assert specs["pixels"].bits_per_image == specs["titok"].bits_per_image
    assert 0.98 < specs["raster"].bits_per_image / specs["pixels"].bits_per_image < 1
    pixels, titok = (runs[f"{kind}-seed0"].recipe["model"] for kind in ("pixels", "titok"))
    assert pixels == titok | {"net": titok["net"] | {"nested": True, "whole": 0.5}}


def test_the_flow_paints_the_same_tokens_and_random_features_are_random(study):
    runs = {run.key: run.recipe for run in study("prefixes_plan").runs()}
    flow, pixels = runs["flow-seed0"], runs["pixels-seed0"]
    assert flow["data"] == pixels["data"]
    assert flow["model"]["net"] == pixels["model"]["net"]
    assert flow["model"]["bottleneck"] == pixels["model"]["bottleneck"]
    assert (built(flow).generative, built(pixels).generative) == (True, False)
    rae, random = runs["rae-seed0"]["model"], runs["rae-random-seed0"]["model"]
    assert random == rae | {"net": rae["net"] | {"random_init": True}}


@pytest.mark.parametrize("kind", ["pixels", "titok", "raster"])
def test_prefixes_of_all_tokens_are_the_reconstruction_and_shorter_ones_are_not(study, kind):
    data = study("prefixes_data")
    [recipe] = [run.recipe for run in study("prefixes_plan").runs() if (run.kind, run.seed) == (kind, 0)]
    torch.manual_seed(0)
    tokenizer = built(recipe)
    image_BCHW = torch.rand(3, 3, 32, 32) * 2 - 1
    nested = kind == "pixels"
    mean_ND = None if nested else data.mean_vectors(tokenizer, [image_BCHW[:1], image_BCHW[1:]])
    if mean_ND is not None:
        torch.testing.assert_close(mean_ND, tokenizer.vectors(tokenizer.encode(image_BCHW))[0].mean(0))
    lengths = range(1, tokenizer.spec.length + 1)
    pictures = dict(data.decoded_prefixes(tokenizer, image_BCHW, lengths, mean_ND))
    whole_BCHW = tokenizer.decode(tokenizer.encode(image_BCHW))
    torch.testing.assert_close(pictures[tokenizer.spec.length], whole_BCHW)
    assert all((pictures[k] - whole_BCHW).abs().max() > 1e-3 for k in lengths[:-1])


def test_the_table_says_who_is_ahead_and_whether_it_rises(study):
    report = study("prefixes_report")
    eight, sixteen = [float(k) for k in range(10, 18)], [8 + k / 2 for k in range(16)]

    def run(kind, seed, psnr):
        marks = {k / len(psnr): 100.0 for k in range(1, len(psnr) + 1)}
        distance = [value if share in (1 / 8, 1 / 4, 1 / 2, 1) else None for share, value in marks.items()]
        tokens = list(range(1, len(psnr) + 1))
        return {
            "kind": kind, "seed": seed, "tokens": tokens, "bits": [128 * k / len(psnr) for k in tokens],
            "psnr": psnr, "distance": distance,
        }  # fmt: skip

    record = {
        "date": "2026-11-26", "command": "python study", "processor": "a CPU", "threads": 1, "versions": {"torch": "2"},
        "anchors": {
            "images": 9, "distance_name": "FD", "training_images_distance": 1.0, "mean_picture_psnr": 5.0,
        },
        "runs": {
            "a": run("pixels", 0, eight), "b": run("pixels", 1, [*eight[:7], 16.0]),
            "c": run("raster", 0, sixteen), "d": run("raster", 1, sixteen),
        },
    }  # fmt: skip
    text = report.table(record)
    lines = text.splitlines()
    [nested] = [line for line in lines if line.startswith("| nested, pixel decoder, PSNR")]
    assert "| 1 of 2 seeds, least step +0.000 dB |" in nested
    [raster] = [line for line in lines if line.startswith("| raster (ViT), pixel decoder, PSNR")]
    assert raster.split("|")[2].strip() == "8.50 (8.50 to 8.50)"  # two of sixteen tokens
    # Two of eight tokens at 11 dB, four of sixteen at 9.5; all at 17 and 16, and at 15.5.
    assert "+1.50 dB (+1.50 to +1.50) with a quarter of the tokens, +1.00 dB (+0.50 to +1.50) with all" in text


def test_the_prefix_study_reports_every_length_of_every_seed(study, monkeypatch, tmp_path):
    class Pixels(torch.nn.Module):
        """In place of the pretrained network: mean colour and its square."""

        distance_name = "FD of colours"

        def forward(self, levels_BCHW):
            colours_BC = levels_BCHW.mean((2, 3)) / 255
            return torch.cat([colours_BC, colours_BC**2], 1)

    def few(split, size, folder=None):
        rng = np.random.default_rng(len(split))
        images = rng.integers(0, 256, (12, size, size, 3), dtype=np.uint8)
        keys = tuple(map(str, range(12)))
        return Labelled(images_NHWC=images, captions=keys, labels_N=np.zeros(12, int), classes=("one",), keys=keys)

    plan, out = study("prefixes_plan"), tmp_path / "record.json"
    for module in ("recipes.schema.data", "prefixes_data"):
        monkeypatch.setattr(study(module), "emoji", few)
    monkeypatch.setattr(plan, "SEEDS", {"pixels": (0, 1), "titok": (0,), "flow": (0,)})
    monkeypatch.setattr(plan, "GROUPS", ("pixels", "titok", "flow"))
    monkeypatch.setattr(study("prefixes_data"), "extractor", lambda *_, **__: Pixels())
    arguments = ("--out", str(out), "--work", str(tmp_path / "work"), "--steps", "2")
    monkeypatch.setattr("sys.argv", ["prefixes", *arguments])
    study("prefixes").main()
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
