"""Against diffusers' own classes, live, at reduced width with random weights."""

import json

import diffusers as theirs
import pytest
import torch
from safetensors.torch import load_file

from tokenizers_mm import AutoencoderConfig, Tokens, build_autoencoder, fingerprint, load, save
from tokenizers_mm.checkpoints import CheckpointError
from tokenizers_mm.checkpoints.diffusers import from_diffusers, read, to_diffusers
from tokenizers_mm.checkpoints.families import factors
from tokenizers_mm.checkpoints.families.conv import DIFFUSERS, diffusers_names
from tokenizers_mm.nets import ConvConfig, DCConfig

DOWN, UP = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")
F4 = {
    "block_out_channels": (16, 24, 32),  # 1.5 is no whole multiple
    "down_block_types": DOWN[:1] * 3,
    "up_block_types": UP[:1] * 3,
    "norm_num_groups": 8,
    "layers_per_block": 2,
}
F2 = {
    "block_out_channels": (16, 32),
    "down_block_types": (DOWN[0], DOWN[1]),
    "up_block_types": (UP[0], UP[1]),  # coarsest first: attention at the coarse level of the encoder, the fine one here
    "norm_num_groups": 4,
}
DC = {
    "attention_head_dim": 8,
    "decoder_act_fns": ("relu", "silu", "silu"),
    "decoder_block_out_channels": (16, 16, 32),
    "decoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
    "decoder_layers_per_block": (1, 2, 1),
    "decoder_norm_types": ("batch_norm", "rms_norm", "rms_norm"),
    "decoder_qkv_multiscales": ((), (), (5,)),
    "encoder_block_out_channels": (16, 16, 32),
    "encoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
    "encoder_layers_per_block": (1, 1, 1),
    "encoder_qkv_multiscales": ((), (), (3,)),
    "latent_channels": 4,
}
QWEN = {
    "base_dim": 8, "z_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1,
    "attn_scales": [], "temperal_downsample": [True],
    "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 0.5, 2.0, 1.0],
}  # fmt: skip
LIVE = {
    "sd": ("AutoencoderKL", F4),
    "flux": (
        "AutoencoderKL",
        F4 | {"use_quant_conv": False, "use_post_quant_conv": False, "scaling_factor": 0.3611, "shift_factor": 0.1159},
    ),
    "one convolution": (
        "AutoencoderKL",
        F4 | {"use_post_quant_conv": False, "act_fn": "Swish", "sample_size": [64, 32]},
    ),
    "attention in levels": ("AutoencoderKL", F2 | {"mid_block_add_attention": False}),
    "statistics per channel": (
        "AutoencoderKL",
        F2 | {"latents_mean": [0.5, -1.0, 0, 2], "latents_std": [2.0, 1, 3, 0.5], "scaling_factor": 0.5},
    ),
    "grey": ("AutoencoderKL", F2 | {"in_channels": 1, "out_channels": 1, "latent_channels": 2}),
    "vq": ("VQModel", F4 | {"latent_channels": 4, "num_vq_embeddings": 64}),
    "vq of another width": ("VQModel", F2 | {"latent_channels": 6, "vq_embed_dim": 4, "num_vq_embeddings": 32}),
    "flux2": ("AutoencoderKLFlux2", F4 | {"latent_channels": 4}),
    "flux2 with a small decoder": (
        "AutoencoderKLFlux2",
        F4 | {"latent_channels": 4, "decoder_block_out_channels": (8, 16, 24), "use_quant_conv": False},
    ),
    "dc": ("AutoencoderDC", DC | {"scaling_factor": 0.41407}),
    "qwen": ("AutoencoderKLQwenImage", QWEN),
    "wan": ("AutoencoderKLWan", QWEN),
}
WRITABLE = [name for name in LIVE if name not in ("qwen", "wan")]
SIZES = [(2, 32, 32), (1, 48, 32), (1, 16, 64)]


