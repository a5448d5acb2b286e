"""What any tokenizer answers, ours or a plain class: sizes, identity, device."""

from types import SimpleNamespace

import pytest
import torch

from tokenizers_mm import AutoencoderConfig, Fused, Tiled, TowerConfig, build_autoencoder, build_tower
from tokenizers_mm.api import TokenSpec
from tokenizers_mm.nets.conv import ConvConfig
from tokenizers_mm.traits import check_tokenizer, downsampling_of, on_device, only_side, takes_one_size

NET = ConvConfig(channels=4, groups=2, multipliers=(1,), blocks=1, patch=4)


def ours(bottleneck=None, side=16, seed=0):
    torch.manual_seed(seed)
    config = AutoencoderConfig(image_size=(side, side), net=NET, bottleneck=bottleneck or {"kind": "fsq"})
    return build_autoencoder(config)


def tower():
    return build_tower(TowerConfig(name="timm:test_vit", image_size=16, input_size=32), random_init=True)


def with_spec(**given):
    return SimpleNamespace(spec=TokenSpec(**{"image_size": (24, 24), "grid": (6, 6), "dim": 1, **given}))


# ------------------------------------------------------------------------------------------------------- what it is


def test_tokenizers_are_told_from_other_things(plain):
    assert check_tokenizer(plain.pool, "x") is plain.pool
    with pytest.raises(ValueError, match=r"argument.*NoDecoder.*decode:.*tokenizer"):
        check_tokenizer(plain.NoDecoder(), "the argument")
    with pytest.raises(ValueError, match=r"without.*encode,"):
        check_tokenizer(3, "x")
    with pytest.raises(ValueError, match=r"class Pool itself:.*object"):
        check_tokenizer(plain.Pool, "x")
    wrong = plain.Pool()
    wrong.spec = {"grid": (8, 8)}
    with pytest.raises(ValueError, match=r"x:.*expected.*TokenSpec"):
        check_tokenizer(wrong, "x")


# ------------------------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, 4),
        ({"grid": (6, 4)}, 12),  # steps of 4 and 6
        ({"grid": (5, 6)}, 1),  # no whole number of pixels
        ({"grid": (36,), "layout": "sequence"}, 1),
        ({"grid": ((1, 1), (6, 6)), "layout": "scales"}, 1),
    ],
)
def test_downsampling_comes_from_the_spec(given, expected):
    tokenizer = with_spec(**given)
    assert downsampling_of(tokenizer) == expected
    tokenizer.downsampling = 7
    assert downsampling_of(tokenizer) == 7


def test_our_own_downsampling():
    for tokenizer in (ours(), tower(), Fused(tower(), ours({"kind": "gaussian", "dim": 2})), Tiled(ours(), 8)):
        assert downsampling_of(tokenizer) == tokenizer.downsampling > 1


def test_who_takes_one_size_only(plain):
    continuous = {"kind": "gaussian", "dim": 2}
    for tokenizer in (plain.pool, ours(), Fused(ours(), ours())):
        assert (takes_one_size(tokenizer), only_side(tokenizer)) == (False, None)
    inner = Fused(tower(), ours(continuous))
    for tokenizer in (tower(), inner, Fused(ours(continuous), inner), Fused(ours(), ours(), "sequence")):
        assert (takes_one_size(tokenizer), only_side(tokenizer)) == (True, 16)
    assert only_side(with_spec(grid=(36,), layout="sequence")) == 24
    oblong = with_spec(image_size=(24, 48), grid=(36,), layout="sequence")
    assert (takes_one_size(oblong), only_side(oblong)) == (True, None)
    raster = with_spec()
    assert only_side(raster) is None
    raster.takes_one_size = True
    assert only_side(raster) == 24


# ----------------------------------------------------------------------------------------------------------- devices


def test_a_tokenizer_goes_where_it_is_sent(plain):
    assert on_device(plain.pool, "cpu") is plain.pool
    with pytest.raises(ValueError, match=r"device='cuda:1': Pool.*`to\(device\)`,.*stays.*CPU"):
        on_device(plain.pool, "cuda:1")
    tokenizer = ours({"kind": "gaussian", "dim": 2}).train()
    assert on_device(tokenizer, "meta") is tokenizer
    assert {value.device.type for value in tokenizer.state_dict().values()} == {"meta"}
    assert not tokenizer.training


def test_a_tokenizer_may_move_in_place_or_give_another(plain):
    calls = []
    movable, other = plain.Pool(), plain.Pool(block=8)
    movable.to = calls.append
    other.eval = lambda: calls.append("eval")
    assert on_device(movable, "cuda:1") is movable
    movable.to = lambda device: other
    assert on_device(movable, "cpu") is other
    assert calls == [torch.device("cuda:1"), "eval"]
