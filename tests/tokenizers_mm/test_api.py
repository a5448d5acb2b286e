"""The token spec: layouts and their grids, its JSON, and what an earlier version wrote."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tokenizers_mm import TokenSpec
from tokenizers_mm.saving.fingerprints import fingerprint_of

GRIDS = {
    "raster": (2, 3),
    "sequence": (6,),
    "nested": (6,),
    "scales": ((1, 1), (2, 3)),
    "parts": ((2, 3), (1, 6)),
}


def spec_of(layout, **given):
    fields = {"image_size": (8, 12), "grid": GRIDS[layout], "dim": 3, "codes": (7,), "layout": layout}
    return TokenSpec(**fields | given)


@pytest.mark.parametrize("layout", GRIDS)
def test_a_layout_takes_grids_of_its_kind_alone(layout):
    assert spec_of(layout).length == {"scales": 7, "parts": 12}.get(layout, 6)
    alike = next(kinds for kinds in (("scales", "parts"), ("sequence", "nested"), ("raster",)) if layout in kinds)
    for other, grid in GRIDS.items():
        if other in alike:
            assert spec_of(layout, grid=grid).grid == grid
        else:
            with pytest.raises(ValueError, match=re.escape(f"grid={grid} does not fit layout={layout!r}")):
                spec_of(layout, grid=grid)


def test_layouts_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"layout='spiral'.*raster.*parts"):
        replace(spec_of("raster"), layout="spiral")
    with pytest.raises(TypeError, match="order"):
        spec_of("raster", order="raster")
    for empty in ((), [], ((0, 1),), (3, 0)):
        with pytest.raises(ValueError, match="grid="):
            spec_of("raster", grid=empty)


@pytest.mark.parametrize("layout", GRIDS)
def test_json_keeps_the_keys_of_every_version(layout):
    fields = json.loads(spec_of(layout).to_json())
    assert list(fields) == ["image_size", "grid", "dim", "codes", "order"]
    assert fields["order"] == layout
    assert TokenSpec.from_json(json.dumps(fields)) == spec_of(layout)
    fields["layout"] = fields.pop("order")
    with pytest.raises(ValueError, match="layout"):
        TokenSpec.from_json(json.dumps(fields))
    with pytest.raises(ValueError, match="dim"):
        TokenSpec.from_json(json.dumps({"image_size": [8, 8], "grid": [2, 2]}))


def test_parts_are_the_tokens_that_were_called_scales():
    parts = spec_of("parts")
    before = replace(parts, layout="scales")
    assert parts != before
    assert parts.same_tokens(before)
    assert before.same_tokens(parts)
    assert not spec_of("sequence").same_tokens(spec_of("nested"))
    for field, value in (("dim", 4), ("codes", (8,)), ("grid", ((2, 3), (2, 3))), ("image_size", (8, 24))):
        assert not parts.same_tokens(replace(before, **{field: value}))


def test_fingerprints_of_plain_objects_are_those_of_earlier_versions():
    """Found by the version that called the layout `order`, and parts scales."""
    grids = ((1, 1), (2, 2))
    kept = {
        "raster": "2b9bf76defdb9efdcd0dc93ea0c98d524b470dd71915d8f28baee98be6d41933",
        "scales": "a066cf3fb1fb0ece0d8e737a646bb3d21a9ed1223edcfe2a8c48ee89d9c584b4",
        "parts": "a066cf3fb1fb0ece0d8e737a646bb3d21a9ed1223edcfe2a8c48ee89d9c584b4",
    }
    for layout, digest in kept.items():
        spec = spec_of(layout, grid=(2, 3) if layout == "raster" else grids)
        assert fingerprint_of(SimpleNamespace(spec=spec, table=[1.5, 2])) == digest
        assert fingerprint_of(SimpleNamespace(spec=replace(spec, dim=4), table=[1.5, 2])) != digest