def live(name):
    """A live object of diffusers with weights, biases and running statistics that are none of their defaults."""
    kind, options = LIVE[name]
    torch.manual_seed(1)  # equal calls give equal weights
    vae = getattr(theirs, kind)(**options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, value in vae.state_dict().items():
            if not value.is_floating_point():
                continue
            drawn = torch.randn(value.shape, generator=generator)
            if key == "quantize.embedding.weight":
                value.copy_(drawn * 0.3)
            elif key.endswith("running_var"):
                value.copy_(0.5 + drawn.square())
            elif value.ndim < 2 or key.endswith("gamma"):
                value.add_(drawn * 0.1)
    return vae.eval()


def image_of(name, batch, height, width):
    channels = LIVE[name][1].get("in_channels", 3)
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(2)) * 2 - 1


def error(ours, reference):
    assert ours.shape == reference.shape
    return float((ours - reference).abs().max() / reference.abs().max())


def map_of(tokens):
    return tokens.data.transpose(1, 2).unflatten(2, tokens.grid)


@torch.no_grad()
def through(vae, image):
    """Latents as diffusers' pipelines give them to a model (codes' map for VQModel), and what decodes from them."""
    c, kind = vae.config, type(vae).__name__
    if kind == "VQModel":
        z = vae.encode(image).latents
        codes = vae.quantize(z)[2][2].view(len(image), *z.shape[2:])
        return codes, vae.decode(z).sample
    if kind == "AutoencoderDC":
        z = vae.encode(image).latent
        return z * c.scaling_factor, vae.decode(z).sample
    if kind in ("AutoencoderKLQwenImage", "AutoencoderKLWan"):
        z = vae.encode(image[:, :, None]).latent_dist.mode()
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (c.latents_mean, c.latents_std))
        return (z[:, :, 0] - mean) / std, vae.decode(z).sample[:, :, 0]
    z = vae.encode(image).latent_dist.mode()
    out = vae.decode(z).sample
    if kind == "AutoencoderKLFlux2":
        return vae.bn(torch.pixel_unshuffle(z, 2)), out
    if c.latents_mean is not None:
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (c.latents_mean, c.latents_std))
        return (z - mean) * c.scaling_factor / std, out
    return (z - (c.shift_factor or 0)) * c.scaling_factor, out


def assert_same(tokenizer, vae, image):
    latents, out = through(vae, image)
    tokens = tokenizer.encode(image)
    if tokenizer.spec.discrete:
        assert torch.equal(map_of(tokens)[:, 0], latents)
    else:
        assert error(map_of(tokens), latents) <= 1e-5
    assert error(tokenizer.decode(tokens), out) <= 1e-5


@pytest.mark.parametrize("name", LIVE)
def test_a_live_object_gives_the_same_numbers(name):
    vae = live(name)
    tokenizer = from_diffusers(vae)
    for size in SIZES:
        assert_same(tokenizer, vae, image_of(name, *size))


@pytest.mark.parametrize("name", LIVE)
def test_a_live_object_is_not_copied(name):
    vae = live(name).train()
    asked = {key: value.requires_grad_(False) for key, value in vae.named_parameters()}
    tokenizer = from_diffusers(vae)
    theirs_at = {value.untyped_storage().data_ptr() for value in vae.state_dict().values()}
    nets = [tokenizer.encoder, tokenizer.decoder, tokenizer.quant_conv, tokenizer.post_quant_conv]
    layers = [m for net in nets for m in net.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) > 10
    for parameter in (p for net in nets for p in net.parameters()):
        assert parameter.untyped_storage().data_ptr() in theirs_at
    assert not tokenizer.training
    assert vae.training  # the given object stays as it was
    assert not any(value.requires_grad for value in asked.values())
    before = tokenizer.decoder.last_layer.detach().clone()
    with torch.no_grad():
        for value in vae.parameters():
            value.mul_(2)
    assert torch.equal(tokenizer.decoder.last_layer, 2 * before)


@pytest.mark.parametrize("name", LIVE)
def test_a_folder_that_diffusers_wrote_gives_the_same_numbers(name, tmp_path):
    vae = live(name)
    vae.save_pretrained(tmp_path)
    assert_same(load(tmp_path), vae, image_of(name, 2, 32, 48))


