import hashlib
import re

import diffusers
import pytest
import torch
from diffusers import AutoencoderKLQwenImage, AutoencoderKLQwenImage21, AutoencoderKLWan

from tokenizers_mm.checkpoints.diffusers import from_diffusers, read
from tokenizers_mm.checkpoints.families import Contents
from tokenizers_mm.checkpoints.families.causal import PUBLISHED, READER
from tokenizers_mm.checkpoints.recognise import recognise
from tokenizers_mm.config import parse
from tokenizers_mm.models.assemble import assemble
from tokenizers_mm.nets.causal import CausalConfig
from tokenizers_mm.weights.errors import CheckpointError

WAN_2_2 = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
}
THIN = {"base_dim": 8, "decoder_base_dim": 12, "z_dim": 5}
ALL = {
    "qwen_image": (AutoencoderKLQwenImage, {"base_dim": 8}),
    "opacity": (AutoencoderKLQwenImage, {"base_dim": 8, "input_channels": 4}),
    "three_levels": (
        AutoencoderKLQwenImage,
        {"base_dim": 8, "z_dim": 4, "dim_mult": [2, 2, 3], "num_res_blocks": 3, "temperal_downsample": [True, False]},
    ),
    "attention": (AutoencoderKLWan, {"base_dim": 8, "attn_scales": [0.5, 0.125, 7.0]}),
    "wan_2_1": (AutoencoderKLWan, {**THIN}),
    "wan_2_2": (AutoencoderKLWan, {**WAN_2_2, **THIN}),
    "qwen_image_2": (AutoencoderKLQwenImage21, {"base_dim": 8, "decoder_base_dim": 12}),
}
# SHA-256 over the sorted names and shapes of WanVAE_ in wan/modules/vae.py (Wan 2.1) and vae2_2.py (Wan 2.2), as their
# loaders build it, taken from the classes themselves: they pin `original_name`, the map back that these tests use.
ORIGINAL = {
    "6d12bd5199d9dcd5b316dbc98c72a68be03e0ac320eb14a4ccd3b5a7bac04ca8": {},
    "d6eb318580d7756b4a0e2187642cbff278616b7e3d4580d041014a424ab0911e": WAN_2_2,
}


def model(name):
    kind, arguments = ALL[name]
    torch.manual_seed(0)
    return kind(**arguments).requires_grad_(False)


def given(state, config=None, where="file"):
    """What the reader makes of a file; tensors of the meta device will do."""
    keys = list(state)
    return Contents(keys=keys, state=READER.naming_of(keys).table(keys).read(state), about=config or {}, where=where)


def options(state, config=None, where="file"):
    return READER.options(given(state, config, where))


def built(state):
    parsed = recognise(state, "vae")
    return assemble(parsed.options, parsed.state, parsed.where)


def original_name(key, blocks):
    """What the original Wan code calls a key of diffusers, with this many residual blocks per encoder level."""
    inside = [("norm1", "residual.0"), ("conv1", "residual.2"), ("norm2", "residual.3"), ("conv2", "residual.6")]
    outside = [
        ("mid_block.resnets.0", "middle.0"),
        ("mid_block.attentions.0", "middle.1"),
        ("mid_block.resnets.1", "middle.2"),
        ("norm_out", "head.0"),
        ("conv_out", "head.2"),
        ("conv_shortcut", "shortcut"),
        ("coder.conv_in", "coder.conv1"),
    ]
    if re.match("(post_)?quant_conv", key):
        return key.replace("post_quant_conv", "conv2").replace("quant_conv", "conv1")
    for theirs, original in inside:
        key = key.replace(f".{theirs}.", f".{original}.")
    for theirs, original in outside:
        key = key.replace(theirs, original)
    key = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"downsamples.\1.downsamples.", key)
    key = re.sub(r"down_blocks\.(\d+)\.downsampler\.", rf"downsamples.\1.downsamples.{blocks}.", key)
    key = key.replace("down_blocks", "downsamples")
    if match := re.search(r"up_blocks\.(\d+)\.(?:resnets\.(\d+)|upsamplers\.0)\.", key):
        number = int(match[1]) * (blocks + 2) + int(match[2] or blocks + 1)
        return key.replace(match[0], f"upsamples.{number}.")
    return key


def original_state(theirs):
    """The same tensors in the original naming."""
    blocks, residual = theirs.config.num_res_blocks, theirs.config.get("is_residual")
    state = {}
    for key, value in theirs.state_dict().items():
        if residual:
            key = re.sub(r"up_blocks\.(\d+)\.resnets\.", r"upsamples.\1.upsamples.", key)
            key = re.sub(r"up_blocks\.(\d+)\.upsampler\.", rf"upsamples.\1.upsamples.{blocks + 1}.", key)
        state[original_name(key, blocks)] = value
    return state


