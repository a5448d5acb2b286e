"""Against diffusers' AutoencoderDC, live, at reduced width."""

import dataclasses

import pytest
import torch
from diffusers import AutoencoderDC
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from tokenizers_mm.nets import dc
from tokenizers_mm.nets.dc import DCConfig, DCDecoder, DCEncoder

R, A = "residual", "attention"
SANA = DCConfig(
    widths=(8, 16, 16),
    layers=(2, 1, 2),
    blocks=(R, R, A),
    scales=((), (), (5,)),
    decoder_widths=(8, 16, 16),
    decoder_layers=(1, 2, 1),
    decoder_blocks=(R, R, A),
    decoder_scales=((), (), (5,)),
    decoder_norms=("rms",) * 3,
    decoder_activations=("silu",) * 3,
    downsample="conv",
    upsample="nearest",
    head_width=8,
)
IMAGENET = DCConfig(
    widths=(8, 16, 32, 32),
    layers=(0, 2, 1, 1),
    blocks=(R, R, A, A),
    scales=((),) * 4,
    decoder_widths=(8, 16, 32, 32),
    decoder_layers=(0, 1, 2, 1),
    decoder_blocks=(R, R, A, A),
    decoder_scales=((),) * 4,
    decoder_norms=("batch", "batch", "rms", "rms"),
    decoder_activations=("relu", "relu", "silu", "silu"),
    head_width=16,
)
CONFIGS = {
    "sana": SANA,
    "imagenet": IMAGENET,
    # Empty level 0 with the other two ways of resampling, no shortcuts.
    "plain": dataclasses.replace(
        IMAGENET, downsample="conv", upsample="nearest", encoder_shortcut=False, decoder_shortcut=False
    ),
    # Several kernels, a kernel beside none, batch norm after attention, a last level without layers.
    "scales": dataclasses.replace(
        SANA,
        layers=(1, 1, 0),
        blocks=(R, A, R),
        scales=((), (3, 5), ()),
        decoder_layers=(1, 1, 0),
        decoder_blocks=(A, A, R),
        decoder_scales=((3,), (3, 7), ()),
        decoder_norms=("batch", "batch", "rms"),
        decoder_activations=("gelu", "mish", "relu"),
        last_activation="silu",
    ),
    # The halves differ in everything but depth; heads do not fill the width; grey images.
    "lopsided": dataclasses.replace(
        SANA,
        decoder_widths=(12, 24, 48),
        decoder_layers=(0, 1, 1),
        decoder_blocks=(R, A, R),
        decoder_scales=((), (), ()),
        upsample="shuffle",
        decoder_shortcut=False,
        head_width=10,
        image_channels=1,
    ),
}
SIZES = {"small": (16, 16), "rectangle": (32, 72), "linear": (64, 64)}


def reference(config: DCConfig, z: int) -> AutoencoderDC:
    words = {R: "ResBlock", A: "EfficientViTBlock", "rms": "rms_norm", "batch": "batch_norm"}
    return AutoencoderDC(
        in_channels=config.image_channels,
        latent_channels=z,
        attention_head_dim=config.head_width,
        encoder_block_types=[words[block] for block in config.blocks],
        decoder_block_types=[words[block] for block in config.decoder_blocks],
        encoder_block_out_channels=config.widths,
        decoder_block_out_channels=config.decoder_widths,
        encoder_layers_per_block=config.layers,
        decoder_layers_per_block=config.decoder_layers,
        encoder_qkv_multiscales=config.scales,
        decoder_qkv_multiscales=config.decoder_scales,
        upsample_block_type="interpolate" if config.upsample == "nearest" else "pixel_shuffle",
        downsample_block_type="Conv" if config.downsample == "conv" else "pixel_unshuffle",
        decoder_norm_types=[words[norm] for norm in config.decoder_norms],
        decoder_act_fns=config.decoder_activations,
        encoder_out_shortcut=config.encoder_shortcut,
        decoder_in_shortcut=config.decoder_shortcut,
        decoder_conv_act_fn=config.last_activation,
    )