@pytest.mark.parametrize("name", WRITABLE)
def test_a_folder_that_we_wrote_for_diffusers_loads_here_too(name, tmp_path):
    vae = live(name)
    to_diffusers(from_diffusers(vae), tmp_path / "vae")
    assert_same(load(tmp_path), vae, image_of(name, 1, 32, 32))


@pytest.mark.parametrize("name", ["flux", "vq", "flux2", "dc", "qwen"])
def test_precision_stays(name):
    vae = live(name).to(torch.bfloat16)
    tokenizer = from_diffusers(vae)
    assert {p.dtype for p in tokenizer.encoder.parameters()} == {torch.bfloat16}
    assert tokenizer.decoder.last_layer.untyped_storage().data_ptr() in {
        v.untyped_storage().data_ptr() for v in vae.parameters()
    }
    image = image_of(name, 1, 32, 32)
    tokens = tokenizer.encode(image)
    assert tokens.data.dtype == (torch.int64 if tokenizer.spec.discrete else torch.float32)
    assert bool(torch.isfinite(tokenizer.decode(tokens)).all())
    if not tokenizer.spec.discrete:
        assert tokenizer.latent_mean_D.dtype == torch.float32
        assert error(map_of(tokens), through(live(name), image)[0]) < 0.1


def test_the_image_size_is_the_stated_one_where_it_fits():
    assert from_diffusers(live("one convolution")).spec.image_size == (64, 32)
    assert from_diffusers(live("sd")).spec.image_size == (32, 32)
    vae = live("sd")
    for size in (30, None, [64], "64"):
        config = dict(vae.config) | {"_class_name": "AutoencoderKL", "sample_size": size}
        assert read(config, vae.state_dict(), "vae").options["image_size"] == [256, 256]


@pytest.mark.parametrize("name", WRITABLE)
def test_what_is_written_loads_in_diffusers(name, tmp_path):
    vae = live(name)
    tokenizer = from_diffusers(vae)
    to_diffusers(tokenizer, tmp_path / "vae")
    again, report = type(vae).from_pretrained(tmp_path / "vae", output_loading_info=True)
    assert not any(report.values()), report
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in vae.state_dict().items()}
    again.eval()
    for size in SIZES:
        image = image_of(name, *size)
        for ours, reference in zip(through(again, image), through(vae, image), strict=True):
            assert error(ours.float(), reference.float()) <= 1e-5
        assert_same(tokenizer, again, image)
    assert sorted(path.name for path in (tmp_path / "vae").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]


@pytest.mark.parametrize("name", WRITABLE)
def test_writing_and_reading_again_changes_nothing(name, tmp_path):
    tokenizer = from_diffusers(live(name))
    to_diffusers(tokenizer, tmp_path / "vae")
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    again = from_diffusers(getattr(theirs, config["_class_name"]).from_pretrained(tmp_path / "vae"))
    assert again.config.net == tokenizer.config.net
    for key, value in tokenizer.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=2e-7, atol=0)