@pytest.mark.parametrize(("digest", "arguments"), ORIGINAL.items())
def test_the_map_back_gives_every_name_of_the_original(digest, arguments):
    with torch.device("meta"):
        theirs = AutoencoderKLWan(**arguments)
    state = original_state(theirs)
    lines = sorted(f"{key} {list(value.shape)}" for key, value in state.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == digest
    assert options(state) == options(theirs.state_dict(), dict(theirs.config))


@pytest.mark.parametrize("name", ALL)
def test_options_are_the_same_from_shapes_config_and_either_naming(name):
    theirs = model(name)
    found = options(theirs.state_dict(), dict(theirs.config))
    assert found == options(theirs.state_dict()) == options(original_state(theirs))
    config = theirs.config
    net = parse(CausalConfig, found["net"], "net")
    assert (net.channels, net.multipliers, net.blocks) == (
        config.base_dim,
        tuple(config.dim_mult),
        config.num_res_blocks,
    )
    assert net.decoder_widths[0] == (config.get("decoder_base_dim") or config.base_dim) * config.dim_mult[0]
    assert net.image_channels == (4 if name in ("opacity", "qwen_image_2") else 3)
    assert net.downsampling == 2 ** (len(config.dim_mult) - 1) * (2 if name == "wan_2_2" else 1)
    assert net.attention_levels == ((1, 3) if name == "attention" else ())
    shortcuts = name in ("wan_2_2", "qwen_image_2")
    assert net.shortcuts == shortcuts
    assert net.temporal_levels == (tuple(i for i, t in enumerate(config.temperal_downsample) if t) if shortcuts else ())
    assert found["bottleneck"] == {"kind": "gaussian", "dim": config.z_dim}
    assert (found["z_channels"], found["quant_conv"]) == (config.z_dim, 1)


@pytest.mark.parametrize("name", ALL)
def test_both_namings_give_the_same_views(name):
    theirs = model(name)
    state = theirs.state_dict()
    ours, again = given(state).state, given(original_state(theirs)).state
    assert {key: value.data_ptr() for key, value in ours.items()} == {k: v.data_ptr() for k, v in again.items()}
    assert len(ours) == len(state)
    over_time = {key for key in ours if "time_conv" in key}
    assert len(over_time) == len({key for key in state if "time_conv" in key})
    parsed = recognise(state, "file")
    assert parsed.state.keys() == ours.keys() - over_time
    assert parsed.ignored == ((f"*.time_conv.* ({len(over_time)})",) if over_time else ())

    owners = {value.untyped_storage().data_ptr() for value in state.values()}
    assert all(value.untyped_storage().data_ptr() in owners for value in ours.values()), "a copy was made"
    assert all(value.ndim in (1, 3, 4) for key, value in ours.items() if key not in over_time)


def test_the_last_temporal_tap_is_taken():
    state = model("wan_2_1").state_dict()
    weight = state["encoder.down_blocks.0.conv1.weight"]
    ours = given(state).state["encoder.down.0.block.0.conv1.weight"]
    assert torch.equal(ours, weight[:, :, 2])
    assert not torch.equal(ours, weight[:, :, 1])


@pytest.mark.parametrize("name", ["qwen_image", "wan_2_2"])
def test_latents_and_images_are_those_of_a_diffusion_pipeline(name):
    theirs = model(name)
    if name == "wan_2_2":
        theirs.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.0, 1.0], latents_std=[0.5, 1.5, 1.0, 2.0, 3.0])
    ours = from_diffusers(theirs)
    mean, std = (torch.tensor(values) for values in (theirs.config.latents_mean, theirs.config.latents_std))

    image = torch.rand(2, 3, 32, 64) * 2 - 1
    tokens = ours.encode(image)
    expected = (theirs.encode(image[:, :, None]).latent_dist.mode() - mean.view(-1, 1, 1, 1)) / std.view(-1, 1, 1, 1)
    torch.testing.assert_close(tokens.latents_BND, expected.flatten(2).transpose(1, 2), rtol=2e-5, atol=2e-5)
    pixels = theirs.decode(expected * std.view(-1, 1, 1, 1) + mean.view(-1, 1, 1, 1)).sample[:, :, 0]
    torch.testing.assert_close(ours.decode(tokens).clamp(-1, 1), pixels, rtol=2e-5, atol=2e-5)


def statistics(config, z_channels=16):
    state = {"decoder.conv_in.weight": torch.empty(1, z_channels, 3, 3)}
    return READER.statistics(Contents(keys=[], state=state, about=config, where="vae"))


