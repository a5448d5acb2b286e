"""Options and names of DC-AE files, against diffusers' AutoencoderDC and its config.json."""

import json
import re
from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC
from torch import Tensor

from tokenizers_mm.checkpoints.diffusers import from_diffusers, read
from tokenizers_mm.checkpoints.families import Contents, Names
from tokenizers_mm.checkpoints.families.dc_ae import READER
from tokenizers_mm.checkpoints.recognise import recognise
from tokenizers_mm.config import parse
from tokenizers_mm.models.assemble import assemble
from tokenizers_mm.nets.dc import DCConfig, DCDecoder, DCEncoder
from tokenizers_mm.weights.errors import CheckpointError

RES, VIT = "ResBlock", "EfficientViTBlock"
WIDTHS = [128, 256, 512, 512, 1024, 1024]


def published(z: int, widths: list[int], layers: list[int], decoder_layers: list[int], **others: Any) -> dict[str, Any]:
    """The layout of the ImageNet and mixed-data models, and of what departs from it."""
    coarse = len(widths) - 3
    config = {
        "latent_channels": z,
        "encoder_block_types": [RES] * 3 + [VIT] * coarse,
        "decoder_block_types": [RES] * 3 + [VIT] * coarse,
        "encoder_block_out_channels": widths,
        "decoder_block_out_channels": widths,
        "encoder_layers_per_block": layers,
        "decoder_layers_per_block": decoder_layers,
        "encoder_qkv_multiscales": [[]] * len(widths),
        "decoder_qkv_multiscales": [[]] * len(widths),
        "decoder_norm_types": ["batch_norm"] * 3 + ["rms_norm"] * coarse,
        "decoder_act_fns": ["relu"] * 3 + ["silu"] * coarse,
    }
    return config | others


SCALES = [[], [], [], [5], [5], [5]]
SANA = {
    "encoder_qkv_multiscales": SCALES,
    "decoder_qkv_multiscales": SCALES,
    "downsample_block_type": "Conv",
    "upsample_block_type": "interpolate",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "scaling_factor": 0.41407,
}
LITE = SANA | {
    "decoder_block_types": "ResBlock",
    "decoder_qkv_multiscales": [[]] * 6,
    "upsample_block_type": "pixel_shuffle",
    "decoder_conv_act_fn": "silu",
}
V11 = {
    "encoder_block_types": "ResBlock",
    "decoder_block_types": "ResBlock",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "encoder_out_shortcut": False,
    "decoder_in_shortcut": False,
    "decoder_conv_act_fn": "silu",
}
LAYOUTS = {
    "sana": published(32, WIDTHS, [2, 2, 2, 3, 3, 3], [3] * 6, **SANA),
    "f32c32": published(32, WIDTHS, [0, 4, 8, 2, 2, 2], [0, 5, 10, 2, 2, 2]),
    "f64c128": published(128, [*WIDTHS, 2048], [0, 4, 8, 2, 2, 2, 2], [0, 5, 10, 2, 2, 2, 2]),
    "f128c512": published(512, [*WIDTHS, 2048, 2048], [0, 4, 8, 2, 2, 2, 2, 2], [0, 5, 10, 2, 2, 2, 2, 2]),
    "lite": published(32, WIDTHS, [2, 2, 2, 3, 3, 3], [0, 3, 5, 4, 4, 4], **LITE),
    "1.1": published(128, WIDTHS, [0, 5, 10, 4, 4, 4], [0, 5, 10, 4, 4, 4], **V11),
}


