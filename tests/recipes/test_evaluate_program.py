"""The evaluation program measures what `evaluate` measures, on the images it says."""

import json
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from rich.console import Console

from recipes.commands.eval import named_folders
from recipes.joint.effective_bits import EffectiveBitsConfig
from recipes.programs.evaluate import Extras, evaluate_images
from recipes.schema.recipe import load_recipe
from tokenizers_mm import Tokens, TokenSpec, build_autoencoder, load, save
from tokenizers_mm.data.images import pad_to_multiple, to_tensor, unpad
from tokenizers_mm.data.sets.photos import heldout_photos
from tokenizers_mm.data.unreadable import TooManyUnreadable
from tokenizers_mm.measure.reconstruction import psnr
from tokenizers_mm.towers import TowerConfig, build_tower

TINY = EffectiveBitsConfig(width=16, depth=1, heads=1, steps=3, batch_size=4)


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
        ({"preset_name": "fid"}, "preset='fid': expected one of default, adm"),
        ({"extras": Extras(frechet="vgg")}, "name='vgg': expected inception, inception-pytorch, lite0"),
        ({"extras": Extras(teacher="vgg")}, "name='vgg': expected timm:MODEL"),
        ({"limit": 2, "extras": Extras(probe="nowhere")}, "nowhere: does not exist"),
        ({"tokenizer": "nowhere"}, r"nowhere \(revision main\): cannot be downloaded \(HF_HUB_OFFLINE is set\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_are_named(folder, options, message):
    arguments = {"tokenizer": folder / "tokenizer", "images": str(folder / "images")} | options
    with pytest.raises(ValueError, match=message):
        evaluate_images(arguments.pop("tokenizer"), arguments.pop("images"), **arguments)


def with_broken(folder, root, small=True):
    """The five photographs, and files of other kinds: no image, too narrow for any size, too small for SSIM."""
    shutil.copytree(folder / "images", root)
    (root / "2a.png").write_text("no image")
    Image.new("RGB", (1, 60_000)).save(root / "2b.png")
    if small:
        Image.new("RGB", (10, 40)).save(root / "2c.png")
    return root


def printed(result):
    console = Console(width=120)
    with console.capture() as capture:
        console.print(result.table())
    return capture.get()


@pytest.mark.parametrize(("options", "left_out"), [({}, 3), ({"size": 48}, 2), ({"size": 48, "preset_name": "adm"}, 2)])
def test_images_that_cannot_be_used_change_nothing_but_the_count(folder, tmp_path, options, left_out):
    images, said = with_broken(folder, tmp_path / "images", small=not options), []
    result = evaluate_images(folder / "tokenizer", str(images), max_unreadable=0.5, warn=said.append, **options)
    clean = evaluate_images(folder / "tokenizer", str(folder / "images"), **options)
    assert result.measurements == clean.measurements
    record = json.loads(result.to_json())
    assert record["images"] == {"measured": 5, "left_out": left_out}
    assert [Path(error.split(":")[0]).name for error in record["left_out"]["images"]] == ["2a.png", "2b.png", "2c.png"][
        :left_out
    ]
    assert [line.removesuffix("; left out") for line in said] == record["left_out"]["images"]
    assert f"{left_out} more left out" in printed(result)
    # Negative control: nothing is said of a folder in which everything can be used.
    assert (clean.record()["images"], "left_out" in clean.record()) == ({"measured": 5, "left_out": 0}, False)
    assert "left out" not in printed(clean)


def test_too_many_that_cannot_be_used_end_the_evaluation(folder, tmp_path):
    images = with_broken(folder, tmp_path / "images")
    with pytest.raises(TooManyUnreadable, match=r"images: 2 of 8 images.*2a\.png.*--max-unreadable"):
        evaluate_images(folder / "tokenizer", str(images), warn=lambda _: None)


def test_other_folders_are_counted_apart(folder, tmp_path):
    data, text = labelled(tmp_path / "tones", 24), labelled(tmp_path / "text")
    (data / "dark" / "0.png").write_text("no image")
    (text / "light" / "1.png").write_text("no image")
    extras = Extras(
        **on(data, tmp_path),
        domains={"text": str(text)},
    )
    with pytest.warns(UserWarning, match="left out") as said:
        result = evaluate_images(folder / "tokenizer", str(folder / "images"), size=32, extras=extras)
    assert len([one for one in said if "left out" in str(one.message)]) == 2  # the one of train and probe is named once
    assert {purpose: len(errors) for purpose, errors in result.left_out.items()} == {"train": 1, "probe": 1}
    assert result.record()["images"] == {"measured": 5, "left_out": 0}
    assert result["Linear probe"].protocol.samples == 23
    assert result.domains["text"].record()["images"] == {"measured": 11, "left_out": 1}
    assert result.left_out_text == (
        "1 images (train) left out: cannot be read",
        "1 images (probe) left out: cannot be read",
    )


class Halves:
    """The four members and nothing else: the mean of every 8 x 8 pixels."""

    spec = TokenSpec(image_size=(32, 32), grid=(4, 4), dim=3)

    def encode(self, image_BCHW):
        mean_BChw = torch.nn.functional.avg_pool2d(image_BCHW, 8)
        return Tokens(latents_BND=mean_BChw.flatten(2).transpose(1, 2), grid=tuple(mean_BChw.shape[2:]))

    def embed(self, tokens):
        return tokens.data

    def decode(self, tokens):
        mean_BChw = tokens.data.transpose(1, 2).reshape(len(tokens), 3, *tokens.grid)
        return mean_BChw.repeat_interleave(8, 2).repeat_interleave(8, 3)


def test_a_plain_class_is_measured_as_it_is(folder):
    result = evaluate_images(Halves(), str(folder / "images"))
    assert result["PSNR"].protocol.samples == 5
    assert result["PSNR"].value > 10
    with pytest.raises(ValueError, match="size=33 is not a multiple of 8"):
        evaluate_images(Halves(), str(folder / "images"), size=33)


def labelled(root, count=12):
    for number in range(count):
        path = root / ("light" if number % 2 else "dark") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 60, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels + np.uint8(190 * (number % 2))).save(path)
    return root