def test_statistics():
    for kind in (AutoencoderKLQwenImage, AutoencoderKLWan):
        with torch.device("meta"):
            config = dict(kind().config)
        assert statistics(config) == statistics({}) == PUBLISHED[16]
    with torch.device("meta"):
        config = dict(AutoencoderKLQwenImage21().config)
    assert statistics(config, 64) == (list(config["latents_mean"]), list(config["latents_std"]))
    assert statistics({}, 64) is None
    mean, std = statistics({}, 48)
    assert (len(mean), len(std), min(std) > 0) == (48, 48, True)
    assert (mean[0], mean[-1], std[0], std[-1]) == (-0.2289, -0.0667, 0.4765, 0.7744)
    assert statistics({"latents_mean": [1], "latents_std": [2]}, 1) == ([1.0], [2.0])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"latents_mean": [0.0] * 15, "latents_std": [1.0] * 16}, "vae: latents_mean = .*: expected 16 finite numbers"),
        ({"latents_mean": [0.0] * 16}, "vae: latents_std = None: expected 16 finite numbers"),
        ({"latents_mean": [0.0] * 16, "latents_std": [1.0] * 15 + [0.0]}, "latents_std = .*: expected numbers above 0"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(config, message):
    with pytest.raises(CheckpointError, match=message):
        statistics(config)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("wan_2_1", {"base_dim": 16}, r"vae: config.json has base_dim = 16, expected 8"),
        ("wan_2_1", {"decoder_base_dim": 16}, "decoder_base_dim = 16, expected 12"),
        ("wan_2_1", {"z_dim": 16}, "z_dim = 16, expected 5"),
        ("wan_2_1", {"dim_mult": [1, 2, 4]}, r"dim_mult = \[1, 2, 4\], expected \[1, 2, 4, 4\]"),
        ("wan_2_1", {"num_res_blocks": 1}, "num_res_blocks = 1, expected 2"),
        ("wan_2_1", {"is_residual": True}, "is_residual = True, expected False"),
        ("wan_2_1", {"temperal_downsample": [True, True, True]}, r"temperal_downsample = \[True, True, True\]"),
        ("wan_2_1", {"attn_scales": [0.25]}, r"attn_scales = \[0.25\], expected \[\]"),
        ("wan_2_1", {"patch_size": [1, 2, 2]}, r"patch_size = \[1, 2, 2\]: not of this net"),
        ("wan_2_1", {"patch_size": 2}, "patch_size = 2: not of this net"),
        ("opacity", {"input_channels": 3}, "input_channels = 3, expected 4"),
        ("wan_2_2", {"is_residual": False}, "is_residual = False, expected True"),
    ],
)
def test_a_config_of_another_net_is_refused(name, changes, message):
    theirs = model(name)
    with pytest.raises(CheckpointError, match=message) as caught:
        read(dict(theirs.config) | changes | {"_class_name": ALL[name][0].__name__}, theirs.state_dict(), "vae")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder.down_blocks.0.conv1.weight": None}, "vae: no encoder.down.0.block.0.conv1.weight"),
        ({"decoder.mid_block.resnets.1.conv2.bias": None}, "missing keys: decoder.mid.block_2.conv2.bias"),
        ({"decoder.up_blocks.2.resnets.2.conv2.weight": None}, "missing keys: decoder.up.1.block.2.conv2.weight"),
        ({"post_quant_conv.bias": (6,)}, r"post_quant_conv.bias \(6,\) \(expected \(5,\)\)"),
        ({"encoder.norm_out.gamma": (31, 1, 1, 1)}, r"encoder.norm_out.weight \(31, 1, 1\) \(expected \(32, 1, 1\)\)"),
        ({"encoder.extra.weight": (3,)}, "unexpected keys: encoder.extra.weight"),
        (
            {"encoder.down_blocks.0.conv1.weight": (9, 8, 3, 3, 3)},
            r"encoder.down.0.block.0.conv1.weight \(9, 8, 3, 3\)",
        ),
        ({"encoder.down_blocks.0.conv1.weight": (4, 8, 3, 3, 3)}, r"multipliers=\(0,"),
    ],
)
def test_shapes_of_no_such_net_are_refused(changes, message):
    state = model("wan_2_1").state_dict()
    state |= {key: torch.zeros(shape) for key, shape in changes.items() if shape is not None}
    with pytest.raises(CheckpointError, match=message) as caught:
        built({key: value for key, value in state.items() if changes.get(key, ()) is not None})
    assert str(caught.value).startswith("vae")
    assert "\n" not in str(caught.value)


def test_only_these_autoencoders_are_recognised():
    for name in ALL:
        assert READER.naming_of(model(name).state_dict()).name == "diffusers"
        assert READER.naming_of(original_state(model(name))).name == "original"
    others = ["AutoencoderKL", "AutoencoderDC", "AutoencoderKLHunyuanVideo15", "AutoencoderKLHunyuanImageRefiner"]
    for other in [*others, "AutoencoderKLCogVideoX", "AutoencoderKLHunyuanVideo", "AutoencoderKLMagvit", "VQModel"]:
        with torch.device("meta"):
            keys = list(getattr(diffusers, other)().state_dict())
        assert READER.naming_of(keys) is None, other
