import pytest
import torch
import torch.nn.functional as F

from tokenizers_mm import AutoencoderConfig, Tokenizer, Tokens, TokenSpec, build_autoencoder
from tokenizers_mm.models.fused import Fused
from tokenizers_mm.models.semantic_head import SemanticConfig
from tokenizers_mm.nets.conv import ConvConfig
from tokenizers_mm.semantics import Semantics, semantics_of
from tokenizers_mm.towers import EncodeOnly, TowerConfig, build_tower

IMAGE = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
GAUSSIAN = {"kind": "gaussian", "dim": 3}
IDENTITY = {"kind": "identity", "dim": 5}
FSQ = {"kind": "fsq", "levels": [8, 5]}
VQ = {"kind": "vq", "size": 11, "dim": 3}
PRODUCT = {"kind": "product", "inner": {"kind": "vq", "size": 8, "dim": 2}, "groups": 2}
SCALES = {"kind": "multiscale", "inner": {"kind": "vq", "size": 8, "dim": 3}, "scales": [1, [2, 3], [4, 6]]}


def half(bottleneck, f=4, **options):
    torch.manual_seed(f)
    net = ConvConfig(channels=8, groups=4, multipliers=(1, 2), blocks=1, patch=f // 2)
    model = build_autoencoder(AutoencoderConfig(image_size=(16, 24), bottleneck=bottleneck, net=net, **options))
    model.eval().calibrate([IMAGE])
    return model


class Towerish:
    """Encode-only, foreign, with features of one grid whatever the image, and no semantics of tokens."""

    def __init__(self, grid=(2, 3), texts=False):
        self.spec = TokenSpec(image_size=(16, 24), grid=grid, dim=4)
        if texts:
            self.text_features = lambda captions: torch.tensor([[float(len(caption))] * 4 for caption in captions])

    def encode(self, image):
        means = F.adaptive_avg_pool2d(image, self.spec.grid).flatten(2).transpose(1, 2)
        return Tokens(latents_BND=torch.cat([means, means[..., :1] ** 2], 2), grid=self.spec.grid)

    def embed(self, tokens):
        return tokens.check(self.spec).data

    def decode(self, tokens):
        raise ValueError("encode only")

    def semantics(self, image):
        tokens = self.encode(image)
        return Semantics(tokens.data, 7 * tokens.data.mean(1), self.spec.grid)


PAIRS = {
    "channel codes": (FSQ, VQ, "channel"),
    "channel latents": (IDENTITY, GAUSSIAN, "channel"),
    "sequence codes": (FSQ, VQ, "sequence"),
    "sequence latents": (IDENTITY, GAUSSIAN, "sequence"),
    "sequence of scales": (FSQ, SCALES, "sequence"),
}


@pytest.fixture(params=PAIRS, ids=lambda name: name.replace(" ", "-"))
def fused(request):
    semantic, perceptual, how = PAIRS[request.param]
    return Fused(half(semantic), half(perceptual), how)


def test_halves_are_what_each_tokenizer_gives(fused):
    assert isinstance(fused, Tokenizer)
    tokens = fused.encode(IMAGE).check(fused.spec)
    assert tokens.grid == fused.spec.grid
    semantic, perceptual = fused.halves(tokens)
    for part, tokenizer in ((semantic, fused.semantic), (perceptual, fused.perceptual)):
        alone = tokenizer.encode(IMAGE)
        assert part.grid == alone.grid
        assert torch.equal(part.data, alone.data)
    joined = fused.join(semantic, perceptual)
    assert torch.equal(joined.data, tokens.data)
    assert joined.grid == tokens.grid


def test_only_the_perceptual_half_draws(fused):
    semantic, perceptual = fused.halves(fused.encode(IMAGE))
    image = fused.decode(fused.join(semantic, perceptual))
    assert torch.equal(image, fused.perceptual.decode(perceptual))
    other = fused.semantic.encode(-IMAGE)
    assert not torch.equal(other.data, semantic.data)
    assert torch.equal(fused.decode(fused.join(other, perceptual)), image)
    if fused.spec.discrete:
        changed = Tokens(codes_BNS=1 - perceptual.data.clamp(max=1), grid=perceptual.grid)
    else:
        changed = Tokens(latents_BND=-perceptual.data, grid=perceptual.grid)
    assert not torch.equal(fused.decode(fused.join(semantic, changed)), image)


def test_vectors_are_those_of_both(fused):
    tokens = fused.encode(IMAGE)
    semantic, perceptual = fused.halves(tokens)
    vectors = fused.embed(tokens)
    first, second = fused.semantic.embed(semantic), fused.perceptual.embed(perceptual)
    assert vectors.shape == (3, fused.spec.length, fused.spec.dim)
    if fused.how == "channel":
        assert torch.equal(vectors, torch.cat([first, second], 2))
        return
    assert torch.equal(vectors[:, :24, : first.shape[2]], first)
    assert torch.equal(vectors[:, 24:, : second.shape[2]], second)
    assert (
        int(vectors[:, :24, first.shape[2] :].count_nonzero() + vectors[:, 24:, second.shape[2] :].count_nonzero()) == 0
    )


def test_specs():
    spec = Fused(half(FSQ), half(VQ), "channel").spec
    assert (spec.layout, spec.grid, spec.codes, spec.dim) == ("raster", (4, 6), (40, 11), 5)
    spec = Fused(half(FSQ), half(VQ), "sequence").spec
    assert (spec.layout, spec.grid, spec.codes, spec.dim) == ("parts", ((4, 6), (4, 6)), (51,), 3)
    spec = Fused(half(IDENTITY), half(GAUSSIAN), "channel").spec
    assert (spec.layout, spec.grid, spec.codes, spec.dim) == ("raster", (4, 6), (), 8)
    spec = Fused(half(IDENTITY, 8), half(GAUSSIAN), "sequence").spec
    assert (spec.layout, spec.grid, spec.codes, spec.dim) == ("parts", ((2, 3), (4, 6)), (), 5)
    spec = Fused(half(FSQ), half(SCALES), "sequence").spec
    assert spec.grid == ((4, 6), (1, 1), (2, 3), (4, 6))
    assert spec.codes == (48,)
    assert Fused(half(IDENTITY, 8), half(GAUSSIAN)).downsampling == 8
    assert Fused(Towerish(), half(GAUSSIAN)).downsampling == 8
    assert Fused(Towerish((4, 6)), half(GAUSSIAN)).downsampling == 4


def test_a_half_that_says_no_downsampling_counts_by_its_own_grid():
    """Whichever half it is, and whatever the layout of both together."""
    for how in ("channel", "sequence"):
        for grid, expected in (((2, 3), 8), ((4, 6), 4), ((4, 4), 12)):  # steps of 4 and 6 pixels
            assert Fused(Towerish(grid), half(GAUSSIAN), how).downsampling == expected
            assert Fused(half(GAUSSIAN), Towerish(grid), how).downsampling == expected


def test_other_image_sizes():
    images = {size: torch.rand(2, 3, *size) for size in ((8, 8), (32, 16))}
    for pair in ("channel codes", "channel latents"):
        first, second, how = PAIRS[pair]
        fused = Fused(half(first), half(second), how)
        for (height, width), image in images.items():
            tokens = fused.encode(image)
            assert tokens.grid == fused.spec.resized((height, width)).grid == (height // 4, width // 4)
            assert fused.decode(tokens).shape == image.shape
    fused = Fused(half(FSQ), half(VQ), "sequence")
    with pytest.raises(ValueError, match=r"image_size=\(8, 8\):.*tokenizer takes \(16, 24\)"):
        fused.encode(images[8, 8])


def test_semantic_latents_of_another_grid_are_interpolated_and_of_unit_variance():
    fused = Fused(half(IDENTITY, 8), half(GAUSSIAN), "channel")
    semantic, perceptual = fused.semantic.encode(IMAGE), fused.perceptual.encode(IMAGE)
    wide = F.interpolate(
        semantic.data.transpose(1, 2).unflatten(2, (2, 3)), (4, 6), mode="bilinear", align_corners=False
    ).flatten(2)
    tokens = fused.encode(IMAGE)
    torch.testing.assert_close(tokens.data[..., :5], wide.transpose(1, 2))
    assert torch.equal(tokens.data[..., 5:], perceptual.data)
    assert float(tokens.data[..., :5].std()) < 0.95
    fused.calibrate(iter([IMAGE[:1], IMAGE[1:]]))
    tokens = fused.encode(IMAGE)
    flat = tokens.data.flatten(0, 1)
    torch.testing.assert_close(flat.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(flat.std(0), torch.ones(8), atol=1e-5, rtol=0)
    half_tokens, _ = fused.halves(tokens)
    assert half_tokens.grid == (4, 6)
    torch.testing.assert_close(half_tokens.data, wide.transpose(1, 2), atol=1e-5, rtol=1e-5)
    again = fused.join(semantic, perceptual)
    torch.testing.assert_close(again.data, tokens.data)


def test_statistics_stay_precise_in_low_precision():
    fused = Fused(half(IDENTITY, 8), half(GAUSSIAN), "channel")
    fused.calibrate([IMAGE])
    mean = fused.semantic_mean_D.clone()
    fused.to(torch.bfloat16)
    assert torch.equal(fused.semantic_mean_D, mean)
    assert fused.perceptual.decoder.last_layer.dtype == torch.bfloat16
    assert fused.double().semantic_std_D.dtype == torch.float64


def test_semantics_are_those_of_the_semantic_half():
    model = half(FSQ, semantic=SemanticConfig(dim=6, depth=1, width=8))
    for how in ("channel", "sequence"):
        fused = Fused(model, half(VQ), how)
        expected = model.semantics(IMAGE)
        for found in (semantics_of(fused, IMAGE), fused.token_semantics(fused.encode(IMAGE))):
            assert torch.equal(found.pooled_BD, expected.pooled_BD)
            assert torch.equal(found.patch_BND, expected.patch_BND)
            assert found.grid == (4, 6)


def test_a_foreign_tower_is_a_semantic_half():
    tower, perceptual = Towerish(texts=True), half(GAUSSIAN)
    fused = Fused(tower, perceptual, "sequence")
    assert torch.equal(fused.semantics(IMAGE).pooled_BD, tower.semantics(IMAGE).pooled_BD)
    read = fused.token_semantics(fused.encode(IMAGE))  # it reads images only, so tokens give their mean
    torch.testing.assert_close(read.pooled_BD, tower.encode(IMAGE).data.mean(1))
    assert torch.equal(fused.text_features(["ab", "c"]), torch.tensor([[2.0] * 4, [1.0] * 4]))
    fused.calibrate([IMAGE])
    with pytest.raises(ValueError, match="the semantic half has no text encoder"):
        Fused(Towerish(), perceptual).text_features(["ab"])
    with pytest.raises(ValueError, match="encode only"):
        Fused(perceptual, tower, "sequence").decode(Fused(perceptual, tower, "sequence").encode(IMAGE))


def test_a_tower_is_taken_for_the_images_of_the_other_half():
    tower = build_tower(TowerConfig(name="timm:test_vit", input_size=32), random_init=True)
    assert tower.spec.image_size == (32, 32)
    fused = Fused(tower, half(GAUSSIAN))
    assert fused.spec == TokenSpec(image_size=(16, 24), grid=(4, 6), dim=67)
    assert fused.semantic_spec.grid == (2, 2)
    assert tower.spec.image_size == (32, 32)  # that one is as it was
    assert fused.semantic.network is tower.network
    assert Fused(fused.semantic, half(GAUSSIAN)).semantic is fused.semantic
    fused.calibrate([IMAGE])
    flat = fused.encode(IMAGE).data.flatten(0, 1)
    torch.testing.assert_close(flat.std(0), torch.ones(67), atol=1e-4, rtol=0)
    torch.testing.assert_close(fused.semantics(IMAGE).pooled_BD, tower.semantics(IMAGE).pooled_BD)
    with pytest.raises(ValueError, match=r"built for images of \(16, 24\)"):
        fused.encode(torch.rand(1, 3, 32, 24))
    swapped = Fused(half(GAUSSIAN), fused.semantic, "sequence")
    tokens = swapped.encode(IMAGE)
    with pytest.raises(EncodeOnly, match="only encodes"):
        swapped.decode(tokens)


@pytest.mark.parametrize(
    ("first", "second", "how", "message"),
    [
        (
            lambda: half(FSQ),
            lambda: half(GAUSSIAN),
            "channel",
            "semantic half gives codes and the perceptual .*latents",
        ),
        (
            lambda: half(GAUSSIAN),
            lambda: half(FSQ),
            "sequence",
            "gives latents and the perceptual half codes.*quantise",
        ),
        (lambda: half(FSQ, 8), lambda: half(VQ), "channel", r"grid \(2, 3\).*grid \(4, 6\).*how='sequence'"),
        (lambda: half(FSQ), lambda: half(SCALES), "channel", "raster.*scales.*codes cannot be interpolated"),
        (lambda: half(PRODUCT), lambda: half(VQ), "sequence", "2 semantic and 1 perceptual codes.*how='channel'"),
        (lambda: half(FSQ), lambda: half(VQ), "sum", "how='sum': expected channel or sequence"),
        (lambda: half(SCALES), lambda: half(VQ), "sideways", "how='sideways'"),
    ],
)
def test_halves_that_do_not_go_together(first, second, how, message):
    with pytest.raises(ValueError, match=message):
        Fused(first(), second(), how)


def test_halves_of_other_image_sizes():
    net = ConvConfig(channels=8, groups=4, multipliers=(1, 2), blocks=1, patch=8)
    other = build_autoencoder(AutoencoderConfig(image_size=(16, 16), bottleneck=FSQ, net=net))
    with pytest.raises(ValueError, match=r"semantic half: image_size=\(16, 24\): 24.*images"):
        Fused(other, half(VQ))
    smaller = half(FSQ)
    wide = build_autoencoder(AutoencoderConfig(image_size=(32, 24), bottleneck=VQ, net=smaller.config.net))
    fused = Fused(smaller, wide, "sequence")  # a raster goes along
    assert fused.spec.grid == ((8, 6), (8, 6))
    assert fused.encode(torch.rand(1, 3, 32, 24)).grid == fused.spec.grid


def test_codes_of_the_other_half_are_refused():
    fused = Fused(half(FSQ), half(VQ), "sequence")
    tokens = fused.encode(IMAGE)
    assert int(tokens.data[:, :24].max()) < 40 <= int(tokens.data[:, 24:].min())
    for position, code, name in ((3, 40, "semantic"), (30, 39, "perceptual")):
        wrong = tokens.data.clone()
        wrong[1, position] = code
        with pytest.raises(ValueError, match=rf"1 {name} positions hold codes of the other half: .* 0\.\.39"):
            fused.decode(Tokens(codes_BNS=wrong, grid=tokens.grid))
    wrong[1, 30] = 51
    with pytest.raises(ValueError, match=r"the vocabulary is 0\.\.50"):
        fused.decode(Tokens(codes_BNS=wrong, grid=tokens.grid))


def test_tokens_that_are_not_whole_or_do_not_pair():
    fused = Fused(half(FSQ), half(VQ), "sequence")
    tokens = fused.encode(IMAGE)
    with pytest.raises(ValueError, match=r"grid=\(\(6, 4\),.*halves complete"):
        fused.decode(Tokens(codes_BNS=tokens.data, grid=((6, 4), (4, 6))))
    semantic, perceptual = fused.halves(tokens)
    with pytest.raises(ValueError, match=r"2 semantic.*3 perceptual ones:"):
        fused.join(semantic[:2], perceptual)
    with pytest.raises(ValueError, match=r"perceptual.*\(6, 4\):.*tokenizer.*\(4, 6\)"):
        fused.join(semantic, Tokens(codes_BNS=perceptual.data, grid=(6, 4)))
    with pytest.raises(ValueError, match=r"semantic.*\(4, 6\), perceptual.*\(6, 4\):"):
        Fused(fused.semantic, fused.perceptual).join(semantic, Tokens(codes_BNS=perceptual.data, grid=(6, 4)))
