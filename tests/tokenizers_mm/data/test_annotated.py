"""Sources with captions, labels and features: everything belongs to its image, or is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tokenizers_mm.api import Tokens, TokenSpec
from tokenizers_mm.data.annotated import CaptionedFolder, LabelledImages, labelled_folder
from tokenizers_mm.data.crops import RandomCrops
from tokenizers_mm.data.folder import ImageFolder
from tokenizers_mm.data.images import to_tensor
from tokenizers_mm.data.labelled import Labelled
from tokenizers_mm.data.sources import Draw, Examples, ImageArrays, draws_for
from tokenizers_mm.semantics import Semantics
from tokenizers_mm.store.dataset import TokenDataset
from tokenizers_mm.store.encode import encode_folder
from tokenizers_mm.store.features import WithFeatures

NAMES = ("a.png", "b.png", "c.png")


def pictures(count, side=16):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def labelled(count=6, side=16, **changes):
    parts = {
        "images_NHWC": pictures(count, side),
        "captions": tuple(f"caption {i}" for i in range(count)),
        "labels_N": np.arange(count) % 2,
        "classes": ("even", "odd"),
        "keys": tuple(f"{chr(ord('a') + i)}" for i in range(count)),
    }
    return Labelled(**parts | changes)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "images"
    path.mkdir()
    for name, image in zip(NAMES, pictures(3), strict=True):
        Image.fromarray(image).save(path / name)
    notes = [{"file": name, "caption": f"caption {i}", "label": i % 2} for i, name in enumerate(NAMES)]
    (path / "captions.jsonl").write_text("\n".join(map(json.dumps, notes)))
    return path


class Means:
    """The colour of every quarter of a picture: a teacher whose features can be checked by hand."""

    spec = TokenSpec(image_size=(16, 16), grid=(2, 2), dim=3)
    downsampling = 8

    def encode(self, image_BCHW):
        features = torch.nn.functional.adaptive_avg_pool2d(image_BCHW, 2)
        return Tokens(latents_BND=features.flatten(2).transpose(1, 2), grid=(2, 2))


class Codes(Means):
    spec = TokenSpec(image_size=(16, 16), grid=(2, 2), codes=(4,), dim=3)

    def encode(self, image_BCHW):
        return Tokens(codes_BNS=torch.zeros(len(image_BCHW), 4, 1, dtype=torch.int64), grid=(2, 2))

    def embed(self, tokens):
        return torch.zeros(*tokens.codes_BNS.shape[:2], 3)


def store(folder, out, tokenizer=None):
    encode_folder(tokenizer or Means(), folder, out, size=16, fingerprint="teacher")
    return TokenDataset(out)


def test_batches_carry_what_belongs_to_their_images():
    data = labelled()
    source = LabelledImages(data)
    batch = source.batch([Draw(4, 0), Draw(1, 9)])
    assert torch.equal(batch.image_BCHW, data.tensor([4, 1]))
    assert batch.captions == ("caption 4", "caption 1")
    assert batch.labels_B.tolist() == [0, 1]
    assert (len(source), source.fixed, source.keys) == (6, True, list(data.keys))
    unlabelled = LabelledImages(labelled(labels_N=np.full(6, -1), classes=()))
    assert unlabelled.batch([Draw(0, 0)]).labels_B is None


def test_augmentation_depends_on_the_seed_alone_and_moves_what_it_says():
    data = labelled(1)
    image_BCHW = data.tensor()
    draws = [Draw(0, seed) for seed in range(200)]
    flipped = LabelledImages(data, flip=True).batch(draws).image_BCHW
    mirrored = (flipped == image_BCHW.flip(3)).flatten(1).all(1)
    assert ((flipped == image_BCHW).flatten(1).all(1) ^ mirrored).all()
    assert abs(mirrored.float().mean() - 0.5) < 0.15  # four standard deviations
    shifted = LabelledImages(data, shift=2).batch(draws).image_BCHW
    padded = torch.nn.functional.pad(image_BCHW, (2, 2, 2, 2), mode="replicate")
    windows = [padded[0, :, y : y + 16, x : x + 16] for y in range(5) for x in range(5)]
    seen = {number for one in shifted for number, window in enumerate(windows) if torch.equal(one, window)}
    assert seen == set(range(25))
    crops = LabelledImages(data, crop=14).batch(draws).image_BCHW
    windows = [image_BCHW[0, :, y : y + 14, x : x + 14] for y in range(3) for x in range(3)]
    assert {n for one in crops for n, window in enumerate(windows) if torch.equal(one, window)} == set(range(9))
    source = LabelledImages(data, flip=True, shift=2, crop=14)
    assert torch.equal(source.batch(draws[5:6]).image_BCHW[0], source.batch(draws).image_BCHW[5])
    assert not source.fixed


@pytest.mark.parametrize("options", [{"shift": -1}, {"shift": 16}, {"crop": 0}, {"crop": 17}])
def test_impossible_augmentation_is_refused(options):
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"{name}={value}: expected"):
        LabelledImages(labelled(), **options)
    with pytest.raises(ValueError, match="no images"):
        LabelledImages(labelled().subset([]))


def test_folders_with_captions(folder):
    source = CaptionedFolder(folder, 16, crop="centre", flip=False)
    batch = source.batch([Draw(2, 0), Draw(0, 0)])
    assert torch.equal(batch.image_BCHW, torch.stack([to_tensor(pictures(3)[i]) for i in (2, 0)]))
    assert (batch.captions, batch.labels_B.tolist()) == (("caption 2", "caption 0"), [0, 0])
    assert (source.fixed, CaptionedFolder(folder, 16).fixed, source.keys) == (True, False, list(NAMES))
    data = labelled_folder(folder, 16)
    assert np.array_equal(data.images_NHWC, pictures(3))
    assert (data.captions[1], data.labels_N.tolist(), data.classes, data.keys) == (
        "caption 1",
        [0, 1, 0],
        ("0", "1"),
        NAMES,
    )
    assert labelled_folder(folder, 8, limit=2).images_NHWC.shape == (2, 8, 8, 3)
    (folder / "captions.jsonl").unlink()
    for name in NAMES:
        (folder / name).with_suffix(".txt").write_text(f"text of {name}")
    assert labelled_folder(folder, 16).labels_N.tolist() == [-1, -1, -1]
    assert CaptionedFolder(folder, 16).batch([Draw(1, 0)]).labels_B is None
    (folder / "b.txt").write_text("")
    with pytest.raises(ValueError, match=r"b\.txt: the caption is empty"):
        CaptionedFolder(folder, 16)


@pytest.mark.filterwarnings("ignore:.*the next image is used:UserWarning")
def test_captions_labels_and_features_are_those_of_the_image_that_stands_in(folder, tmp_path):
    features = store(folder, tmp_path / "store")
    options = {"crop": "centre", "flip": False}
    whole = WithFeatures(CaptionedFolder(folder, 16, **options), features).batch([Draw(2, 0), Draw(0, 0)])
    (folder / "b.png").write_bytes(b"broken")
    source = CaptionedFolder(folder, 16, **options)
    quarantined = store(folder, tmp_path / "later")  # lacks b.png, which could not be encoded
    assert quarantined.quarantined["b.png"].stage == "header"
    given = [Draw(1, 0), Draw(0, 0)]
    for found in (
        source.fetch(given),
        WithFeatures(source, Semantics(*(part.float() for part in memory(features)), (2, 2))).fetch(given),
        WithFeatures(CaptionedFolder(folder, 16, **options), quarantined).fetch(given),
    ):
        assert [draw.index for draw in found.draws] == [2, 0]
        assert list(found.refused) == ["b.png"]
        assert torch.equal(found.batch.image_BCHW, whole.image_BCHW)
        assert found.batch.captions == ("caption 2", "caption 0")
        assert found.batch.labels_B.tolist() == [0, 0]
        if found.batch.features is not None:
            assert torch.equal(found.batch.features.patch_BND, whole.features.patch_BND)
    assert torch.equal(source.batch(given).image_BCHW, whole.image_BCHW)
    # One whose features are missing is passed over although it can be read.
    Image.fromarray(pictures(3)[1]).save(folder / "b.png")
    repaired = WithFeatures(ImageFolder(folder, 16, **options), quarantined).fetch(given)
    assert [draw.index for draw in repaired.draws] == [2, 0]
    assert "so it has no features" in repaired.refused["b.png"].reason
    assert [draw.index for draw in source.fetch(given).draws] == [1, 0]
    # Images that nobody tried to encode are still a mistake.
    Image.fromarray(pictures(3)[1]).save(folder / "new.png")
    with pytest.raises(ValueError, match=r"other images: 1.*4.*first.*'new\.png'"):
        WithFeatures(ImageFolder(folder, 16, **options), quarantined)


def memory(features):
    """All features of a store, as `Semantics` takes them."""
    patch_BND = features.batch(range(len(features))).tokens.data
    return patch_BND, patch_BND.float().mean(1)


def test_features_of_a_store_are_found_by_key(folder, tmp_path):
    features = store(folder, tmp_path / "store")
    expected = Means().encode(torch.stack([to_tensor(image) for image in pictures(3)])).latents_BND
    shuffled = labelled(3).subset([2, 0, 1])  # keys a, b, c in another order, without the suffix of files
    for source, order in (
        (LabelledImages(shuffled), [2, 0, 1]),
        (CaptionedFolder(folder, 16, crop="centre", flip=False), [0, 1, 2]),
        (ImageFolder(folder, 16, crop="centre", flip=False), [0, 1, 2]),
    ):
        with_features = WithFeatures(source, features)
        batch = with_features.batch([Draw(2, 0), Draw(0, 0), Draw(1, 5)])
        rows = [order[i] for i in (2, 0, 1)]
        torch.testing.assert_close(batch.features.patch_BND, expected[rows], rtol=0.01, atol=0.01)  # stored in bf16
        torch.testing.assert_close(batch.features.pooled_BD, batch.features.patch_BND.mean(1))
        assert batch.features.patch_BND.dtype == torch.float32
        assert batch.features.grid == (2, 2)
        assert torch.equal(batch.image_BCHW, Examples.of(source.batch([Draw(2, 0), Draw(0, 0), Draw(1, 5)])).image_BCHW)
    assert batch.captions == ()
    assert with_features.fixed


def test_features_in_memory_are_found_by_number():
    data = labelled()
    features = Semantics(torch.randn(6, 4, 3, dtype=torch.bfloat16), torch.randn(6, 5), (2, 2))
    batch = WithFeatures(LabelledImages(data), features).batch(draws_for(6, 0, 0, 6))
    order = [draw.index for draw in draws_for(6, 0, 0, 6)]
    assert torch.equal(batch.features.patch_BND, features.patch_BND[order].float())
    assert torch.equal(batch.features.pooled_BD, features.pooled_BD[order])
    assert batch.captions == tuple(f"caption {i}" for i in order)
    assert len(WithFeatures(ImageArrays(data.images_NHWC), features).batch([Draw(3, 0)]).features) == 1
    with pytest.raises(ValueError, match=r"features.*5 images.*6"):
        WithFeatures(LabelledImages(data), features[:5])


def test_sources_that_change_their_images_are_refused(folder):
    features = Semantics(torch.zeros(3, 4, 3), torch.zeros(3, 3), (2, 2))
    for source in (
        LabelledImages(labelled(3), flip=True),
        ImageFolder(folder, 16, crop="centre", flip=True),
        CaptionedFolder(folder, 16, crop="random", flip=False),
        RandomCrops(list(pictures(3)), 8, draws_per_epoch=3),
    ):
        with pytest.raises(ValueError, match=f"{type(source).__name__} changes its images at random"):
            WithFeatures(source, features)


def test_stores_of_other_images_are_refused(folder, tmp_path):
    features = store(folder, tmp_path / "store")
    with pytest.raises(ValueError, match=r"other images: 3.*6.*first.*'d'"):
        WithFeatures(LabelledImages(labelled()), features)
    with pytest.raises(ValueError, match="ImageArrays has no keys"):
        WithFeatures(ImageArrays(pictures(3)), features)
    wide = labelled(3, images_NHWC=np.zeros((3, 16, 32, 3), np.uint8))
    with pytest.raises(ValueError, match=r"images.*\(16, 16\) pixels,.*source's.*\(16, 32\)"):
        WithFeatures(LabelledImages(wide), features)
    with pytest.raises(ValueError, match="holds codes"):
        WithFeatures(LabelledImages(labelled(3)), store(folder, tmp_path / "codes", Codes()))
    Image.fromarray(pictures(3)[0]).save(folder / "b.png")
    with pytest.raises(ValueError, match=r"b\.png.*encoded"):
        WithFeatures(ImageFolder(folder, 16, crop="centre", flip=False), features)
