import json
from itertools import product

import numpy as np
import pytest
from PIL import Image

from tokenizers_mm.data.sets.shapes import (
    ATTRIBUTES,
    COMBINATIONS,
    Shapes,
    caption,
    edits,
    parse_caption,
    split_indices,
    write_folder,
)


def test_captions_and_parse_are_exact_inverses():
    texts = set()
    for values in product(*ATTRIBUTES.values()):
        attributes = dict(zip(ATTRIBUTES, values, strict=True))
        texts.add(caption(attributes))
        assert parse_caption(caption(attributes)) == attributes
    assert len(texts) == 432
    for other in (
        "",
        "small red circle",
        "small red circle top left ",
        "red small circle top left",
        "small red circle  top left",
    ):
        assert parse_caption(other) is None


def test_unknown_attribute_is_named():
    with pytest.raises(ValueError, match="colour='pink': expected one of red, green"):
        caption({"size": "small", "colour": "pink", "shape": "circle", "position": "top left"})


def test_heldout_is_15_percent_and_every_value_stays_in_train():
    train, heldout = split_indices("train"), split_indices("heldout")
    assert len(heldout) == round(0.15 * 432)
    assert sorted([*train, *heldout]) == list(range(432))
    for column, values in enumerate(ATTRIBUTES.values()):
        assert set(COMBINATIONS[train][:, column]) == set(range(len(values)))
    with pytest.raises(ValueError, match="split='test': expected one of train, heldout, all"):
        split_indices("test")


def test_same_arguments_give_the_same_images_and_seeds_differ():
    one, two, other = Shapes(64, 1), Shapes(64, 1), Shapes(64, 2)
    np.testing.assert_array_equal(one.images, two.images)
    assert one.captions == two.captions
    assert one.captions != other.captions
    assert one.images.dtype == np.uint8
    assert len(set(one.keys)) == len(one) == 64


def test_captions_attributes_and_labels_agree_and_combinations_are_even():
    shapes = Shapes(864, 0, split="all")
    np.testing.assert_array_equal(np.bincount(shapes.labels), np.full(432, 2))
    for text, row in zip(shapes.captions, shapes.attributes, strict=True):
        parsed = parse_caption(text)
        assert parsed is not None
        assert [ATTRIBUTES[name].index(parsed[name]) for name in ATTRIBUTES] == row.tolist()


def test_without_jitter_an_image_is_a_function_of_its_caption():
    shapes = Shapes(864, 0, split="all", jitter=False)
    order = np.argsort(shapes.labels, kind="stable").reshape(432, 2)
    np.testing.assert_array_equal(shapes.images[order[:, 0]], shapes.images[order[:, 1]])
    assert len({image.tobytes() for image in shapes.images}) == 432


@pytest.mark.parametrize("image_size", [32, 64])
def test_the_drawing_shows_what_the_caption_says(image_size):
    shapes = Shapes(432, 3, split="all", image_size=image_size)
    ink = 240 - shapes.images.min(axis=3).astype(float) > 60
    rows, columns = np.arange(image_size)[:, None] + 0.5, np.arange(image_size)[None] + 0.5
    area = ink.sum((1, 2))
    y, x = (ink * rows).sum((1, 2)) / area, (ink * columns).sum((1, 2)) / area
    scale = image_size / 32
    position = shapes.attributes[:, 3]
    # Centroids: +-2 of jitter, up to r/3 = 2.7 more for a triangle (vertical), edges may cut half a pixel.
    assert np.abs(x / scale - np.array([9, 16, 23])[position % 3]).max() < 2.8
    assert np.abs(y / scale - np.array([9, 16, 23])[position // 3]).max() < 5.2
    small = shapes.attributes[:, 0] == 0
    for shape in range(4):
        here = shapes.attributes[:, 2] == shape
        assert area[here & small].max() < area[here & ~small].min()


def test_ten_thousand_images_have_no_two_equal():
    images = Shapes(10_000, 0).images
    assert len({image.tobytes() for image in images}) == 10_000


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_edits_change_the_colour_alone(split):
    source, instructions, target = edits(300, 0, split)
    assert set(target.labels) <= set(split_indices(split))
    assert set(source.labels) <= set(split_indices("train"))
    assert (source.attributes != target.attributes).sum(0).tolist() == [0, 300, 0, 0]
    assert instructions == [f"make it {text.split()[1]}" for text in target.captions]
    backdrop = np.median(source.images, axis=(1, 2), keepdims=True)  # shapes cover less than half
    changed = (source.images != target.images).any(3)
    assert changed.any((1, 2)).all()
    assert not (changed & (source.images == backdrop).all(3) & (target.images == backdrop).all(3)).any()
    assert ((source.images == backdrop).all(3) == (target.images == backdrop).all(3)).mean() > 0.99
    np.testing.assert_array_equal(target.images, Shapes(300, 0, split).images)
    assert set(source.attributes[:, 1]) == set(range(6))


def test_bad_counts_and_sizes_are_refused():
    with pytest.raises(ValueError, match="count=0: expected at least 1 image"):
        Shapes(0, 0)
    with pytest.raises(ValueError, match="image_size=4: shapes cannot be told apart"):
        Shapes(1, 0, image_size=4)


def test_write_folder_round_trips(tmp_path):
    shapes = Shapes(5, 0)
    folder = write_folder(shapes, tmp_path / "shapes")
    notes = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    assert [note["caption"] for note in notes] == shapes.captions
    assert [note["label"] for note in notes] == shapes.labels.tolist()
    for note, image in zip(notes, shapes.images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(folder / note["file"])), image)