@pytest.mark.parametrize("name", ["sd", "flux", "dc"])
def test_factors_are_written_as_they_were_published(name, tmp_path):
    vae = live(name)
    to_diffusers(from_diffusers(vae), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["scaling_factor"] == vae.config.scaling_factor
    assert config.get("shift_factor") == vae.config.get("shift_factor")
    assert "_diffusers_version" not in config


@pytest.mark.parametrize("name", [name for name in WRITABLE if name != "dc"])
def test_names_there_and_back(name):
    state = {key: value for key, value in live(name).state_dict().items() if not key.startswith("bn.")}
    names = diffusers_names()
    back = names.write(names.read(state))
    assert {k: (v.shape, v.data_ptr()) for k, v in back.items()} == {
        k: (v.shape, v.data_ptr()) for k, v in state.items()
    }
    assert DIFFUSERS.missing(state) == []
    assert DIFFUSERS.missing(names.read(state)) != []


def test_old_names_of_attention():
    state = live("sd").state_dict()
    old = {
        key.replace("to_q", "query").replace("to_k", "key").replace("to_v", "value").replace("to_out.0", "proj_attn"): v
        for key, v in state.items()
    }
    assert len(set(old) - set(state)) == 16
    ours, reference = (diffusers_names().read(one) for one in (old, state))
    assert {k: v.data_ptr() for k, v in ours.items()} == {k: v.data_ptr() for k, v in reference.items()}


BAD = [
    ("sd", {"_class_name": "AutoencoderTiny"}, r"_class_name = AutoencoderTiny: expected one of AutoencoderKL"),
    ("sd", {"_class_name": None}, r"_class_name = None"),
    ("sd", {"_class_name": "VQModel"}, r"bottleneck.kind is gaussian, not vq"),
    ("vq", {"_class_name": "AutoencoderKL"}, r"bottleneck.kind is vq, not gaussian"),
    ("sd", {"_class_name": "AutoencoderKLFlux2"}, r"no bn.running_mean"),
    ("vq", {"norm_type": "spatial"}, r"no .*conv_y"),
    ("vq", {"norm_type": "other"}, r"norm_type = 'other', expected 'group'"),
    ("sd", {"down_block_types": ["DownBlock2D"]}, r"down_block_types = \['DownBlock2D'\], expected \['DownEncoder"),
    ("sd", {"up_block_types": ["UpDecoderBlock2D"] * 2}, r"up_block_types = .*, expected \['UpDecoderBlock2D', 'U"),
    ("sd", {"act_fn": "relu"}, r"act_fn = 'relu', expected 'silu'"),
    ("sd", {"out_channels": 4}, r"out_channels = 4, expected 3"),
    ("sd", {"in_channels": 4}, r"in_channels = 4, expected 3"),
    ("sd", {"block_out_channels": 64}, r"block_out_channels = 64, expected \[16, 24, 32\]"),
    ("sd", {"layers_per_block": 0}, r"layers_per_block = 0, expected 2"),
    ("sd", {"latent_channels": "4"}, r"latent_channels = '4', expected 4"),
    ("sd", {"use_quant_conv": False}, r"use_quant_conv = False, expected True"),
    ("sd", {"mid_block_add_attention": False}, r"mid_block_add_attention = False, expected True"),
    ("sd", {"norm_num_groups": 5}, r"multiple of groups=5"),
    ("sd", {"norm_num_groups": "many"}, r"groups = 'many'"),
    ("vq", {"num_vq_embeddings": 65}, r"num_vq_embeddings = 65, expected 64"),
    ("sd", {"new_option": 3}, r"new_option = 3: no option of AutoencoderKL that is known here"),
    ("flux2", {"patch_size": [2, 1]}, r"patch_size = \[2, 1\], expected \[2, 2\]"),
    ("flux2", {"decoder_block_out_channels": [64, 128]}, r"decoder_block_out_channels = \[64, 128\], expected None"),
    ("qwen", {"dim_mult": [1, 3]}, r"dim_mult = \[1, 3\], expected \[1, 2\]"),
]


@pytest.mark.parametrize(("name", "changes", "message"), BAD, ids=lambda v: str(v)[:50])
def test_a_config_that_is_not_of_these_weights_is_refused(name, changes, message):
    vae = live(name)
    config = {**vae.config, "_class_name": LIVE[name][0]} | changes
    with pytest.raises(CheckpointError, match=message) as caught:
        read(config, vae.state_dict(), "vae/config.json")
    assert str(caught.value).startswith("vae/config.json: ")
    assert "\n" not in str(caught.value)


def test_what_a_config_does_not_say_is_what_the_weights_have():
    for name in ("sd", "attention in levels", "vq of another width", "flux2 with a small decoder"):
        vae = live(name)
        said = {"_class_name": LIVE[name][0], "norm_num_groups": vae.config.norm_num_groups}
        bare, whole = (read(config, vae.state_dict(), "vae") for config in (said, {**vae.config, **said}))
        assert bare.options | {"image_size": 0} == whole.options | {"image_size": 0}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, (0.0, 1 / 0.18215)),
        ({"scaling_factor": None}, (0.0, 1.0)),
        ({"scaling_factor": 2, "shift_factor": 0.5}, (0.5, 0.5)),
        ({"latents_mean": [0, 1], "latents_std": [1, 2], "scaling_factor": 0.5}, ([0.0, 1.0], [2.0, 4.0])),
    ],
)
def test_statistics(config, expected):
    assert factors.statistics(config, 2, "config.json", default=0.18215) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"scaling_factor": 0}, r"scaling_factor = 0: expected a finite number above 0"),
        ({"scaling_factor": float("nan")}, r"scaling_factor = nan: expected a finite number"),
        ({"scaling_factor": "0.5"}, r"scaling_factor = '0.5': expected a finite number"),
        ({"shift_factor": [0.1]}, r"shift_factor = \[0.1\]: expected a finite number"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0, 1, 0, 1]}, r"latents_std = .*: expected numbers above 0"),
        ({"latents_mean": [0.0] * 4}, r"latents_std = None: expected 4 finite numbers"),
        ({"latents_mean": [0.0] * 3, "latents_std": [1.0] * 4}, r"latents_mean = .*: expected 4 finite numbers"),
        (
            {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "shift_factor": 0.1},
            r"shift_factor = 0.1: expected none beside latents_mean",
        ),
    ],
    ids=lambda v: str(v)[:50],
)
def test_statistics_that_cannot_be_meant(config, message):
    with pytest.raises(CheckpointError, match=rf"^vae: {message}"):
        factors.statistics(config, 4, "vae")


