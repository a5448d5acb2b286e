"""Captions to pictures: the tokens drawn are the tokens decoded, and a tokenizer that does not fit is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import backbones
from recipes.programs.sample import TOKENIZER_FILE, sample_images, save_strip
from recipes.schema.recipe import load_recipe
from tokenizers_mm import build_autoencoder, fingerprint, load, save
from tokenizers_mm.data.images import to_uint8

OPTIONS = {"width": 16, "depth": 1, "heads": 2}
CAPTIONS = ["small red circle top left", "large blue cross middle centre"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer of codes and one of latents, and generators on them: by caption, by class, and on latents."""
    root = tmp_path_factory.mktemp("sample")
    torch.manual_seed(0)
    codes, latents = (build_autoencoder(load_recipe(name).model).eval() for name in ("shapes_fsq", "shapes_vae"))
    save(codes, root / "codes")
    save(latents, root / "latents")
    for name, kind, options, spec in [
        ("captions", "autoregressive", OPTIONS, codes.spec),
        ("classes", "autoregressive", OPTIONS | {"classes": 3}, codes.spec),
        ("flow", "flow", OPTIONS, latents.spec),
    ]:
        generator = backbones.build(kind, options, spec)
        for parameter in generator.parameters():  # heads start at zero, where no option has an effect
            torch.nn.init.normal_(parameter, std=0.3)
        backbones.save(generator, root / name)
    return root


@pytest.mark.parametrize(("generator", "tokenizer"), [("captions", "codes"), ("flow", "latents")])
def test_images_are_the_decoded_samples(folder, generator, tokenizer):
    images = sample_images(folder / generator, folder / tokenizer, CAPTIONS, guidance=1.5, seed=3)
    tokens = backbones.load(folder / generator).sample(CAPTIONS, guidance=1.5, seed=3)
    assert torch.equal(images, to_uint8(load(folder / tokenizer).decode(tokens)))
    assert (images.shape, images.dtype) == ((2, 3, 32, 32), torch.uint8)
    for other in ({"guidance": 1.5, "seed": 4}, {"guidance": 3.0, "seed": 3}):
        assert not torch.equal(images, sample_images(folder / generator, folder / tokenizer, CAPTIONS, **other))


def test_classes_are_numbers(folder):
    images = sample_images(folder / "classes", folder / "codes", ["0", "2"])
    tokens = backbones.load(folder / "classes").sample(torch.tensor([0, 2]), guidance=2.0, seed=0)
    assert torch.equal(images, to_uint8(load(folder / "codes").decode(tokens)))
    with pytest.raises(ValueError, match=r"condition 'cat':.*generator"):
        sample_images(folder / "classes", folder / "codes", ["cat"])
    with pytest.raises(ValueError, match=r"\[0, 3\]:.*generator.*classes 0..2"):
        sample_images(folder / "classes", folder / "codes", ["0", "3"])


def test_a_tokenizer_of_other_tokens_is_refused(folder):
    with pytest.raises(ValueError, match=r"captions.*tokenizer"):
        sample_images(folder / "captions", folder / "latents", CAPTIONS)


def test_another_tokenizer_of_the_same_shape_is_refused(folder, tmp_path):
    """The spec cannot tell two trainings of one recipe apart, the fingerprint can."""
    generator = tmp_path / "generator"
    backbones.save(backbones.load(folder / "captions"), generator)
    first = load(folder / "codes")
    (generator / TOKENIZER_FILE).write_text(fingerprint(first) + "\n")
    assert sample_images(generator, folder / "codes", CAPTIONS[:1]).shape == (1, 3, 32, 32)
    second = build_autoencoder(replace(first.config))
    save(second, tmp_path / "second")
    with pytest.raises(ValueError, match=f"{fingerprint(first)}, but .*second is tokenizer {fingerprint(second)}"):
        sample_images(generator, tmp_path / "second", CAPTIONS)


def test_strips_are_enlarged_without_smoothing(tmp_path):
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    save_strip(images, tmp_path / "new" / "strip.png", height=100)
    strip = np.asarray(Image.open(tmp_path / "new" / "strip.png"))
    assert strip.shape == (96, 3 * 96, 3)
    assert np.array_equal(strip[1::3, 96:192][:, 2::3], images[1].permute(1, 2, 0).numpy())
    save_strip(images, tmp_path / "plain.png", height=8)
    assert Image.open(tmp_path / "plain.png").size == (96, 32)
