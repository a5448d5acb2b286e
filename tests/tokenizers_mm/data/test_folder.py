"""Image folders as sources: what is drawn, and what stands in for images that cannot be read."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from tokenizers_mm.data import folder as module
from tokenizers_mm.data.folder import ImageFolder
from tokenizers_mm.data.images import ImageError, resize_shorter
from tokenizers_mm.data.loader import DataPosition, micro_batches
from tokenizers_mm.data.sources import Draw, batch_of, draws_for, fetch, unreadable_of
from tokenizers_mm.data.unreadable import TooManyUnreadable

NAMES = [f"{letter}.png" for letter in "abcdefgh"]
EVERY = DataPosition(seed=0, steps=6, batch_size=4, accumulate=2, micro_size=2)


def photo(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
    for seed, name in enumerate(NAMES):
        Image.fromarray(photo(20, 24, seed)).save(tmp_path / name)
    return tmp_path


def break_files(folder, *names):
    for name in names:
        (folder / name).write_bytes((folder / name).read_bytes()[:100])


def test_the_shorter_side_is_resized_and_a_square_is_cropped(tmp_path):
    Image.fromarray(photo(20, 40)).save(tmp_path / "a.png")
    Image.fromarray(photo(40, 20)).save(tmp_path / "b.png")
    source = ImageFolder(tmp_path, 16)
    assert source.batch(draws_for(len(source), 0, 0, 6)).shape == (6, 3, 16, 16)
    centre = ImageFolder(tmp_path, 20, crop="centre", flip=False).batch([Draw(0, 0)])
    assert torch.equal(centre[0], torch.tensor(photo(20, 40)[:, 10:30]).permute(2, 0, 1) / 127.5 - 1)
    with pytest.raises(ValueError, match="crop='middle'"):
        ImageFolder(tmp_path, 16, crop="middle")
    with pytest.raises(ValueError, match=r"max_unreadable=2: expected a share"):
        ImageFolder(tmp_path, 16, max_unreadable=2)


def test_the_next_image_stands_in_with_the_same_seed(folder):
    source = ImageFolder(folder, 16, max_unreadable=0.5)
    whole = {index: source.batch([Draw(index, 7)]) for index in range(8)}
    break_files(folder, "b.png", "c.png", "h.png")
    for index, shown in ((0, 0), (1, 3), (2, 3), (7, 0)):
        fetched = source.fetch([Draw(index, 7), Draw(4, 7)])
        assert torch.equal(fetched.batch, torch.cat([whole[shown], whole[4]]))
        assert fetched.draws == [Draw(shown, 7), Draw(4, 7)]
    assert fetch(source, [Draw(1, 0), Draw(7, 0)]).refused.keys() == {"b.png", "c.png", "h.png"}
    assert fetch(source, [Draw(3, 0)]).refused == {}
    assert not torch.equal(source.batch([Draw(4, 8)]), whole[4])  # another seed, another crop


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_for_any_number_of_workers(folder, workers):
    break_files(folder, "d.png")
    source = ImageFolder(folder, 16)
    batches = list(micro_batches(source, EVERY, 0, workers=workers))
    expected = [fetch(source, draws_for(8, 0, first, 2)) for first in range(0, 24, 2)]
    assert len(batches) == 12
    assert all(torch.equal(one.batch, other.batch) for one, other in zip(batches, expected, strict=True))
    assert [one.draws for one in batches] == [one.draws for one in expected]
    refused = [{key: str(error) for key, error in one.refused.items()} for one in batches]
    assert refused == [{key: str(error) for key, error in one.refused.items()} for one in expected]
    assert sum(map(len, refused)) == 3  # once in each epoch of four steps that is not cut short
    later = list(micro_batches(source, EVERY, 4, workers=workers))
    assert all(torch.equal(one.batch, other.batch) for one, other in zip(later, expected[8:], strict=True))


def test_each_is_named_once(folder):
    break_files(folder, "b.png")
    source = ImageFolder(folder, 16)
    ledger = unreadable_of(source)
    with pytest.warns(UserWarning, match=r"b\.png: decode:.*image.*instead") as caught:
        first = batch_of(source, [Draw(1, 0), Draw(1, 1)], ledger)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(batch_of(source, [Draw(1, 0), Draw(1, 1)], ledger), first)
    assert len(caught) == 1
    assert list(ledger.errors) == ["b.png"]
    with pytest.warns(UserWarning, match=r"b\.png"):
        source.batch([Draw(1, 0)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source.batch([Draw(0, 0)])
        batch_of(source, [Draw(1, 0)], unreadable_of(source, warn=False))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_more_than_the_allowed_share_ends_it(folder):
    break_files(folder, "b.png", "c.png")
    for allowed, bad in ((0.1, 2), (0.2, 2), (0.0, 1)):
        source = ImageFolder(folder, 16, max_unreadable=allowed)
        assert source.fetch([Draw(1, 0)]).batch is None
        with pytest.raises(TooManyUnreadable, match=rf"{bad} of 8 images cannot be .* share of {allowed:g}"):
            source.batch([Draw(1, 0)])
        assert source.batch([Draw(3, 0)]).shape == (1, 3, 16, 16)
    assert ImageFolder(folder, 16, max_unreadable=0.25).batch([Draw(1, 0)]).shape == (1, 3, 16, 16)
    # Together they are too many, though no batch meets more than one.
    break_files(folder, "g.png")
    source = ImageFolder(folder, 16, max_unreadable=0.25)
    ledger = unreadable_of(source)
    batch_of(source, [Draw(1, 0)], ledger)
    with pytest.raises(TooManyUnreadable, match=r"3.*8.*first: \S*b\.png:.*raise data\.max_unr"):
        batch_of(source, [Draw(6, 0)], ledger)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_folder_without_a_single_readable_image(folder):
    break_files(folder, *NAMES)
    with pytest.raises(TooManyUnreadable, match=r"8 images.*first: \S*d\.png: decode"):
        ImageFolder(folder, 16, max_unreadable=1).batch([Draw(3, 0)])


def test_only_what_is_wrong_with_an_image_is_passed_over(folder, monkeypatch):
    source = ImageFolder(folder, 64, max_unreadable=0.9)
    (folder / "a.png").write_bytes(b"")
    break_files(folder, "b.png")
    Image.fromarray(photo(1, 40_000)).save(folder / "c.png")
    (folder / "d.png").unlink()
    monkeypatch.setattr(module, "resize_shorter", lambda image, size: resize_shorter(image, size, 1_000_000))
    stages = {key: error.stage for key, error in source.fetch([Draw(0, 0)]).refused.items()}
    assert stages == {"a.png": "header", "b.png": "decode", "c.png": "preprocess", "d.png": "read"}

    def broken(*_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(module, "resize_shorter", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        source.fetch([Draw(5, 0)])


def test_the_error_comes_out_of_a_process_as_it_was():
    error = pickle.loads(pickle.dumps(ImageError("a.png", "decode", "broken")))
    assert (str(error), error.name, error.stage, error.reason) == ("a.png: decode: broken", "a.png", "decode", "broken")


def test_images_without_what_belongs_beside_them_are_passed_over(folder):
    source = ImageFolder(folder, 16)
    source.refuse(1, "encode", "no features")
    fetched = source.fetch([Draw(1, 0)])
    assert fetched.draws == [Draw(2, 0)]
    assert str(fetched.refused["b.png"]) == f"{folder / 'b.png'}: encode: no features"
