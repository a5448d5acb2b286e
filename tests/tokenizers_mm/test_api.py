"""The contract: layouts and their grids, the JSON of specs, what an earlier version wrote, and checks of tokens."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tokenizers_mm import Batch, Tokens, TokenSpec
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


# ------------------------------------------------------------------------------------------------------ tokens


CODES = TokenSpec(image_size=(8, 8), grid=(2, 2), dim=3, codes=(5, 9))
LATENTS = TokenSpec(image_size=(8, 8), grid=(2, 2), dim=3)


def codes_of(least=0, most=4):
    return Tokens(codes_BNS=torch.tensor([[[least, 0], [most, 8], [1, 1], [0, 0]]] * 3), grid=(2, 2))


def test_values_are_read_once():
    """On the meta device no value can be read: who gets through there waited for no device."""
    checked = codes_of().check(CODES)
    for tokens in (checked, checked[1:], checked[torch.tensor([0])], checked.to("cpu"), checked.to("meta")):
        assert tokens.checked == (5, 9)
        tokens.to("meta").check(CODES)
    batch = Batch(checked, labels_B=torch.tensor([0, 1, 2]), label_range=(0, 2)).to("meta")
    assert (batch.labels_B.device.type, batch.label_range) == ("meta", (0, 2))
    assert batch.tokens.check(CODES) is batch.tokens
    with pytest.raises(RuntimeError, match="meta"):
        codes_of().to("meta").check(CODES)
    latents = Tokens(latents_BND=torch.randn(2, 4, 3), grid=(2, 2))
    latents.check(LATENTS).to("meta").check(LATENTS)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        latents.to("meta").check(LATENTS)


def test_what_was_checked_for_one_vocabulary_is_read_again_for_another():
    checked = codes_of().check(CODES)
    with pytest.raises(ValueError, match=r"stream 0 lie in \[0, 4\].*0\.\.3"):
        checked.check(replace(CODES, codes=(4, 9)))
    with pytest.raises(ValueError, match="2 streams"):
        checked.check(replace(CODES, codes=(5, 9, 2)))
    with pytest.raises(ValueError, match="latents"):
        checked.check(LATENTS)


@pytest.mark.parametrize(("least", "most"), [(-1, 4), (0, 5)])
def test_codes_out_of_range_are_refused(least, most):
    codes_of().check(CODES)
    with pytest.raises(ValueError, match=rf"stream 0 lie in \[{least}, {most}\].*0\.\.4"):
        codes_of(least, most).check(CODES)
    empty = codes_of(least, most)[:0]
    assert len(empty.check(CODES)) == 0


def test_latents_that_overflow_in_another_type_are_read_again():
    large = Tokens(latents_BND=torch.full((1, 4, 3), 1e5), grid=(2, 2)).check(LATENTS)
    assert large.checked == ()
    assert large.to(torch.float64).check(LATENTS).checked == ()
    with pytest.raises(ValueError, match="NaN or Inf"):
        large.to(torch.float16).check(LATENTS)
