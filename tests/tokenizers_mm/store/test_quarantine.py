"""Images that a store does not hold: counted by kind of reason, and complained about above a share."""

import pytest

from tokenizers_mm.data.images import Preprocess
from tokenizers_mm.store.quarantine import Quarantine

NATIVE, SIZED = Preprocess(None, 8).to_json(), Preprocess(32, 8).to_json()


def item(stage, error):
    return {"key": "k", "source": "s", "stage": stage, "error": error}


MIXED = [
    item("preprocess", "(48, 32) pixels, this store holds images of (24, 48)"),
    item("decode", "OSError: image file is truncated (12 bytes not processed)"),
    item("preprocess", "(32, 32) pixels, this store holds images of (24, 48)"),
    item("header", "no image format is recognised (starts with b'<html>')"),
    item("decode", "OSError: image file is truncated (9 bytes not processed)"),
    item("header", 'no image format is recognised (starts with b"it\'s 5")'),
    item("preprocess", "(40, 40) pixels, this store holds images of (24, 48)"),
]


def test_reasons_are_grouped_whatever_numbers_and_quotes_they_hold():
    found = Quarantine.of(MIXED, 20, NATIVE)
    assert (found.inputs, found.count, found.share) == (20, 7, 0.35)
    assert found.reasons == (
        ("preprocess: (48, 32) pixels, this store holds images of (24, 48)", 3),
        ("decode: OSError: image file is truncated (12 bytes not processed)", 2),
        ("header: no image format is recognised (starts with b'<html>')", 2),
    )
    other = Quarantine.of([item("decode", "a"), item("header", "a"), item("decode", "b")], 20, NATIVE)
    assert len(other.reasons) == 3


def test_the_remedy_for_images_of_several_sizes_is_a_size():
    lines = Quarantine.of(MIXED, 20, NATIVE).complaint(0.1)
    assert lines[0].startswith("7 of 20 images (35.0%) are quarantined, more than the share of 0.1")
    assert lines[1] == "  3 x preprocess: (48, 32) pixels, this store holds images of (24, 48)"
    assert "--size N" in lines[-1]
    for others in (Quarantine.of(MIXED, 20, SIZED), Quarantine.of(MIXED[1:2], 2, NATIVE)):
        assert "--size" not in "".join(others.complaint(0.0))
        assert "--max-quarantined" in others.complaint(0.0)[-1]


def test_there_is_no_complaint_below_the_share():
    few = Quarantine.of(MIXED[:2], 20, NATIVE)
    assert few.complaint(0.1) == ()
    assert few.complaint(0.09) != ()
    assert Quarantine.of(MIXED[:1], 2, NATIVE).complaint(0.1) == ()  # a single one, as everywhere
    assert Quarantine.of(MIXED[:1], 2, NATIVE).complaint(0) != ()
    assert Quarantine().complaint(0) == ()
    assert Quarantine().share == 0
    with pytest.raises(ValueError, match=r"max_quarantined=1\.5"):
        few.complaint(1.5)


def test_many_kinds_are_cut_short():
    items = [item("decode", letter) for letter in "abcdefgh"]
    lines = Quarantine.of(items, 8, SIZED).complaint(0.1)
    assert len(lines) == 1 + 5 + 1 + 1
    assert "3 other" in lines[-2]