def randomise(module: nn.Module) -> None:
    """Weights of unit gain, but nothing left at a value that hides a missing term."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=generator)
        elif name.endswith("running_mean"):
            tensor.normal_(0, 0.5, generator=generator)
        elif tensor.ndim == 1:
            tensor.normal_(1 if ".norm" in name and name.endswith("weight") else 0, 0.3, generator=generator)
        elif tensor.ndim > 1:
            tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)


def pair(config: DCConfig, z: int = 4) -> tuple[AutoencoderDC, DCEncoder, DCDecoder]:
    theirs = reference(config, z).eval()
    randomise(theirs)
    encoder, decoder = DCEncoder(config, z).eval(), DCDecoder(config, z).eval()
    encoder.load_state_dict(theirs.encoder.state_dict())
    decoder.load_state_dict(theirs.decoder.state_dict())
    return theirs, encoder, decoder


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.no_grad()
def test_equals_diffusers(config: DCConfig, size: tuple[int, int]) -> None:
    theirs, encoder, decoder = pair(config)
    image_BCHW = torch.randn(2, config.image_channels, *size, generator=torch.Generator().manual_seed(1))
    latent_BCHW = theirs.encode(image_BCHW).latent
    assert latent_BCHW.shape[-1] == size[1] // config.downsampling
    assert error(encoder(image_BCHW), latent_BCHW) <= 2e-5
    assert error(decoder(latent_BCHW), theirs.decode(latent_BCHW).sample) <= 2e-5


def test_both_branches_of_diffusers_are_met() -> None:
    """It switches at head_dim positions: the sizes above lie on both sides of that in levels with attention."""
    small, large = SIZES["small"], SIZES["linear"]
    assert (small[0] // 8) * (small[1] // 8) <= IMAGENET.head_width < (large[0] // 8) * (large[1] // 8)


@pytest.mark.parametrize("name", ["sana", "imagenet", "scales"])
@torch.no_grad()
def test_training_mode_batch_norm_equals_diffusers(name: str) -> None:
    theirs, encoder, decoder = (module.train() for module in pair(CONFIGS[name]))
    image_BCHW = torch.randn(3, 3, 16, 32, generator=torch.Generator().manual_seed(1))
    latent_BCHW = theirs.encode(image_BCHW).latent
    assert error(encoder(image_BCHW), latent_BCHW) <= 2e-5
    assert error(decoder(latent_BCHW), theirs.decode(latent_BCHW).sample) <= 2e-5
    for key, tensor in theirs.decoder.state_dict().items():
        torch.testing.assert_close(decoder.state_dict()[key], tensor, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_bfloat16_loses_no_more_than_diffusers_does() -> None:
    theirs, encoder, _ = pair(SANA)
    image_BCHW = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = theirs.encode(image_BCHW.float()).latent
    for module in (theirs, encoder):
        module.to(torch.bfloat16)
    latent = encoder(image_BCHW)
    assert latent.dtype == torch.bfloat16
    assert error(latent, exact) <= 1.5 * error(theirs.encode(image_BCHW).latent, exact)


@torch.no_grad()
def test_autocast_leaves_the_attention_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes = []

    def recorded(*qkv: Tensor) -> Tensor:
        dtypes.append((*(tensor.dtype for tensor in qkv), (qkv[0].mT @ qkv[1]).dtype))
        return attention(*qkv)

    attention = dc.linear_attention
    monkeypatch.setattr(dc, "linear_attention", recorded)
    _, encoder, _ = pair(SANA)
    with torch.autocast("cpu", torch.bfloat16):
        encoder(torch.randn(1, 3, 32, 32))
    assert dtypes == [(torch.float32,) * 4] * 2


@torch.no_grad()
def test_norm_of_faint_positions_equals_diffusers() -> None:
    """Where its epsilon is seen."""
    x_BCHW = 2e-3 * torch.randn(2, 16, 3, 5, generator=torch.Generator().manual_seed(0))
    theirs, ours = RMSNorm(16, 1e-5, elementwise_affine=True, bias=True), dc.ChannelNorm(16)
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x_BCHW), theirs(x_BCHW.movedim(1, -1)).movedim(-1, 1))


@torch.no_grad()
def test_attention_is_the_weighted_mean_of_values() -> None:
    generator = torch.Generator().manual_seed(0)
    q_BADN, k_BADN, v_BADN = torch.randn(3, 2, 3, 4, 10, generator=generator).unbind()
    q_BADN, k_BADN = 1e-4 * q_BADN, 1e-4 * k_BADN  # small weights are weights
    q_BADN[:, :, :, 0] = -1  # no weight anywhere: zero, not NaN
    weights_BANN = torch.einsum("badn,badm->banm", q_BADN.relu(), k_BADN.relu())
    total_BAN1 = weights_BANN.sum(-1, keepdim=True)
    weights_BANN = torch.where(total_BAN1 > 0, weights_BANN / total_BAN1, 0)
    expected = torch.einsum("banm,badm->badn", weights_BANN, v_BADN)
    torch.testing.assert_close(dc.linear_attention(q_BADN, k_BADN, v_BADN), expected)
    assert not expected[..., 0].any()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_weight_learns(name: str) -> None:
    config = CONFIGS[name]
    _, encoder, decoder = pair(config)
    image_BCHW = torch.randn(2, config.image_channels, 32, 16, generator=torch.Generator().manual_seed(1))
    decoder(encoder(image_BCHW)).square().sum().backward()
    for module in (encoder, decoder):
        for key, parameter in module.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.any(), key


@torch.no_grad()
def test_traces_into_one_graph() -> None:
    _, encoder, decoder = pair(CONFIGS["scales"])
    image_BCHW = torch.randn(1, 3, 16, 8, generator=torch.Generator().manual_seed(1))
    latent_BCHW = torch.compile(encoder, fullgraph=True, backend="eager")(image_BCHW)
    out_BCHW = torch.compile(decoder, fullgraph=True, backend="eager")(latent_BCHW)
    torch.testing.assert_close(out_BCHW, decoder(encoder(image_BCHW)))


@pytest.mark.parametrize("name", ["sana", "imagenet"])
def test_last_layer_is_the_weight_next_to_the_image(name: str) -> None:
    _, _, decoder = pair(CONFIGS[name])
    key = "conv_out.weight" if name == "sana" else "conv_out.conv.weight"
    assert decoder.last_layer is dict(decoder.named_parameters())[key]


def test_sizes() -> None:
    assert (SANA.downsampling, IMAGENET.downsampling, DCConfig().downsampling) == (4, 8, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": (1, 1)}, "layers=(1, 1): expected one entry per level"),
        ({"decoder_norms": ("rms", "layer", "rms")}, "decoder_norms="),
        ({"blocks": (R, R, "ResBlock")}, "expected one of residual, attention"),
        ({"downsample": "pixel_unshuffle"}, "expected one of conv, unshuffle"),
        ({"last_activation": "tanh"}, "expected one of silu, relu, gelu, mish"),
        ({"layers": (1, 0, 1)}, "except that the first and the last"),
        ({"widths": (8, 16, 0)}, "expected widths of at least 1"),
        ({"widths": (8, 12, 16)}, "level 1 must divide 4 times level 0"),
        ({"decoder_widths": (8, 16, 128)}, "decoder_widths=[8, 16, 128]: level 2 must divide 4 times level 1"),
        ({"widths": (9, 18, 18), "downsample": "unshuffle"}, "be a multiple of 4 for downsample=unshuffle"),
        ({"head_width": 17}, "attention needs at least head_width=17"),
        ({"head_width": 0}, "must be at least 1"),
        ({"scales": ((), (), (4,))}, "expected odd kernels"),
    ],
)
def test_refuses(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        dataclasses.replace(SANA, **change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refuses_one_level_without_layers_and_no_level() -> None:
    for count, layers in ((1, (0,)), (0, ())):
        with pytest.raises(ValueError, match="widths="):
            DCConfig(
                widths=(8,) * count,
                layers=layers,
                blocks=(R,) * count,
                scales=((),) * count,
                decoder_widths=(8,) * count,
                decoder_layers=layers,
                decoder_blocks=(R,) * count,
                decoder_scales=((),) * count,
                decoder_norms=("rms",) * count,
                decoder_activations=("silu",) * count,
            )


@pytest.mark.parametrize(("net", "name"), [(DCEncoder, "encoder_shortcut"), (DCDecoder, "decoder_shortcut")])
def test_refuses_a_latent_that_the_shortcut_cannot_reach(net: type, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=True: 5 latent channels do not divide the last width 16"):
        net(SANA, 5)