def test_a_preset_changes_pixels_and_protocol(folder):
    plain = evaluate_images(folder / "tokenizer", str(folder / "images"), size=32)
    other = evaluate_images(folder / "tokenizer", str(folder / "images"), size=32, preset_name="bsq-vit")
    assert other["PSNR"].protocol.resize == "shorter side to 32, lanczos, antialiased"
    assert (other["PSNR"].protocol.rounding, plain["PSNR"].protocol.rounding) == ("float", "rounded")
    assert other["PSNR"].protocol.reference_sha256 != plain["PSNR"].protocol.reference_sha256


def test_extras_are_rows_of_the_same_table(folder, tmp_path):
    data = labelled(tmp_path / "tones")
    extras = Extras(
        **on(data, tmp_path),
        effective_bits=True,
        speed=True,
        domains={"tones": str(data)},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recipes.joint.effective_bits.EffectiveBitsConfig", lambda: TINY)
        result = evaluate_images(folder / "tokenizer", str(data), size=32, extras=extras)
    assert result["Linear probe"].value == 100
    assert result["Most frequent class"].value == pytest.approx(50, abs=20)
    assert result["FD-timm:resnet10t at 32 px"].value > 0
    # The floor compares the images with themselves here.
    assert result["FD-timm:resnet10t at 32 px floor"].value == pytest.approx(0, abs=1e-6)
    assert result["Effective bits"].value > 0
    assert result["Speed, encode"].value > 0
    assert result.domains["tones"]["PSNR"].value == pytest.approx(result["PSNR"].value)
    assert "Linear probe" not in [m.name for m in result.domains["tones"].measurements]
    assert json.loads(result.to_json())["domains"]["tones"]["measurements"]


def test_a_tower_has_semantics_and_no_pixels(tmp_path):
    tower = build_tower(TowerConfig(name="timm:resnet10t", input_size=64), random_init=True)
    save(tower, tmp_path / "tower")
    data = labelled(tmp_path / "tones")
    result = evaluate_images(tmp_path / "tower", str(data), extras=Extras(probe=str(data)))
    assert "PSNR" not in [m.name for m in result.measurements]
    assert result["Rate"].protocol.crop == "centre 64 x 64"
    assert result["Linear probe"].value > 80
    with pytest.raises(ValueError, match=r"classification.*tokenizer"):
        evaluate_images(tmp_path / "tower", str(data), limit=1, extras=Extras(zero_shot=str(data)))
    with pytest.raises(ValueError, match=r"effective bits:.*training"):
        evaluate_images(tmp_path / "tower", str(data), limit=1, extras=Extras(effective_bits=True))


def on(data, tmp_path):
    """Extras that measure a distance and a probe on these images."""
    network = {"frechet": "timm:resnet10t", "frechet_size": 32, "frechet_weights": network_weights(tmp_path)}
    return network | {"train": str(data), "probe": str(data)}


def network_weights(folder):
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", pretrained=False)
    torch.save(network.state_dict(), folder / "resnet10t.pt")
    return folder / "resnet10t.pt"


def test_domains_are_assignments():
    assert named_folders(["text=a/b", "faces=c=d"]) == {"text": "a/b", "faces": "c=d"}
    for wrong in (["text"], ["=x"], ["text="], ["text=a", "text=b"]):
        with pytest.raises(ValueError, match="expected NAME=FOLDER, every name once"):
            named_folders(wrong)
