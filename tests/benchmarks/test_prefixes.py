"""The prefix study: what it compares is alike where it says so, and its table says what was measured."""

import importlib
from pathlib import Path

import pytest
import torch

from recipes.recipe import TokenizerRecipe
from tokenizers_mm.autoencoder import build_autoencoder
from tokenizers_mm.config import override, parse

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"


@pytest.fixture
def study(monkeypatch):
    """Function name -> module of the study, which is a program in a folder and no package."""
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module


def built(recipe, *changes):
    return build_autoencoder(parse(TokenizerRecipe, override(recipe, list(changes)), "recipe").model).eval()


def test_decoders_of_pixels_are_compared_with_one_training_and_nearly_the_same_bits(study):
    runs = {run.key: run for run in study("prefixes_plan").runs()}
    compared = [run for run in runs.values() if run.kind in ("pixels", "titok", "raster")]
    assert len(compared) == 9
    for run in compared:
        assert run.recipe["train"] | {"seed": 0} == runs["pixels-seed0"].recipe["train"]
        assert run.recipe["data"] == runs["pixels-seed0"].recipe["data"]
        assert run.recipe["objective"] == {"l1": 0, "l2": 1, "bottleneck": 0}
    specs = {kind: built(runs[f"{kind}-seed0"].recipe).spec for kind in ("pixels", "titok", "raster")}
    assert {kind: spec.order for kind, spec in specs.items()} == {
        "pixels": "nested",
        "titok": "sequence",
        "raster": "raster",
    }
    assert specs["pixels"].bits_per_image == specs["titok"].bits_per_image
    assert 0.98 < specs["raster"].bits_per_image / specs["pixels"].bits_per_image < 1


@pytest.mark.parametrize("kind", ["pixels", "titok", "raster"])
def test_prefixes_of_all_tokens_are_the_reconstruction_and_shorter_ones_are_not(study, kind):
    data = study("prefixes_data")
    [recipe] = [run.recipe for run in study("prefixes_plan").runs() if (run.kind, run.seed) == (kind, 0)]
    torch.manual_seed(0)
    tokenizer = built(recipe)
    image_BCHW = torch.rand(3, 3, 32, 32) * 2 - 1
    nested = kind == "pixels"
    mean_ND = None if nested else data.mean_vectors(tokenizer, [image_BCHW])
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
