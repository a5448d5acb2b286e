"""The evaluation program measures what `evaluate` measures, on the images it says."""

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from recipes.evaluate import evaluate_images
from recipes.recipe import load_recipe
from tokenizers_mm import build_autoencoder, load, save
from tokenizers_mm.data.images import pad_to_multiple, to_tensor, unpad
from tokenizers_mm.data.photos import heldout_photos
from tokenizers_mm.measure.reconstruction import psnr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer in `tokenizer`, and five photographs of different sizes in `images`."""
    root = tmp_path_factory.mktemp("evaluate")
    torch.manual_seed(0)
    config = load_recipe("shapes_fsq").model
    save(build_autoencoder(replace(config, linear=False)), root / "tokenizer")
    (root / "images" / "deeper").mkdir(parents=True)
    for number, photo in enumerate(islice(crops(), 5)):
        Image.fromarray(photo).save(root / "images" / ("deeper" if number % 2 else "") / f"{number}.png")
    return root


def crops():
    photo = heldout_photos()["flower"]
    for number in range(5):
        yield photo[40 * number : 40 * number + 50, 60 * number : 60 * number + 40 + 8 * number]


def test_native_sizes_are_padded_and_every_figure_has_its_protocol(folder):
    result = evaluate_images(folder / "tokenizer", str(folder / "images"))
    model, expected = load(folder / "tokenizer"), []
    for pixels in crops():
        image = to_tensor(pixels)[None]
        padded, size = pad_to_multiple(image, 8)
        expected.append(float(psnr(unpad(model.decode(model.encode(padded)), size), image)))
    assert result["PSNR"].value == pytest.approx(np.mean(expected), abs=1e-9)
    protocol = result["PSNR"].protocol
    assert (protocol.samples, protocol.reference, protocol.resize, protocol.crop) == (5, "images", "none", "none")
    assert protocol.padding != "none"
    record = json.loads(result.to_json())
    assert all(figure["protocol"]["samples"] == 5 for figure in record["measurements"])
    assert record["codes"]["vocabulary"] == [1000]


def test_a_size_resizes_and_crops(folder):
    result = evaluate_images(folder / "tokenizer", str(folder / "images"), size=32, limit=3)
    protocol = result["PSNR"].protocol
    assert (protocol.samples, protocol.resize, protocol.crop, protocol.padding) == (
        3,
        "shorter side to 32, bicubic, antialiased",
        "centre 32 x 32",
        "none",
    )
    assert result["Rate per image"].value == pytest.approx(16 * np.log2(1000))
    other = evaluate_images(folder / "tokenizer", str(folder / "images"), size=32, limit=2)["PSNR"]
    assert other.value != result["PSNR"].value


def test_the_heldout_photographs_need_no_folder(folder):
    result = evaluate_images(folder / "tokenizer", "photos", size=64)
    assert result["PSNR"].protocol.samples == 2
    assert result["PSNR"].protocol.reference == "photographs of scikit-learn, held out"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": "nowhere"}, "nowhere: does not exist; give a folder of images"),
        ({"size": 33}, "size=33 is not a multiple of 8, the tokenizer's downsampling"),
        ({"limit": 0}, "images is empty: there is nothing to measure"),
        ({"perceptual_name": "lpips"}, "name='lpips': expected one of lpips-vgg"),
        ({"tokenizer": "nowhere"}, r"nowhere \(revision main\): cannot be downloaded \(HF_HUB_OFFLINE is set\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_are_named(folder, options, message):
    arguments = {"tokenizer": folder / "tokenizer", "images": str(folder / "images")} | options
    with pytest.raises(ValueError, match=message):
        evaluate_images(arguments.pop("tokenizer"), arguments.pop("images"), **arguments)
