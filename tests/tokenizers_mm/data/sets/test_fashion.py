import gzip
from pathlib import Path

import numpy as np
import pytest

from tokenizers_mm.data.labelled import MissingDataError
from tokenizers_mm.data.sets.fashion import CLASSES, fashion_mnist

PACKAGE = Path("/usr/share/datasets/fashion-mnist")


def write_idx(path, array, magic=None):
    header = bytes((0, 0, 8, array.ndim)) if magic is None else magic
    sizes = np.array(array.shape, dtype=">u4").tobytes()
    path.write_bytes(gzip.compress(header + sizes + array.tobytes()))


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 6), ("t10k", 3)):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", rng.integers(256, size=(count, 28, 28), dtype=np.uint8))
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8))
    return tmp_path


def test_pictures_are_padded_and_named(folder):
    published, padded, large = (fashion_mnist("train", size, folder=folder) for size in (28, 32, 64))
    raw = np.frombuffer(gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes())[16:], np.uint8)
    assert np.array_equal(published.images_NHWC, np.repeat(raw.reshape(6, 28, 28, 1), 3, axis=3))
    assert np.array_equal(padded.images_NHWC[:, 2:30, 2:30], published.images_NHWC)
    assert padded.images_NHWC.sum() == published.images_NHWC.sum()  # the border is black
    assert large.images_NHWC.shape == (6, 64, 64, 3)
    assert abs(large.images_NHWC.mean() - padded.images_NHWC.mean()) < 2
    assert padded.captions == CLASSES[:6]
    assert padded.labels_N.tolist() == [0, 1, 2, 3, 4, 5]
    assert padded.tensor().shape == (6, 3, 32, 32)
    assert len(fashion_mnist("test", folder=folder)) == 3


@pytest.mark.skipif(not PACKAGE.exists(), reason="needs Debian's dataset-fashion-mnist")
def test_the_package_is_as_published():
    test = fashion_mnist("test")
    assert test.images_NHWC.shape == (10_000, 32, 32, 3)
    assert np.bincount(test.labels_N).tolist() == [1000] * 10
    assert (test.captions[0], test.keys[0]) == ("Ankle boot", "test-00000")
    means = [test.images_NHWC[test.labels_N == label].mean() for label in range(10)]
    assert CLASSES[int(np.argmin(means))] == "Sandal"  # the emptiest pictures: labels belong to these images


def test_a_missing_package_is_named(tmp_path):
    with pytest.raises(
        MissingDataError, match=r"train-images-idx3-ubyte\.gz: no such file; apt-get install dataset-fashion-mnist"
    ):
        fashion_mnist(folder=tmp_path)


def test_damaged_files_are_named(folder):
    images, labels = (folder / f"train-{part}-ubyte.gz" for part in ("images-idx3", "labels-idx1"))
    whole = images.read_bytes()
    for damaged in (whole[:200], b"text", gzip.compress(gzip.decompress(whole)[:-1])):
        images.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz: .*again"):
            fashion_mnist(folder=folder)
    write_idx(images, np.zeros((6, 28, 28), np.uint8), magic=bytes((0, 0, 13, 3)))
    with pytest.raises(ValueError, match=r"IDX.*bytes.*3 dimensions"):
        fashion_mnist(folder=folder)
    images.write_bytes(whole)
    write_idx(labels, np.arange(5, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"images \(6, 28, 28\), labels \(5,\)"):
        fashion_mnist(folder=folder)
    write_idx(labels, np.full(6, 11, np.uint8))
    with pytest.raises(ValueError, match=r"label 11: expected 0\.\.9"):
        fashion_mnist(folder=folder)


@pytest.mark.parametrize(("arguments", "message"), [(("all",), "split='all'"), (("train", 7), "size=7")])
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        fashion_mnist(*arguments)
