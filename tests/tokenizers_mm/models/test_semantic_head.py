import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tokenizers_mm import AutoencoderConfig, build_autoencoder
from tokenizers_mm.config import ConfigError, parse
from tokenizers_mm.losses.contrastive import contrastive
from tokenizers_mm.models.semantic_head import SemanticConfig, SemanticHead
from tokenizers_mm.nets.conv import ConvConfig
from tokenizers_mm.towers import NGramTextConfig

NET = ConvConfig(channels=8, groups=4, multipliers=(1, 2), blocks=1, patch=2)
IMAGE = torch.rand(3, 3, 16, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
FSQ = {"kind": "fsq", "levels": [8, 5, 5]}
SCALES = {"kind": "multiscale", "inner": {"kind": "vq", "size": 8, "dim": 3}, "scales": [1, [2, 1], [4, 2]]}
CONFIGS = [
    SemanticConfig(dim=8),
    SemanticConfig(dim=8, pool="attention", heads=3),
    SemanticConfig(dim=8, depth=2, heads=2),
    SemanticConfig(dim=6, depth=1, width=16, pool="attention"),
]


def head_of(config=CONFIGS[0], in_dim=3):
    torch.manual_seed(0)
    return SemanticHead(config, in_dim).eval()


def model_of(bottleneck=FSQ, semantic=CONFIGS[2], net=NET, **options):
    torch.manual_seed(0)
    config = AutoencoderConfig(image_size=(16, 8), bottleneck=bottleneck, net=net, semantic=semantic, **options)
    return build_autoencoder(config).eval()


def normalised(x, norm):
    """LayerNorm written out."""
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
    return x * norm.weight + norm.bias


def test_without_layers_it_is_norm_and_projection_of_the_mean():
    head, z = head_of(), torch.randn(2, 6, 3)
    for parameter in head.parameters():  # away from ones and zeros
        torch.nn.init.normal_(parameter)
    out = head(z, (2, 3))
    expected = normalised(z.sum(1) / 6, head.norm) @ head.proj_out.weight.T + head.proj_out.bias
    torch.testing.assert_close(out.pooled_BD, expected)
    patches = normalised(z, head.norm) @ head.proj_out.weight.T + head.proj_out.bias
    torch.testing.assert_close(out.patch_BND, patches)
    assert out.grid == (2, 3)


def test_attention_pooling_is_a_softmax_over_positions():
    head, z = head_of(CONFIGS[1], in_dim=6), torch.randn(2, 5, 6)
    pool = head.pool
    for parameter in pool.parameters():
        torch.nn.init.normal_(parameter)
    keys, values = (normalised(z, pool.norm) @ pool.key_value.weight.T + pool.key_value.bias).chunk(2, -1)
    heads = []
    for i in range(3):
        part = slice(2 * i, 2 * i + 2)
        weight = (keys[..., part] @ pool.query[part] / math.sqrt(2)).softmax(1)
        heads.append((weight[..., None] * values[..., part]).sum(1))
    torch.testing.assert_close(pool(z), torch.cat(heads, 1) @ pool.out.weight.T + pool.out.bias)


@pytest.mark.parametrize("config", CONFIGS, ids=["mean", "attention", "layers", "both"])
def test_any_grid_and_every_parameter_learns(config):
    head = head_of(config).train()
    for grid in ((1, 1), (4, 2), (3, 5), (7,)):
        z = torch.randn(2, math.prod(grid), 3, requires_grad=True)
        out = head(z, grid)
        assert out.patch_BND.shape == (2, math.prod(grid), config.dim)
        assert out.pooled_BD.shape == (2, config.dim)
    # The norm's squares alone would be constant, so random directions.
    (out.pooled_BD * torch.randn(config.dim)).sum().backward()
    assert bool(z.grad.any())
    assert [name for name, p in head.named_parameters() if p.grad is None or not bool(p.grad.any())] == []


def test_layers_see_where_a_position_is_and_the_mean_does_not():
    z, order = torch.randn(1, 8, 3), torch.randperm(8, generator=torch.Generator().manual_seed(1))
    for config, sees in zip(CONFIGS, (False, False, True, True), strict=True):
        head = head_of(config)
        before, after = head(z, (4, 2)).pooled_BD, head(z[:, order], (4, 2)).pooled_BD
        assert torch.allclose(before, after, atol=1e-5) != sees
    turned = [head_of(CONFIGS[2])(z, grid).pooled_BD for grid in ((4, 2), (2, 4))]
    assert not torch.allclose(*turned, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim=0.*at least 1"),
        ({"depth": -1}, "depth=-1.*at least 0"),
        ({"width": 16}, "width=16: only transformer layers have it"),
        ({"depth": 1, "width": 18}, "width=18, heads=4: expected a width that 4 and the heads divide"),
        ({"depth": 1, "width": 20, "heads": 3}, "width=20, heads=3"),
    ],
)
def test_impossible_heads_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SemanticConfig(**options)


