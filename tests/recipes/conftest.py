"""A demo folder that nothing was trained for, and what was found in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import backbones
from recipes.demo.findings import Findings, measure_demo
from recipes.gates import photos as measure_photos
from recipes.programs import train
from recipes.programs.datasets import write_dataset
from recipes.schema.recipe import TokenizerRecipe, load_recipe
from tokenizers_mm import build_autoencoder, save
from tokenizers_mm.data.sets.photos import heldout_photos
from tokenizers_mm.store.dataset import TokenDataset
from tokenizers_mm.store.encode import encode_folder

TERMS = {"shapes_ar": ("image", "text"), "shapes_flow": ("velocity",)}
PROGRESS: list[str] = []


@pytest.fixture(scope="session", autouse=True)
def _few_calibration_images() -> Iterator[None]:
    """An eighth of the images that latent statistics are measured on after every training of a VAE."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "_CALIBRATION_IMAGES", 256)
        yield


@pytest.fixture(scope="session")
def small_photos() -> Iterator[None]:
    """Corners of the photographs, whose height is not a multiple of 8: whole ones take half a minute to measure."""
    corners = {name: pixels[100:171, 200:328] for name, pixels in heldout_photos().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure_photos, "heldout_photos", lambda: corners)
        yield


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `tmm demo` leaves before it measures, with weights as they were initialised."""
    folder = tmp_path_factory.mktemp("demo")
    torch.manual_seed(0)
    write_dataset("shapes", folder / "shapes", count=40)
    for name in ("photos_fsq", "photos_vae", "shapes_fsq", "shapes_vae"):
        recipe = load_recipe(name)
        assert isinstance(recipe, TokenizerRecipe)
        tokenizer = build_autoencoder(recipe.model).eval()
        save(tokenizer, folder / name / "tokenizer")
        _write_history(folder / name, ("l2",))
        if name.startswith("shapes"):
            encode_folder(tokenizer, folder / "shapes", folder / name.replace("shapes", "tokens"))
    for name, kind, tokens in (("shapes_ar", "autoregressive", "fsq"), ("shapes_flow", "flow", "vae")):
        store = TokenDataset(folder / f"tokens_{tokens}")
        options: dict[str, object] = {"width": 32, "depth": 1, "heads": 2}
        backbones.save(backbones.build(kind, options, store.spec, store.codebook_VD), folder / name / "generator")
        _write_history(folder / name, TERMS[name])
        train = {"precision": load_recipe(name).train.precision}
        (folder / name / "run.json").write_text(json.dumps({"train": train, "precision": "bf16"}))
    return folder


@pytest.fixture(scope="session")
def findings(demo_folder: Path, small_photos: None) -> Findings:
    PROGRESS.clear()
    return measure_demo(
        demo_folder,
        samples=16,
        perceptual_name=None,
        judge_steps=5,
        progress=PROGRESS.append,
        seconds={"shapes_ar": 61.5, "everything": 570.0},
    )


def _write_history(run: Path, terms: tuple[str, ...]) -> None:
    rows = [
        {"step": step, "seconds": step / 10, "loss": 1 / step} | dict.fromkeys(terms, 1 / step)
        for step in range(10, 1510, 10)
    ]
    (run / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