def test_weights_of_another_net_are_refused():
    vae = live("sd")
    vae.decoder.conv_out = torch.nn.Conv2d(16, 4, 3)
    with pytest.raises(CheckpointError, match=r"AutoencoderKL, read as ldm_kl .*: wrong shapes: decoder.conv_out"):
        from_diffusers(vae)


def test_what_is_no_autoencoder_of_diffusers_is_refused():
    with pytest.raises(CheckpointError, match=r"^Linear: expected an object of diffusers' AutoencoderKL, "):
        from_diffusers(torch.nn.Linear(1, 1))
    with pytest.raises(CheckpointError, match=r"^AutoencoderTiny: expected an object"):
        from_diffusers(theirs.AutoencoderTiny())
    with pytest.raises(CheckpointError, match=r"^vae: _class_name = UNet: expected one of AutoencoderKL"):
        read({"_class_name": "UNet"}, {}, "vae")


def test_weights_without_memory_or_quantized_are_refused():
    with pytest.raises(CheckpointError, match=r"encoder.conv_in.weight has no memory \(meta device\)"):
        from_diffusers(live("sd").to("meta"))
    vae = live("sd")
    vae.encoder.conv_in.weight = torch.nn.Parameter(vae.encoder.conv_in.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(CheckpointError, match=r"encoder.conv_in.weight has torch.int8: .*without quantization"):
        from_diffusers(vae)


def test_origin_is_known_as_far_as_the_object_says():
    provenance = from_diffusers(live("flux")).provenance
    assert (provenance.source, provenance.commit) == ("an object of diffusers' AutoencoderKL", None)
    assert provenance.family == "ldm_kl"  # the factor of flux1, but not its net: no licence is claimed
    assert provenance.licence_weights == "not stated"
    assert from_diffusers(live("vq")).provenance.family == "diffusers_vq"
    assert from_diffusers(live("dc")).provenance.family == "dc_ae"
    assert from_diffusers(live("wan")).provenance.ignored == ("*.time_conv.* (4)",)


def test_the_family_needs_the_published_factor():
    net = {"block_out_channels": (8, 16, 32, 32), "norm_num_groups": 4, "layers_per_block": 2}
    net |= {"down_block_types": DOWN[:1] * 4, "up_block_types": UP[:1] * 4}
    for factor, family in ((0.18215, "sd"), (0.13025, "sdxl"), (0.5, "ldm_kl")):
        vae = theirs.AutoencoderKL(**net, scaling_factor=factor)
        assert from_diffusers(vae).provenance.family == family


NET = ConvConfig(channels=8, groups=4, multipliers=(1, 2), blocks=1)
KINDS = {"gaussian": {"kind": "gaussian", "dim": 4}, "vq": {"kind": "vq", "size": 16, "dim": 4}}


def ours(bottleneck=KINDS["gaussian"], net=NET, **options):
    config = AutoencoderConfig(image_size=(16, 16), bottleneck=bottleneck, net=net, **options)
    return build_autoencoder(config).eval()


def conv(**options):
    return ConvConfig(**({"channels": 8, "groups": 4, "multipliers": (1, 2), "blocks": 1} | options))


SCALES = {"kind": "multiscale", "inner": KINDS["vq"], "scales": [1, 2, 4, 8]}
INEXPRESSIBLE = {
    "VAR's quantizer": (lambda: ours(SCALES), r"bottleneck.kind='multiscale'"),
    "LFQ": (lambda: ours({"kind": "lfq", "dim": 4}), r"bottleneck.kind='lfq'"),
    "FSQ": (lambda: ours({"kind": "fsq", "levels": [3, 3, 3, 3]}), r"bottleneck.kind='fsq'"),
    "identity": (lambda: ours({"kind": "identity", "dim": 4}), r"bottleneck.kind='identity'"),
    "cosine": (lambda: ours(KINDS["vq"] | {"metric": "cosine"}), r"bottleneck.metric='cosine' .*'euclidean'"),
    "modulation": (lambda: ours(net=conv(modulation=True)), r"net.modulation=True"),
    "MaskGIT": (lambda: ours(net=conv(block_input_skip=False)), r"net.block_input_skip=False"),
    "bias-free": (lambda: ours(net=conv(bias=False)), r"net.bias=False"),
    "patch": (lambda: ours(net=conv(patch=2)), r"net.patch=2"),
    "rms": (lambda: ours(net=conv(norm="rms")), r"net.norm='rms'.*'group'"),
    "activation": (lambda: ours(net=conv(activation="gelu")), r"net.activation='gelu'"),
    "average": (lambda: ours(net=conv(downsample="average")), r"net.downsample='average'"),
    "depth": (lambda: ours(net=conv(upsample="depth")), r"net.upsample='depth'"),
    "encoder_out": (lambda: ours(net=conv(encoder_out=1)), r"net.encoder_out=1"),
    "middle_blocks": (lambda: ours(net=conv(middle_blocks=1)), r"net.middle_blocks=1"),
    "blocks": (lambda: ours(net=conv(blocks=(1, 2))), r"net.blocks=\(1, 2\)"),
    "decoder_blocks": (lambda: ours(net=conv(decoder_blocks=1)), r"net.decoder_blocks=\(1, 1\).*\(2, 2\)"),
    "first width": (lambda: ours(net=conv(multipliers=(2, 4))), r"net.multipliers\[0\]=2"),
    "quant_conv": (lambda: ours(quant_conv=3), r"quant_conv=3 .* 0 or 1"),
    "post_quant_conv": (lambda: ours(KINDS["vq"], post_quant_conv=0), r"post_quant_conv=0 is none of 1,"),
    "decoder of a VQ": (
        lambda: ours(KINDS["vq"], conv(decoder_multipliers=(1, 1))),
        r"net.decoder_multipliers=\(1, 1\)",
    ),
    "z_channels": (lambda: ours(z_channels=8), r"z_channels=8 is none of 4,"),
    "pixels": (lambda: ours(pixel_mean=(0.0,), pixel_std=(1.0,)), r"pixel_mean=\{0.0\}"),
    "pixel_std": (lambda: ours(pixel_std=(0.2,)), r"pixel_std=\{0.2\}"),
    "positions": (lambda: ours(latent_positions=True), r"latent_positions=True"),
    "linear": (lambda: ours(linear=True), r"linear=True"),
    "causal": (lambda: from_diffusers(live("qwen")), r"net.kind='causal'"),
    "dc with a posterior": (
        lambda: ours(net=from_diffusers(live("dc")).config.net, quant_conv=0),
        r"bottleneck.kind='gaussian' is none of 'identity'",
    ),
}


@pytest.mark.parametrize("name", INEXPRESSIBLE)
def test_what_diffusers_cannot_express_is_refused(name, tmp_path):
    make, message = INEXPRESSIBLE[name]
    with pytest.raises(CheckpointError, match=rf"^\S+/vae: {message}") as caught:
        to_diffusers(make(), tmp_path / "vae")
    assert "\n" not in str(caught.value)
    assert "`save`" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("mean", "std", "option"), [(0.5, 1.0, "latent_mean_D=0.5"), ([0.0] * 4, [1.0, 2, 3, 4], "latent_")]
)
def test_dc_has_one_factor_only(mean, std, option, tmp_path):
    tokenizer = from_diffusers(live("dc"))
    tokenizer.set_statistics(torch.tensor(mean), torch.tensor(std))
    with pytest.raises(CheckpointError, match=option):
        to_diffusers(tokenizer, tmp_path / "vae")