def test_what_a_head_without_a_text_encoder_says():
    head = head_of()
    with pytest.raises(ValueError, match=r"semantic.text: this tokenizer has no text encoder"):
        head.text_features(["a cat"])
    with pytest.raises(ValueError, match=r"semantic.text: without a text encoder"):
        _ = head.scale
    assert head.logit_scale is None
    assert head.logit_bias is None
    with pytest.raises(ValueError, match="no semantic head"):
        model_of(semantic=None).text_features(["a cat"])


# ------------------------------------------------------------------------------------------- inside a tokenizer


@pytest.mark.parametrize("bottleneck", [FSQ, SCALES, {"kind": "identity", "dim": 3}], ids=lambda b: b["kind"])
def test_a_tokenizer_reads_the_vectors_that_training_gives_the_head(bottleneck):
    model = model_of(bottleneck)
    _, quantized = model(IMAGE)
    trained = model.semantic(quantized.z_BND, (4, 2))
    used = model.semantics(IMAGE)
    torch.testing.assert_close(used.pooled_BD, trained.pooled_BD, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(used.patch_BND, trained.patch_BND, atol=1e-5, rtol=1e-5)
    assert used.grid == (4, 2)
    assert not used.pooled_BD.requires_grad
    again = model.token_semantics(model.encode(IMAGE))
    assert torch.equal(again.pooled_BD, used.pooled_BD)


def test_statistics_of_latents_do_not_reach_the_head():
    model = model_of({"kind": "gaussian", "dim": 4}, latent_patch=2)
    before = model.semantics(IMAGE)
    model.calibrate([IMAGE])
    after = model.semantics(IMAGE)
    torch.testing.assert_close(after.pooled_BD, before.pooled_BD, atol=1e-5, rtol=1e-5)
    assert before.grid == (4, 2)
    assert model.spec.grid == (2, 1)


@pytest.mark.parametrize("bottleneck", [FSQ, SCALES, {"kind": "gaussian", "dim": 3}], ids=lambda b: b["kind"])
def test_without_a_head_it_is_the_mean_of_the_vectors(bottleneck):
    model = model_of(bottleneck, semantic=None)
    vectors = model.embed(model.encode(IMAGE))
    semantics = model.semantics(IMAGE)
    assert torch.equal(semantics.patch_BND, vectors)
    torch.testing.assert_close(semantics.pooled_BD, vectors.sum(1) / vectors.shape[1])
    assert semantics.grid == ((11,) if bottleneck is SCALES else (4, 2))


def test_the_configuration_is_read_and_written():
    options = model_of().options()
    assert options["semantic"] == {
        "dim": 8, "depth": 2, "width": None, "heads": 2, "pool": "mean", "text": None, "contrast": "info_nce",
    }  # fmt: skip
    assert parse(AutoencoderConfig, options, "here").semantic == CONFIGS[2]
    with pytest.raises(ConfigError, match=r"= 2: unknown key.*known: contrast,"):
        parse(AutoencoderConfig, options | {"semantic": {"deep": 2}}, "here")
    with pytest.raises(ConfigError, match=r"here.semantic: dim=128, depth=-1"):
        parse(AutoencoderConfig, options | {"semantic": {"depth": -1}}, "here")


def test_a_tokenizer_without_a_head_is_configured_as_it_always_was():
    assert "semantic" not in model_of(semantic=None).options()
    assert "semantic" in model_of(semantic=SemanticConfig()).options()


def test_low_precision_reads_nearly_the_same():
    model = model_of({"kind": "identity", "dim": 3}, semantic=replace(CONFIGS[3], dim=8))
    expected = model.semantics(IMAGE)
    semantics = model.to(torch.bfloat16).semantics(IMAGE)
    assert semantics.pooled_BD.dtype == torch.float32
    assert model.semantic.proj_out.weight.dtype == torch.bfloat16
    torch.testing.assert_close(semantics.pooled_BD, expected.pooled_BD, atol=0.1, rtol=0.1)


# ------------------------------------------------------------------------------------------------ learning texts

COLOURS = {
    "red": (1, -1, -1), "green": (-1, 1, -1), "blue": (-1, -1, 1), "white": (1, 1, 1), "black": (-1, -1, -1),
    "yellow": (1, 1, -1),
}  # fmt: skip
NAMES = [f"a {colour} square" for colour in COLOURS]
WORDS = NGramTextConfig(width=16, depth=1, heads=2, buckets=256)


def painted(seed, count=32):
    """Noisy images 16 x 8 with a square in the middle, and its colour."""
    generator = torch.Generator().manual_seed(seed)
    image = 0.3 * torch.randn(count, 3, 16, 8, generator=generator)
    label = torch.randint(len(NAMES), (count,), generator=generator)
    image[:, :, 4:12, 2:6] += torch.tensor([*COLOURS.values()])[label][:, :, None, None]
    return image.clamp(-1, 1), label


def text_loss(model, image, label):
    captions = [NAMES[index] for index in label.tolist()]
    _, vectors = model.quantized(image)
    head = model.semantic
    pooled_BD, text_BD = head(*vectors).pooled_BD, head.text_features(captions)
    bias, scale = head.logit_bias, head.scale
    return contrastive(head.config.contrast, pooled_BD, text_BD, scale=scale, bias=bias, captions=captions)


def zero_shot(model, image, label):
    """Share of the images whose own text is the nearest of all."""
    features = F.normalize(model.semantics(image).pooled_BD, dim=1)
    texts = F.normalize(model.text_features(NAMES), dim=1)
    return float(((features @ texts.T).argmax(1) == label).float().mean())


def test_a_discrete_tokenizer_learns_what_texts_say():
    semantic = SemanticConfig(dim=16, pool="attention", heads=2, text=WORDS)
    net = ConvConfig(channels=8, groups=4, multipliers=(1,), blocks=1, patch=4, middle_blocks=1, middle_attention=False)
    held_out, found = painted(1000, count=128), []
    for shift in (0, 1):  # the captions of other images teach nothing
        model = model_of({"kind": "bsq", "dim": 8}, semantic=semantic, net=net).train()
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for step in range(25):
            image, label = painted(step)
            optimizer.zero_grad()
            text_loss(model, image, label.roll(shift)).backward()
            optimizer.step()
        found.append(zero_shot(model.eval(), *held_out))
    assert found[0] > 0.8
    assert found[1] < 0.5  # chance is 1 in 6


@pytest.mark.parametrize("contrast", ["info_nce", "sigmoid"])
def test_texts_reach_the_encoder_the_head_and_the_text_encoder(contrast):
    semantic = SemanticConfig(dim=8, depth=1, heads=2, pool="attention", text=WORDS, contrast=contrast)
    model = model_of({"kind": "bsq", "dim": 8}, semantic=semantic).train()
    text_loss(model, *painted(0)).backward()
    missing = {name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())}
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in missing)
    names = dict(model.named_parameters())
    assert "semantic.logit_scale" in names.keys() - missing
    assert ("semantic.logit_bias" in names) == (contrast == "sigmoid")
