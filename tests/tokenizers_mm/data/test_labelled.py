import numpy as np
import pytest
import torch

from tokenizers_mm.data.labelled import Labelled


def labelled(labels, families=None, **changes):
    count = len(labels)
    parts = {
        "images_NHWC": np.arange(count * 12, dtype=np.uint8).reshape(count, 2, 2, 3),
        "captions": tuple(f"caption {i}" for i in range(count)),
        "labels_N": np.array(labels),
        "classes": ("cat", "dog", "bird"),
        "keys": tuple(f"key{i}" for i in range(count)),
        "families_N": None if families is None else np.array(families),
    }
    return Labelled(**parts | changes)


def test_subset_keeps_everything_together():
    data = labelled([0, 1, 2, 1], families=[5, 5, 7, 8])
    for index in ([3, 0], np.array([3, 0])):
        part = data.subset(index)
        assert np.array_equal(part.images_NHWC, data.images_NHWC[[3, 0]])
        assert (part.captions, part.keys) == (("caption 3", "caption 0"), ("key3", "key0"))
        assert (part.labels_N.tolist(), part.families_N.tolist(), part.classes) == ([1, 0], [8, 5], data.classes)
    assert data.subset(data.labels_N == 1).keys == ("key1", "key3")
    assert len(data.subset([])) == 0


def test_tensor_is_exact_and_in_range():
    data = labelled([0, 1, 2])
    expected = torch.tensor(data.images_NHWC).permute(0, 3, 1, 2) / 127.5 - 1
    assert torch.equal(data.tensor(), expected)
    assert torch.equal(data.tensor([2, 0]), expected[[2, 0]])
    assert torch.equal(data.tensor(slice(1, 3)), expected[1:])


def test_folds_cover_everything_once_and_never_split_a_family():
    rng = np.random.default_rng(0)
    family_N = rng.integers(60, size=400)
    label_N = family_N % 3
    folds = labelled(label_N, family_N).folds(5)
    assert np.array_equal(np.sort(np.concatenate([test for _, test in folds])), np.arange(400))
    for train, test in folds:
        assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(400))
        assert not set(family_N[train]) & set(family_N[test])
        shares = np.bincount(label_N[test], minlength=3) / np.bincount(label_N)
        assert np.abs(shares - 0.2).max() < 0.05
    again = labelled(label_N, family_N).folds(5)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(folds, again, strict=True))


def test_folds_of_single_images_are_balanced():
    folds = labelled([0] * 10 + [1] * 4 + [2] * 2).folds(2)
    labels = np.array([0] * 10 + [1] * 4 + [2] * 2)
    assert [np.bincount(labels[test]).tolist() for _, test in folds] == [[5, 2, 1], [5, 2, 1]]


@pytest.mark.parametrize("k", [0, 1, 4])
def test_folds_refuse_what_cannot_be_cut(k):
    with pytest.raises(ValueError, match=rf"k={k}: expected 2 folds or more, and at most one per family \(3\)"):
        labelled([0, 1, 2, 0], families=[0, 1, 2, 2]).folds(k)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images_NHWC": np.zeros((2, 4, 4, 3), np.float32)}, r"images_NHWC is float32 \(2, 4, 4, 3\): expected uint8"),
        ({"images_NHWC": np.zeros((2, 4, 4, 1), np.uint8)}, r"images_NHWC is uint8 \(2, 4, 4, 1\)"),
        ({"captions": ("one",)}, "captions: 1 for 2 images; they must pair one to one"),
        ({"labels_N": np.array([0])}, "labels_N: 1 for 2 images"),
        ({"families_N": np.array([0, 1, 2])}, "families_N: 3 for 2 images"),
        ({"labels_N": np.array([0, 3])}, r"labels_N spans 0\.\.3: expected -1\.\.2, for 3 classes"),
        ({"keys": ("same", "same")}, "keys: 1 different ones for 2 images"),
    ],
)
def test_parts_that_do_not_pair_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        labelled([0, 1], **changes)