@pytest.mark.parametrize(
    "bottleneck", [KINDS["vq"], {"kind": "simvq", "size": 16, "dim": 4, "frozen_dim": 3}], ids=lambda b: b["kind"]
)
def test_codebooks_of_ours_load_in_diffusers(bottleneck, tmp_path):
    tokenizer, image = ours(bottleneck), torch.rand(2, 3, 16, 24) * 2 - 1
    to_diffusers(tokenizer, tmp_path)
    vae, report = theirs.VQModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert_same(tokenizer, vae.eval(), image)


def test_calibrated_latents_load_in_diffusers(tmp_path):
    for name, options in (("channels", {}), ("patches", {"latent_patch": 2})):
        tokenizer, image = ours(**options), torch.rand(4, 3, 16, 16) * 2 - 1
        tokenizer.calibrate([image])
        to_diffusers(tokenizer, tmp_path / name)
        kind = theirs.AutoencoderKLFlux2 if options else theirs.AutoencoderKL
        assert_same(tokenizer, kind.from_pretrained(tmp_path / name).eval(), image)


def test_a_latent_of_tiny_deviation_keeps_it(tmp_path):
    tokenizer, image = ours(latent_patch=2), torch.rand(1, 3, 16, 16) * 2 - 1
    tokenizer.set_statistics(0.0, torch.linspace(1e-3, 1.0, 16))  # its square is below the usual epsilon
    to_diffusers(tokenizer, tmp_path)
    assert_same(tokenizer, theirs.AutoencoderKLFlux2.from_pretrained(tmp_path).eval(), image)


