import sys

import numpy as np
import pytest

from tokenizers_mm.data.sets import photos


def test_nine_training_and_two_heldout_photos():
    training, heldout = photos.training_photos(), photos.heldout_photos()
    assert len(training) == 9
    assert set(heldout) == {"china", "flower"}
    for photo in (training | heldout).values():
        assert photo.dtype == np.uint8
        assert photo.ndim == 3
        assert photo.shape[2] == 3
        assert min(photo.shape[:2]) >= 256
        assert photo.std() > 5
    assert heldout["china"].shape == (427, 640, 3)


@pytest.mark.parametrize(("read", "package"), [("training_photos", "scikit-image"), ("heldout_photos", "scikit-learn")])
def test_missing_package_names_the_command(monkeypatch, read, package):
    monkeypatch.setattr(photos, "find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError, match=rf"{package}, which is not installed: pip install 'tokenizers-mm\[demo\]'"
    ):
        getattr(photos, read)()


def test_a_wheel_without_the_files_is_named(monkeypatch, tmp_path):
    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(photos, "find_spec", lambda name: Spec)
    with pytest.raises(photos.MissingPhotosError, match=r"lacks china\.jpg, flower\.jpg: pip install"):
        photos.heldout_photos()


def test_reading_photos_does_not_import_their_packages():
    before = set(sys.modules)
    photos.training_photos()
    assert not {"skimage", "sklearn"} & (set(sys.modules) - before)
