"""Weights of LPIPS in a file of one's own: a recipe's key and the flags of `tmm eval` and `tmm compare` lead to it."""

import json

import lpips
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from recipes import cli
from recipes.compare.measure import Settings, compare_tokenizers
from recipes.compare.page import write_comparison
from recipes.programs.evaluate import evaluate_images
from recipes.programs.train import train_recipe
from recipes.schema.recipe import load_recipe
from tokenizers_mm import build_autoencoder, save
from tokenizers_mm.weights.network_names import LPIPS_BACKBONES
from tokenizers_mm.weights.state_dict import file_sha256

TINY = [
    "data.count=8", "train={steps: 2, batch_size: 2, warmup: 1, log_every: 1, checkpoint_every: 2, picture_every: 0, "
    "tracker: none}", "objective.perceptual=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random SqueezeNets as torchvision publishes them: squeeze.pth, other.pth; a tokenizer and images."""
    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for name in ("squeeze", "other"):
        state = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False).net.state_dict()
        backbone = {"features." + key.split(".", 1)[1]: value for key, value in state.items()}
        torch.save(backbone | {"classifier.0.weight": torch.zeros(1)}, root / f"{name}.pth")
    save(build_autoencoder(load_recipe("shapes_fsq").model).eval(), root / "tokenizer")
    (root / "images").mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
    return root


@pytest.fixture
def nothing_cached(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))


def terms_of(folder):
    return [json.loads(line)["perceptual"] for line in (folder / "history.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("nothing_cached")
def test_a_recipe_says_which_file(folder, tmp_path):
    terms = {}
    for name in ("squeeze", "other"):
        chosen = [
            f"objective.perceptual_weights={folder / f'{name}.pth'}",
            "objective.perceptual_network=lpips-squeeze",
        ]
        train_recipe(load_recipe("shapes_fsq", [*TINY, *chosen]), tmp_path / name)
        terms[name] = terms_of(tmp_path / name)
        assert len(terms[name]) == 2
        assert all(term > 0 for term in terms[name])
    assert terms["squeeze"][0] != terms["other"][0]  # the same images and the same start
    with pytest.raises(ValueError, match=rf"{LPIPS_BACKBONES['vgg']}.*--set objective\.perceptual_weights="):
        train_recipe(load_recipe("shapes_fsq", TINY), tmp_path / "without")


def test_a_recipe_that_needs_no_weights_refuses_them():
    with pytest.raises(ValueError, match=r"shapes_fsq.*perceptual_weights=vgg\.pth: perceptual is 0"):
        load_recipe("shapes_fsq", ["objective.perceptual_weights=vgg.pth"])


@pytest.mark.usefixtures("nothing_cached")
def test_eval_takes_the_file_and_says_by_its_hash_which_it_was(folder, tmp_path):
    command = ["eval", folder / "tokenizer", folder / "images", "--perceptual", "lpips-squeeze"]

    def invoked(*more):
        return CliRunner().invoke(cli.app, [str(word) for word in (*command, *more)])

    done = invoked("--perceptual-weights", folder / "squeeze.pth", "--json", tmp_path / "figures.json")
    assert done.exit_code == 0, (done.output, done.exception)
    figures = {figure["name"]: figure for figure in json.loads((tmp_path / "figures.json").read_text())["measurements"]}
    distance = figures["LPIPS (SqueezeNet)"]
    assert distance["value"] > 0
    assert distance["protocol"]["extractor_sha256"] == file_sha256(folder / "squeeze.pth")
    missing = invoked()
    assert isinstance(missing.exception, ValueError)
    assert LPIPS_BACKBONES["squeeze"] in str(missing.exception)
    assert "--perceptual-weights" in str(missing.exception)
    with pytest.raises(ValueError, match=rf"perceptual_weights={folder / 'squeeze.pth'}: perceptual is none"):
        evaluate_images(folder / "tokenizer", str(folder / "images"), perceptual_weights=folder / "squeeze.pth")


@pytest.mark.usefixtures("nothing_cached")
def test_compare_takes_the_file_and_its_command_says_so(folder, tmp_path):
    weights = str(folder / "squeeze.pth")
    settings = Settings(
        images=str(folder / "images"), perceptual="lpips-squeeze", perceptual_weights=weights, probe="none", speed=False
    )
    comparison = compare_tokenizers([str(folder / "tokenizer")], settings)
    (measured,) = comparison.tokenizers
    assert measured.evaluation["LPIPS (SqueezeNet)"].protocol.extractor_sha256 == file_sha256(folder / "squeeze.pth")
    html = write_comparison(comparison, tmp_path).read_text(encoding="utf-8")
    assert f"--perceptual-weights {weights}" in html
    with pytest.raises(ValueError, match=r"nothing\.pth: no such file.*--perceptual-weights"):
        compare_tokenizers([str(folder / "tokenizer")], Settings(
            images=str(folder / "images"), perceptual="lpips-squeeze", perceptual_weights="nothing.pth", speed=False,
        ))  # fmt: skip
