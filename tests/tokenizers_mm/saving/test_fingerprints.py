"""Fingerprints of any tokenizer: of ours, of plain classes, of one inside another."""

import pytest
import torch

from tokenizers_mm import AutoencoderConfig, Fused, Tiled, TowerConfig, build_autoencoder, build_tower, fingerprint
from tokenizers_mm.nets.conv import ConvConfig
from tokenizers_mm.saving import fingerprint_of

NET = ConvConfig(channels=4, groups=2, multipliers=(1,), blocks=1, patch=4)


def ours(bottleneck=None, side=16, seed=0):
    torch.manual_seed(seed)
    config = AutoencoderConfig(image_size=(side, side), net=NET, bottleneck=bottleneck or {"kind": "fsq"})
    return build_autoencoder(config)


def tower():
    return build_tower(TowerConfig(name="timm:test_vit", image_size=16, input_size=32), random_init=True)


def test_ours_keep_their_fingerprints():
    for tokenizer in (ours().eval(), tower(), Fused(ours(), ours())):
        assert fingerprint_of(tokenizer) == fingerprint(tokenizer)


def test_plain_tokenizers_have_one_by_state(plain):
    before = fingerprint_of(plain.Pool())
    assert before == fingerprint_of(plain.Pool())
    assert len(before) == 64
    others = [plain.Pool(block=8), plain.Pool(side=64), plain.Means()]
    same_state = type("Pool2", (plain.Pool,), {})()
    assert len({before, *map(fingerprint_of, [*others, same_state])}) == 5
    changed = plain.Pool()
    changed.table = torch.zeros(3)
    assert fingerprint_of(changed) != before


def test_a_tokenizer_says_its_fingerprint_itself(plain):
    tokenizer = plain.Pool()
    tokenizer.fingerprint = "pool-1"
    assert fingerprint_of(tokenizer) == "pool-1"
    tokenizer.block = 5  # what it says is what counts
    assert fingerprint_of(tokenizer) == "pool-1"
    tokenizer.fingerprint = lambda: "pool-2"
    assert fingerprint_of(tokenizer) == "pool-2"
    for wrong in ("", " x", "a\nb", 3, lambda: None):
        tokenizer.fingerprint = wrong
        with pytest.raises(ValueError, match=r"Pool.fingerprint.*: expected"):
            fingerprint_of(tokenizer)


def test_wrapped_tokenizers_have_one_too(plain):
    first, second = ours(), ours(seed=1)
    assert fingerprint_of(Tiled(first, 8)) == fingerprint_of(Tiled(ours(), 8))
    assert (
        len({fingerprint_of(Tiled(first, 8)), fingerprint_of(Tiled(first, 12)), fingerprint_of(Tiled(second, 8))}) == 3
    )
    pools = [plain.Pool(16), plain.Pool(16), plain.Pool(16)]
    pools[2].note = "other"
    one, same, other = (fingerprint_of(Fused(pool, first)) for pool in pools)
    assert one == same != other  # a half that cannot be saved


# Of version 0.1, before the classes stood in rooms; token stores and generators name them.
WRAPPED = {
    "tiles of ours": "20ddecfcf3c530baca7946648a39edc4f4a0568408aa97a8643791c64520f38c",
    "tiles of a plain one": "37b01fb1365b2a2c52734f1998229ded479a42ce7d981dcc578ac90b2945e408",
    "fused": "9ba818d05e96f4354dd5fb142583959701fd292da8760eb7530e3992477adc7e",
    "fused in sequence": "487c371196d80258eebaa2a6e7f4fb3d984205c9271332f5c3a1b30be079d547",
}


def test_wrapped_tokenizers_keep_theirs(plain):
    model = ours()
    for value in model.state_dict().values():
        value.copy_(torch.arange(value.numel()).view(value.shape) % 7)
    made = {
        "tiles of ours": Tiled(model, 8),
        "tiles of a plain one": Tiled(plain.Pool(), 8),
        "fused": Fused(plain.Pool(16), model),
        "fused in sequence": Fused(plain.Pool(16), model, "sequence"),
    }
    assert {name: fingerprint_of(tokenizer) for name, tokenizer in made.items()} == WRAPPED


def test_what_cannot_be_seen_is_refused(plain):
    tokenizer = plain.Pool()
    tokenizer.parts = {"session": [torch.Generator()]}
    with pytest.raises(ValueError, match=r"parts\['session'\]\[0\] is a torch\S*Generator, whose state.*`fingerprint`"):
        fingerprint_of(tokenizer)
    tokenizer.fingerprint = "mine"
    assert fingerprint_of(tokenizer) == "mine"


PRINT = """
import sys
sys.path.insert(0, sys.argv[1])
import plain_tokenizers
from tokenizers_mm.saving import fingerprint_of

tokenizer = plain_tokenizers.Pool()
tokenizer.names = {"a", "b", "c", "d", "e"}
open(sys.argv[2], "w").write(fingerprint_of(tokenizer))
"""


def test_another_process_gives_the_same_fingerprint(plain, start_process, tmp_path):
    process = start_process(PRINT, plain.__file__.rpartition("/")[0], tmp_path / "out")
    tokenizer = plain.Pool()
    tokenizer.names = {"e", "d", "c", "b", "a"}
    expected = fingerprint_of(tokenizer)
    process.join(60)
    assert process.exitcode == 0
    assert (tmp_path / "out").read_text() == expected