def test_a_folder_is_replaced_only_if_it_is_diffusers_and_whole(tmp_path, monkeypatch):
    folder, tokenizer = tmp_path / "vae", from_diffusers(live("sd"))
    to_diffusers(tokenizer, folder)
    (folder / "README.md").write_text("mine")
    to_diffusers(from_diffusers(live("flux")), folder)
    assert json.loads((folder / "config.json").read_text())["scaling_factor"] == 0.3611
    assert (folder / "README.md").read_text() == "mine"

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("tokenizers_mm.checkpoints.diffusers.save_file", full_disk)
        with pytest.raises(OSError, match="No space left"):
            to_diffusers(tokenizer, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["vae"]
    save(tokenizer, tmp_path / "ours")
    with pytest.raises(CheckpointError, match=r"ours holds model.safetensors, not just a tokenizer: choose another"):
        to_diffusers(tokenizer, tmp_path / "ours")
    with pytest.raises(CheckpointError, match=r"vae holds diffusion_pytorch_model.safetensors, not just"):
        save(tokenizer, folder)
    (folder / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(CheckpointError, match=r"expected _class_name of AutoencoderKL.*choose another folder"):
        to_diffusers(tokenizer, folder)


def test_a_wrapped_tokenizer_saves_in_our_format_too(tmp_path):
    for name in LIVE:
        tokenizer = from_diffusers(live(name))
        save(tokenizer, tmp_path / "ours")
        again = load(tmp_path / "ours")
        assert fingerprint(again) == fingerprint(tokenizer)
        assert again.provenance == tokenizer.provenance


def test_low_precision_is_written_as_it_is(tmp_path):
    to_diffusers(from_diffusers(live("sd").to(torch.bfloat16)), tmp_path)
    written = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in written.values()} == {torch.bfloat16}


def test_tokens_of_a_wrapped_model_are_tokens():
    tokenizer = from_diffusers(live("flux2"))
    tokens = Tokens(latents_BND=torch.randn(1, 6, 16), grid=(2, 3))
    assert tokenizer.decode(tokens).shape == (1, 3, 16, 24)
    assert isinstance(from_diffusers(live("dc")).config.net, DCConfig)
