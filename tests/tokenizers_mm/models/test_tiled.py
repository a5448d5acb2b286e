from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tokenizers_mm import AutoencoderConfig, Fused, Tokenizer, Tokens, build_autoencoder
from tokenizers_mm.data.images import pad_to_multiple
from tokenizers_mm.models import tile_weights
from tokenizers_mm.models.tiled import Tiled, tiling_error
from tokenizers_mm.models.vectors import Vectors
from tokenizers_mm.nets import ConvConfig

# Without attention, and normalised over single positions, every output depends on the pixels around it alone: 18
# pixels to each side in the encoder, 24 in the decoder (`test_reach_of_the_local_net`).
LOCAL = ConvConfig(channels=8, groups=4, multipliers=(1, 2), blocks=1, norm="rms", middle_attention=False)
REACH, COVERING = 24, 96
GLOBAL = replace(LOCAL, norm="group", middle_attention=True)
GAUSSIAN, FSQ = {"kind": "gaussian", "dim": 3}, {"kind": "fsq", "levels": [8, 5, 5]}
SCALES = {"kind": "multiscale", "inner": {"kind": "vq", "size": 8, "dim": 3}, "scales": [1, 8]}


def model_of(net=LOCAL, bottleneck=GAUSSIAN, **changes):
    return build_autoencoder(AutoencoderConfig(image_size=(16, 16), bottleneck=bottleneck, net=net, **changes)).eval()


def image_of(height, width, batch=1):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height + 3 * width)) * 2 - 1


def test_reach_of_the_local_net():
    """From one position: pixels that its features see, and pixels that see its latent."""
    model = model_of()
    image, z = torch.zeros(1, 3, 128, 128, requires_grad=True), torch.zeros(1, 3, 64, 64, requires_grad=True)
    h = model.quant_conv(model.encoder(image))
    (seen,) = torch.autograd.grad(h[0, :, 32, 32].sum(), image)
    (used,) = torch.autograd.grad(model.pixels(Vectors.of_map(z))[0, :, 64:66, 64:66].sum(), z)
    for gradient, step in ((seen, 1), (used, 2)):
        places = gradient.abs().sum((0, 1)).nonzero()
        assert 64 - step * int(places.min()) <= REACH
        assert step * int(places.max()) + step - 66 <= REACH


# ------------------------------------------------------------------------------------------------------ geometry

AXES = [(64, 64, 0), (65, 64, 0), (65, 64, 63), (200, 64, 16), (201, 50, 17), (37, 5, 4), (100, 10, 0), (9, 40, 7)]


@pytest.mark.parametrize(("length", "tile", "overlap"), AXES)
def test_the_fewest_tiles_cover_an_axis_and_share_the_overlap(length, tile, overlap):
    tile = min(tile, length)
    overlap = min(overlap, tile - 1)
    starts = tile_weights.starts(length, tile, overlap)
    assert (starts[0], starts[-1] + tile) == (0, length)
    assert all(0 < after - before <= tile - overlap for before, after in pairwise(starts))
    assert len(starts) == 1 or tile + (len(starts) - 2) * (tile - overlap) < length


@pytest.mark.parametrize("sharp", [False, True])
@pytest.mark.parametrize("step", [1, 8])
@pytest.mark.parametrize(("length", "tile", "overlap"), AXES)
def test_weights_sum_to_exactly_one(length, tile, overlap, step, sharp):
    pieces = tile_weights.pieces(length, tile, min(overlap, min(tile, length) - 1), 1, step, sharp)
    assert not sharp or {float(weight) for piece in pieces for weight in piece.weight} <= {0.0, 1.0}
    total = torch.zeros(length * step, 7 * step)
    other = tile_weights.pieces(7, 3, 2, 1, step, sharp)
    for row in pieces:
        assert row.weight.shape == (row.target.stop - row.target.start,)
        assert row.weight.min() >= 0
        for column in other:
            total[row.target, column.target] += row.weight[:, None] * column.weight
    assert torch.equal(total, torch.ones_like(total))
    for before, after in pairwise(pieces):
        quarter = (before.target.stop - after.target.start) // 4
        assert not bool(before.weight[len(before.weight) - quarter :].any())
        assert not bool(after.weight[:quarter].any())