def reduced(config: dict[str, Any], factor: int = 8, layers: int = 2) -> dict[str, Any]:
    """The same layout, narrower and shallower; attention keeps at least two heads."""
    small = dict(config, latent_channels=config["latent_channels"] // factor)
    for side in ("encoder", "decoder"):
        small[f"{side}_block_out_channels"] = [width // factor for width in config[f"{side}_block_out_channels"]]
        small[f"{side}_layers_per_block"] = [min(n, layers) for n in config[f"{side}_layers_per_block"]]
    return small


def model(config: dict[str, Any]) -> AutoencoderDC:
    """diffusers' class with weights that hide no missing term."""
    theirs = AutoencoderDC(**config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in theirs.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=generator)
        elif tensor.is_floating_point():
            spread = 0.3 if tensor.ndim == 1 else tensor[0].numel() ** -0.5
            tensor.normal_(1 if ".norm" in name and name.endswith("weight") else 0, spread, generator=generator)
    return theirs


def shapes_of(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def given(state: dict[str, Tensor], config: dict[str, Any] | None = None) -> Contents:
    """What the reader makes of a file."""
    naming = READER.naming_of(state)
    assert naming is not None
    return Contents(keys=list(state), state=naming.table(state).read(state), about=config or {}, where="file")


def authors(keys: Any) -> Names:
    (naming,) = (naming for naming in READER.namings if naming.name == "authors")
    return naming.table(keys)


def naming_of(keys: Any) -> str | None:
    naming = READER.naming_of(keys)
    return naming and naming.name


def options(state: dict[str, Tensor], config: dict[str, Any] | None = None) -> dict[str, Any]:
    return READER.options(given(state, config))


def on_meta(config: dict[str, Any]) -> AutoencoderDC:
    with torch.device("meta"):
        return AutoencoderDC(**config)


@pytest.mark.parametrize("name", ["sana", "f32c32", "f64c128", "f128c512", "lite", "1.1"])
def test_parameters_at_full_width_equal_diffusers(name: str) -> None:
    theirs = on_meta(LAYOUTS[name])
    found = options(theirs.state_dict(), LAYOUTS[name])
    config, z = parse(DCConfig, found["net"], "net"), found["z_channels"]
    with torch.device("meta"):
        ours = torch.nn.ModuleDict({"encoder": DCEncoder(config, z), "decoder": DCDecoder(config, z)})
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert shapes_of(ours.state_dict()) == shapes_of(theirs.state_dict())
    assert config.downsampling == theirs.spatial_compression_ratio


@pytest.mark.parametrize("name", LAYOUTS)
def test_shapes_alone_tell_the_published_layouts(name: str) -> None:
    for config in (LAYOUTS[name], reduced(LAYOUTS[name], factor=4, layers=3)):
        state = on_meta(config).state_dict()
        assert options(state) == options(state, config)


def test_shapes_tell_kernels_and_heads() -> None:
    config = published(4, [16, 32, 32, 32], [1, 2, 1, 1], [2, 1, 1, 1]) | {
        "attention_head_dim": 8,
        "encoder_block_types": [RES, VIT, VIT, VIT],
        "encoder_qkv_multiscales": [[], [3, 7], [], []],
        "in_channels": 1,
        "downsample_block_type": "Conv",
    }
    found = options(on_meta(config).state_dict())["net"]
    assert found["scales"][:3] == [[], [3, 7], []]
    assert found["head_width"] == 8
    assert (found["image_channels"], found["downsample"], found["upsample"]) == (1, "conv", "shuffle")
    assert (found["widths"], found["layers"]) == ([16, 32, 32, 32], [1, 2, 1, 1])
    assert (found["decoder_widths"], found["decoder_layers"]) == ([16, 32, 32, 32], [2, 1, 1, 1])


def test_config_json_round_trip(tmp_path: Any) -> None:
    theirs = AutoencoderDC(**reduced(LAYOUTS["lite"]))
    theirs.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    state = theirs.state_dict()
    assert options(state, written) == options(state, reduced(LAYOUTS["lite"]))
    assert READER.statistics(given(state, written)) == (0.0, 1 / 0.41407)


def test_what_a_config_does_not_say_is_diffusers_default() -> None:
    theirs = on_meta({})
    state = theirs.state_dict()
    said, whole = ({"_class_name": "AutoencoderDC"}, dict(theirs.config))
    assert parse(DCConfig, options(state, said)["net"], "net") == parse(DCConfig, options(state, whole)["net"], "net")


@pytest.mark.parametrize("name", LAYOUTS)
@torch.no_grad()
def test_end_to_end_equals_diffusers(name: str) -> None:
    config = reduced(LAYOUTS[name])
    theirs = model(config)
    ours, f = from_diffusers(theirs), theirs.spatial_compression_ratio
    image_BCHW = torch.rand(2, 3, f, 2 * f, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latent_BCHW = theirs.encode(image_BCHW).latent
    tokens = ours.encode(image_BCHW)
    expected_BND = latent_BCHW.flatten(2).mT * config.get("scaling_factor", 1.0)
    assert tokens.latents_BND is not None
    assert close(tokens.latents_BND, expected_BND)
    assert close(ours.decode(tokens), theirs.decode(latent_BCHW).sample)


def close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= 2e-5 * expected.abs().max())


# Names in a file of the authors' own class, and ours.
NAMES = {
    "encoder.project_in.conv.weight": "encoder.conv_in.weight",
    "encoder.stages.0.op_list.1.main.conv1.conv.bias": "encoder.down_blocks.0.1.conv1.bias",
    "encoder.stages.0.op_list.1.main.conv2.conv.weight": "encoder.down_blocks.0.1.conv2.weight",
    "encoder.stages.0.op_list.1.main.conv2.norm.weight": "encoder.down_blocks.0.1.norm.weight",
    "encoder.stages.0.op_list.2.main.conv.bias": "encoder.down_blocks.0.2.conv.bias",
    "encoder.stages.3.op_list.0.context_module.main.aggreg.0.0.weight": (
        "encoder.down_blocks.3.0.attn.to_qkv_multiscale.0.proj_in.weight"
    ),
    "encoder.stages.3.op_list.0.context_module.main.aggreg.0.1.weight": (
        "encoder.down_blocks.3.0.attn.to_qkv_multiscale.0.proj_out.weight"
    ),
    "encoder.stages.3.op_list.0.context_module.main.proj.conv.weight": "encoder.down_blocks.3.0.attn.to_out.weight",
    "encoder.stages.3.op_list.0.context_module.main.proj.norm.bias": "encoder.down_blocks.3.0.attn.norm_out.bias",
    "encoder.stages.3.op_list.0.local_module.main.inverted_conv.conv.bias": (
        "encoder.down_blocks.3.0.conv_out.conv_inverted.bias"
    ),
    "encoder.stages.3.op_list.0.local_module.main.depth_conv.conv.weight": (
        "encoder.down_blocks.3.0.conv_out.conv_depth.weight"
    ),
    "encoder.stages.3.op_list.0.local_module.main.point_conv.conv.weight": (
        "encoder.down_blocks.3.0.conv_out.conv_point.weight"
    ),
    "encoder.stages.3.op_list.0.local_module.main.point_conv.norm.bias": "encoder.down_blocks.3.0.conv_out.norm.bias",
    "encoder.project_out.main.op_list.0.conv.weight": "encoder.conv_out.weight",
    "decoder.project_in.main.conv.bias": "decoder.conv_in.bias",
    "decoder.stages.1.op_list.0.main.conv.conv.weight": "decoder.up_blocks.1.0.conv.weight",
    "decoder.stages.1.op_list.2.main.conv2.norm.running_mean": "decoder.up_blocks.1.2.norm.running_mean",
    "decoder.project_out.op_list.0.weight": "decoder.norm_out.weight",
    "decoder.project_out.op_list.2.conv.conv.weight": "decoder.conv_out.conv.weight",
}


@pytest.mark.parametrize(("original", "ours"), NAMES.items())
def test_names_of_the_authors_own_class(original: str, ours: str) -> None:
    layer = "encoder.stages.0.op_list.0.main.conv1.conv.weight"  # level 0 of this encoder has layers, the decoder's not
    state = {original: torch.empty(8, 4, 1, 1), layer: torch.empty(0)}
    assert given(state).state.keys() == {ours, "encoder.down_blocks.0.0.conv1.weight"}


def to_original(state: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """The authors' layout of a state in ours."""
    strided = config.get("downsample_block_type") == "Conv"
    main = {side: ".main" if config.get(f"{side}_shortcut", True) else "" for side in ("encoder_out", "decoder_in")}
    rules = [
        (r"^encoder\.conv_in\.conv\.", "encoder.project_in.conv." if strided else "encoder.project_in.conv.conv."),
        (r"^encoder\.conv_in\.", "encoder.project_in.conv."),
        (r"^encoder\.conv_out\.", f"encoder.project_out{main['encoder_out']}.op_list.0.conv."),
        (r"^decoder\.conv_in\.", f"decoder.project_in{main['decoder_in']}.conv."),
        (r"^decoder\.norm_out\.", "decoder.project_out.op_list.0."),
        (r"^decoder\.conv_out\.conv\.", "decoder.project_out.op_list.2.conv.conv."),
        (r"^decoder\.conv_out\.", "decoder.project_out.op_list.2.conv."),
        (r"^(encoder\.down_blocks\.\d+\.\d+)\.conv\.", r"\1.main.conv." if strided else r"\1.main.conv.conv."),
        (r"^(decoder\.up_blocks\.\d+\.\d+)\.conv\.", r"\1.main.conv.conv."),
        (r"(blocks\.\d+\.\d+)\.conv([12])\.", r"\1.main.conv\2.conv."),
        (r"(blocks\.\d+\.\d+)\.norm\.", r"\1.main.conv2.norm."),
        (r"\.attn\.to_qkv_multiscale\.(\d)\.proj_in\.", r".context_module.main.aggreg.\1.0."),
        (r"\.attn\.to_qkv_multiscale\.(\d)\.proj_out\.", r".context_module.main.aggreg.\1.1."),
        (r"\.attn\.to_out\.", ".context_module.main.proj.conv."),
        (r"\.attn\.norm_out\.", ".context_module.main.proj.norm."),
        (r"(blocks\.\d+\.\d+)\.conv_out\.conv_(inverted|depth|point)\.", r"\1.local_module.main.\2_conv.conv."),
        (r"(blocks\.\d+\.\d+)\.conv_out\.norm\.", r"\1.local_module.main.point_conv.norm."),
        (r"(?:down|up)_blocks\.(\d+)\.(\d+)\.", r"stages.\1.op_list.\2."),
    ]
    original = {}
    for key, tensor in state.items():
        if key.endswith(("to_k.weight", "to_v.weight")):
            continue
        if key.endswith("to_q.weight"):
            tensor = torch.cat([state[key.replace("to_q", name)] for name in ("to_q", "to_k", "to_v")])[
                :, :, None, None
            ]
            key = key.replace(".attn.to_q.", ".context_module.main.qkv.conv.")
        elif key.endswith("to_out.weight"):
            tensor = tensor[:, :, None, None]
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        original[key] = tensor
    return original


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_authors_layout_is_the_same_weights_without_a_copy(name: str) -> None:
    config = reduced(LAYOUTS[name])
    state = model(config).state_dict()
    original = to_original(state, config)
    assert naming_of(state) == "diffusers"
    assert naming_of(original) == "authors"
    ours = given(original).state
    assert ours.keys() == state.keys()
    assert all(torch.equal(ours[key], state[key]) for key in state)
    stored = {tensor.untyped_storage().data_ptr() for tensor in original.values()}
    assert {tensor.untyped_storage().data_ptr() for tensor in ours.values()} == stored


@pytest.mark.parametrize("shortcuts", [True, False])
def test_the_authors_names_say_whether_the_latent_has_shortcuts(shortcuts: bool) -> None:
    """Against the rule for shapes alone, both ways."""
    base = reduced(LAYOUTS["1.1" if shortcuts else "f32c32"])
    config = base | {"encoder_out_shortcut": shortcuts, "decoder_in_shortcut": shortcuts}
    state = model(config).state_dict()
    found = parse(DCConfig, options(to_original(state, config), {"model_name": "dc-ae"})["net"], "net")
    assert found == parse(DCConfig, options(state, config)["net"], "net")
    assert found != parse(DCConfig, options(state)["net"], "net")


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_authors_names_there_and_back(name: str) -> None:
    config = reduced(LAYOUTS[name])
    original = to_original(model(config).state_dict(), config)
    names = authors(original)
    back = names.write(names.read(original))
    read_again = authors(back).read(back)
    for key, tensor in names.read(original).items():
        assert torch.equal(read_again[key], tensor)


def test_other_names_are_left_alone() -> None:
    """Whatever is no part of the net is refused by its own name, or dropped."""
    tensor = torch.zeros(1)
    for key in ("loss.logvar", "encoder.stages.0.op_list.0.main.conv3.conv.weight", "decoder.middle.conv.weight"):
        assert authors([key]).read({key: tensor}) == {key: tensor}


def test_other_layouts_are_neither() -> None:
    for key in (
        "encoder.down_blocks.0.resnets.0.conv1.weight",
        "encoder.down_blocks.0.conv1.weight",
        "encoder.down.0.block.0.conv1.weight",
        "backbone.stages.0.op_list.0.main.conv1.conv.weight",
    ):
        assert naming_of([key]) is None


SMALL = reduced(LAYOUTS["sana"])


def built(state: dict[str, Tensor], config: dict[str, Any] | None) -> Any:
    """The tokenizer of a bare file, or of a folder with a config.json."""
    if config is None:
        parsed = recognise(state, "some/folder")
    else:
        parsed = read({"_class_name": "AutoencoderDC", **SMALL, **config}, state, "some/folder")
    return assemble(parsed.options, parsed.state, parsed.where)


BLOCK = "decoder.up_blocks.1.1.norm.weight"


@pytest.mark.parametrize(
    ("config", "changed", "message"),
    [
        ({"decoder_norm_types": "batch_norm"}, {}, "missing keys: decoder.up_blocks.0.1.norm.running_mean"),
        ({"encoder_layers_per_block": [1, 2, 2, 2, 2, 2]}, {}, "missing keys: encoder.down_blocks.0.1.conv.bias"),
        ({"latent_channels": 8}, {}, "encoder.conv_out.weight (4, 128, 3, 3) (expected (8, 128, 3, 3))"),
        ({"latent_channels": 5}, {}, "5 latent channels do not divide"),
        ({"latent_channels": "32"}, {}, "latent_channels = '32', expected 32"),
        ({"encoder_block_types": "ConvBlock"}, {}, "encoder_block_types = 'ConvBlock': expected one of ResBlock"),
        ({"decoder_norm_types": "layer_norm"}, {}, "decoder_norm_types = 'layer_norm'"),
        ({"downsample_block_type": "pool"}, {}, "downsample_block_type = 'pool': expected one of pixel_unshuffle"),
        ({"encoder_block_out_channels": 128}, {}, "config.net.widths = 128"),
        ({"decoder_layers_per_block": [1, 1]}, {}, "decoder_layers=(1, 1): expected one entry per level"),
        ({"new_option": 1}, {}, "new_option = 1: no option of AutoencoderDC that is known here"),
        (None, {BLOCK: (15,)}, f"{BLOCK} (15,) (expected (32,))"),
        (None, {"encoder.extra.weight": (1,)}, "unexpected keys: encoder.extra.weight"),
        (None, {"encoder.conv_out.weight": None}, "no encoder.conv_out.weight"),
        (None, {"decoder.conv_in.weight": None}, "missing keys: decoder.conv_in.weight"),
        (None, {"decoder.up_blocks": None}, "no decoder.up_blocks.*"),
    ],
)
def test_contradictions_are_named(config: dict | None, changed: dict, message: str) -> None:
    state = dict(AutoencoderDC(**SMALL).state_dict())
    for key, shape in changed.items():
        state = {name: old for name, old in state.items() if not name.startswith(key)}
        state |= {key: torch.zeros(shape)} if shape else {}
    with pytest.raises(CheckpointError) as caught:
        built(state, config)
    assert message in str(caught.value)
    assert str(caught.value).startswith("some/folder")
    assert "\n" not in str(caught.value)


def test_a_config_of_another_class_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"^file: _class_name = 'AutoencoderKL': expected AutoencoderDC"):
        options(on_meta(SMALL).state_dict(), {"_class_name": "AutoencoderKL"})


def test_step_counters_of_batch_norm_may_be_absent() -> None:
    config = reduced(LAYOUTS["f32c32"])
    state = model(config).state_dict()
    fewer = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert len(fewer) < len(state)
    assert options(fewer) == options(state)
    parsed = recognise(fewer, "file")
    counted = {key for key in assemble(parsed.options, parsed.state, "file").state_dict() if "num_batches" in key}
    assert counted == state.keys() - fewer.keys()


def test_statistics() -> None:
    def statistics(config: dict[str, Any]) -> Any:
        return READER.statistics(Contents(keys=[], state={}, about=config, where="vae"))

    assert statistics({"scaling_factor": 0.25}) == (0.0, 4.0)
    assert statistics({"model_name": "mit-han-lab/dc-ae-f128c512-mix-1.0"}) == (0.0, 1 / 0.3620)
    assert statistics({"model_name": "dc-ae-f32c128-1.5"}) is None
    assert statistics({}) is None
    for wrong in (0, -1, "big", True, float("nan")):
        with pytest.raises(CheckpointError, match="scaling_factor"):
            statistics({"scaling_factor": wrong})