class Means:
    """Features of a tile: its mean colour, everywhere."""

    def __init__(self, model):
        self.spec, self.downsampling, self.latent_patch, self.tokens_of = model.spec, 2, 1, model.tokens_of

    def features(self, image_BCHW):
        grid = (image_BCHW.shape[2] // 2, image_BCHW.shape[3] // 2)
        mean_B1C = image_BCHW.mean((2, 3))[:, None]
        return Vectors(mean_B1C.expand(-1, grid[0] * grid[1], -1), grid)


def test_features_pass_linearly_from_one_tile_to_the_next_and_codes_are_those_of_the_blend():
    """Black, then white, in tiles of 64 that share 32 pixels: 16 positions, of which the middle 8 pass over."""
    model = model_of(bottleneck=FSQ)
    image = torch.ones(1, 3, 64, 96)
    image[..., :32] = 0
    tokenizer = Tiled(Means(model), 64, 32)
    h_BND, grid = tokenizer.features(image)
    ramp = torch.tensor([0.5 + 0.5 * ((i + 0.5) / 8) for i in range(8)])
    row = torch.cat([torch.full((20,), 0.5), ramp, torch.ones(20)])
    torch.testing.assert_close(h_BND.view(32, 48, 3), row[:, None].expand(32, 48, 3), atol=1e-6, rtol=0)
    codes = tokenizer.encode(image).codes_BNS
    assert torch.equal(codes, model.bottleneck.encode(h_BND))
    assert len(codes.unique()) > 2
    assert grid == (32, 48)


# ------------------------------------------------------------------------------------------------------- equality


@pytest.mark.parametrize("bottleneck", [GAUSSIAN, FSQ], ids=["latents", "codes"])
@pytest.mark.parametrize("size", [(150, 131), (112, 301)])
def test_no_seam_where_the_overlap_covers_the_reach(bottleneck, size):
    model = model_of(bottleneck=bottleneck)
    image = image_of(*size, batch=2)
    whole = model.encode(pad_to_multiple(image, 2)[0])
    cut = Tiled(model, 112, COVERING, batch=3)
    tokens = cut.encode(image)
    assert tokens.grid == whole.grid
    torch.testing.assert_close(tokens.data, whole.data, atol=1e-5, rtol=0)
    expected = model.decode(whole)[:, :, : size[0], : size[1]]
    torch.testing.assert_close(cut.decode(tokens, size), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(cut.reconstruct(image), expected, atol=1e-5, rtol=0)


def test_stacked_latents_have_no_seam_either():
    model = model_of(latent_patch=2)
    image = image_of(148, 130)
    cut, whole = Tiled(model, 112, COVERING), model.encode(pad_to_multiple(image, 4)[0])
    tokens = cut.encode(image)
    assert (cut.downsampling, tokens.grid) == (4, (37, 33))
    torch.testing.assert_close(tokens.data, whole.data, atol=1e-5, rtol=0)
    torch.testing.assert_close(cut.decode(whole), model.decode(whole), atol=1e-5, rtol=0)


def average(starts, tile, length, sharp):
    """Wrong: all tiles of a position weigh the same, so borders count."""
    count = sum(torch.zeros(length).index_fill(0, torch.arange(at, at + tile), 1) for at in starts)
    return [1 / count[at : at + tile] for at in starts]


def full(starts, tile, length, sharp):
    """Wrong: weights do not sum to one."""
    return [torch.ones(tile) for _ in starts]


@pytest.mark.parametrize("weights", [average, full])
def test_wrong_weights_are_seen(weights, monkeypatch):
    model, image = model_of(), image_of(150, 132)
    tokens = model.encode(image)
    monkeypatch.setattr(tile_weights, "weights_of", weights)
    cut = Tiled(model, 112, COVERING)
    assert (cut.encode(image).data - tokens.data).abs().max() > 1e-3
    assert (cut.decode(tokens) - model.decode(tokens)).abs().max() > 1e-3


def test_a_narrow_overlap_is_seen():
    model, image = model_of(), image_of(150, 132)
    assert (Tiled(model, 80, 8).encode(image).data - model.encode(image).data).abs().max() > 1e-3


@pytest.mark.parametrize("tile", [64, None])
@pytest.mark.parametrize("bottleneck", [GAUSSIAN, FSQ], ids=["latents", "codes"])
def test_what_fits_in_one_tile_is_bit_identical(tile, bottleneck):
    model, image = model_of(GLOBAL, bottleneck), image_of(64, 40, batch=3)
    cut = Tiled(model, tile, batch=3)
    for given in (image, image.contiguous(memory_format=torch.channels_last)):
        tokens = cut.encode(given)
        assert torch.equal(tokens.data, model.encode(given).data)
        assert torch.equal(cut.decode(tokens), model.decode(tokens))
    ones = Tiled(model, tile, batch=1).encode(image)
    assert torch.equal(ones.data, torch.cat([model.encode(one).data for one in image.split(1)]))


# ---------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (17, 64), (63, 65), (129, 33), (2, 200)])
def test_every_size_comes_back(size):
    cut = Tiled(model_of(GLOBAL), 32, 8, batch=4)
    image = image_of(*size, batch=2)
    tokens = cut.encode(image).check(cut.spec)
    assert tokens.grid == (-(-size[0] // 2), -(-size[1] // 2))
    assert cut.decode(tokens).shape[2:] == (2 * tokens.grid[0], 2 * tokens.grid[1])
    image = cut.reconstruct(image)
    assert image.shape == (2, 3, *size)
    assert torch.equal(image, cut.decode(tokens, size))
    alone = Tiled(cut.tokenizer, 32, 8, batch=1).encode(image)
    torch.testing.assert_close(alone.data, cut.encode(image).data, atol=1e-5, rtol=0)


def test_it_is_a_tokenizer():
    cut = Tiled(model_of(), 32)
    assert isinstance(cut, Tokenizer)
    assert cut.spec is cut.tokenizer.spec
    tokens = cut.encode(image_of(40, 50).requires_grad_())
    assert torch.equal(cut.embed(tokens), tokens.data)
    assert not tokens.data.requires_grad
    drawn = [cut.encode(image_of(40, 50), sample=torch.Generator().manual_seed(1)).data for _ in range(2)]
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], tokens.data)


def test_bfloat16_tiles_add_up_in_float32():
    model = model_of().bfloat16()
    image, cut = image_of(150, 132), Tiled(model, 112, COVERING)
    tokens = cut.encode(image)
    assert tokens.data.dtype == cut.decode(tokens).dtype == torch.float32
    # Whole and tiled differ at most in how convolutions of other sizes add up: a rounding of bfloat16 here and there.
    assert (tokens.data - model.encode(image).data).norm() / tokens.data.norm() < 2**-8


def test_batches_are_full_and_never_more(monkeypatch):
    model = model_of()
    seen = []
    features = model.features
    monkeypatch.setattr(model, "features", lambda image: seen.append(tuple(image.shape)) or features(image))
    Tiled(model, 32, 8, batch=4).encode(image_of(80, 56, batch=3))
    assert seen == [(4, 3, 32, 32)] * 4 + [(2, 3, 32, 32)]


REFUSED = [
    ({"tile": 1}, r"tile=1, batch=1: expected at least the downsampling 2"),
    ({"batch": 0}, r"tile=512, batch=0"),
    ({"tile": 32, "overlap": 32}, r"overlap=32: expected less than the tile of 32 pixels"),
    ({"tile": 32, "overlap": -1}, r"overlap=-1"),
    ({"overlap": 1.0}, r"overlap=1.0"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Tiled(model_of(), **options)


def test_tokenizers_of_one_size_are_refused():
    with pytest.raises(ValueError, match=r"bottleneck:.*takes images.*\(16, 16\)"):
        Tiled(model_of(bottleneck=SCALES))
    with pytest.raises(ValueError, match=r"latent statistics.*position\):.*\(16, 16\)"):
        Tiled(model_of(latent_positions=True))


def test_bad_input_is_refused():
    cut = Tiled(model_of(), 32)
    for image in (torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(0, 3, 8, 8)):
        with pytest.raises(ValueError, match=r"image_BCHW is \(.*\) torch.*: expected float pixels"):
            cut.encode(image)
    with pytest.raises(ValueError, match=r"expected \[batch, 3, H, W\]"):
        cut.encode(torch.zeros(1, 4, 8, 8))
    image = image_of(60, 60)
    image[0, 0, 50, 50] = float("nan")
    with pytest.raises(ValueError, match="NaN or Inf"):
        cut.encode(image)
    tokens = cut.encode(image_of(7, 9))
    with pytest.raises(ValueError, match=r"size=\(9, 7\):.*tokens decode.*\(8, 10\),.*1"):
        cut.decode(tokens, (9, 7))
    with pytest.raises(ValueError, match="latents hold NaN"):
        cut.decode(Tokens(latents_BND=tokens.data * float("inf"), grid=tokens.grid))


# --------------------------------------------------------------------------------------------------------- errors


def test_tiling_error_is_none_in_one_tile_and_falls_with_the_overlap():
    model, image = model_of(), image_of(150, 131)
    assert tiling_error(model, image, 160) == {
        "features": 0.0,
        "latents": 0.0,
        "decode": float("inf"),
        "round_trip": float("inf"),
    }
    narrow, wide = tiling_error(model, image, 80, 8), tiling_error(model, image, 112, COVERING)
    assert wide["features"] < 1e-5 < 1e-3 < narrow["features"]
    assert wide["latents"] < 1e-5 < 1e-3 < narrow["latents"]
    assert narrow["decode"] < 80 < 110 < wide["decode"]
    assert narrow["round_trip"] < 80 < 110 < wide["round_trip"]
    codes = tiling_error(model_of(GLOBAL, FSQ), image, 64, 0.25)
    assert set(codes) == {"features", "codes", "decode", "round_trip"}
    assert 0 < codes["codes"] < 1


# ------------------------------------------------------------------------------------------------- plain tokenizers


class Smooth:
    """A plain tokenizer whose tokens know the pixels around their block, and whose pixels know the blocks around."""

    def __init__(self, of):
        self.pool, self.spec = of, of.spec

    def encode(self, image_BCHW):
        return self.pool.encode(F.avg_pool2d(image_BCHW, 9, 1, 4, count_include_pad=False))

    def embed(self, tokens):
        return self.pool.embed(tokens)

    def decode(self, tokens):
        return F.avg_pool2d(self.pool.decode(tokens), 9, 1, 4, count_include_pad=False)


@pytest.mark.parametrize(("kind", "tokens"), [("Pool", "codes"), ("Means", "latents")])
def test_a_plain_tokenizer_in_tiles(plain, kind, tokens):
    tokenizer, image = Smooth(getattr(plain, kind)(16)), image_of(150, 131, batch=2)
    padded = pad_to_multiple(image, 4)[0]
    whole = tokenizer.encode(padded)
    cut = Tiled(tokenizer, 48, 32, batch=3)
    found = cut.encode(image)
    assert (cut.downsampling, found.grid, found.data.dtype) == (4, whole.grid, whole.data.dtype)
    torch.testing.assert_close(found.data, whole.data, atol=1e-5, rtol=0)
    torch.testing.assert_close(cut.reconstruct(image), tokenizer.decode(whole)[..., :150, :131], atol=1e-5, rtol=0)
    narrow, wide = tiling_error(tokenizer, padded, 48, 0), tiling_error(tokenizer, padded, 48, 32)
    assert set(narrow) == {tokens, "decode", "round_trip"}
    assert wide[tokens] < 1e-5 < 1e-3 < narrow[tokens]
    assert narrow["round_trip"] < 60 < 110 < wide["round_trip"]
    with pytest.raises(ValueError, match=r"sample: Smooth.*posterior"):
        cut.encode(image, sample=torch.Generator())


def test_positions_may_be_smaller_than_the_downsampling():
    """Of two halves the coarser one says what sides are multiples of, the finer one how many positions there are."""
    coarse = replace(LOCAL, multipliers=(1, 2, 2))
    fused = Fused(model_of(net=coarse), model_of(), "channel")
    image = image_of(64, 72)
    whole = fused.encode(image)
    assert (fused.downsampling, fused.spec.grid) == (4, (8, 8))
    one, cut = Tiled(fused, None), Tiled(fused, 32, 16)
    assert torch.equal(one.encode(image).data, whole.data)
    assert cut.encode(image).grid == whole.grid == (32, 36)
    torch.testing.assert_close(one.decode(whole), fused.decode(whole))
    assert cut.reconstruct(image_of(61, 70)).shape == (1, 3, 61, 70)


def test_positions_that_are_no_squares_of_pixels_are_refused(plain):
    tokenizer = plain.Means(16)
    tokenizer.spec = replace(tokenizer.spec, grid=(4, 3))
    with pytest.raises(ValueError, match=r"\(4, 3\).*images.*\(16, 16\)"):
        Tiled(tokenizer, 8)


def test_a_plain_tokenizer_of_one_size_is_refused(plain):
    tokenizer = plain.Pool(16)
    tokenizer.takes_one_size = True
    with pytest.raises(ValueError, match=r"tokenizer.*:.*images.*\(16, 16\)"):
        Tiled(tokenizer)


def test_tiles_go_where_their_tokenizer_goes(plain):
    cut = Tiled(model_of(), 32)
    assert cut.to("meta") is cut
    assert next(cut.tokenizer.parameters()).device.type == "meta"
    with pytest.raises(ValueError, match="device='cuda': Pool has no"):
        Tiled(plain.pool).to("cuda")
    assert Tiled(plain.pool).to("cpu").encode(image_of(9, 9)).grid == (3, 3)


# --------------------------------------------------------------------------------------------------------- memory

MEMORY = """
import re, sys, torch
from pathlib import Path
from tokenizers_mm import AutoencoderConfig, build_autoencoder
from tokenizers_mm.nets import ConvConfig
from tokenizers_mm.models.tiled import Tiled

torch.set_num_threads(1)
net = ConvConfig(channels=16, groups=8, multipliers=(1, 2), blocks=1, middle_attention=False)
bottleneck = {"kind": "gaussian", "dim": 4}
model = build_autoencoder(AutoencoderConfig(image_size=(64, 64), bottleneck=bottleneck, net=net)).eval()
image = torch.rand(1, 3, 640, 640) * 2 - 1
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
Tiled(model, 96, 24).reconstruct(image[..., :96, :96])
start = peak()
Tiled(model, 96, 24).reconstruct(image)
tiled = peak()
Tiled(model, None).reconstruct(image)
Path(sys.argv[1]).write_text(f"{tiled - start} {peak() - start}")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_memory_is_that_of_the_output_and_one_batch_of_tiles(tmp_path, start_process):
    """81 tiles after one tile: 10 MiB of sums and results; the whole image is the control.

    Not `ru_maxrss`: that of a new process starts at its parent's peak.
    """
    process = start_process(MEMORY, tmp_path / "peaks")
    process.join(300)
    assert process.exitcode == 0
    tiles, whole = map(float, (tmp_path / "peaks").read_text().split())
    assert tiles < 40
    assert whole > 200
