"""DC-AE (https://arxiv.org/abs/2410.10733): options from diffusers' config.json or from shapes alone, and names.

Weights come in two layouts: diffusers' (AutoencoderDC), whose names are ours, and the authors' (EfficientViT, DC-Gen),
which wraps layers in `op_list`, residual branches in `main` and convolutions in a module of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenizers_mm.checkpoints.families import dc_shapes, factors
from tokenizers_mm.checkpoints.families.diffusers_class import DiffusersClass, Need
from tokenizers_mm.checkpoints.families.names import Names
from tokenizers_mm.checkpoints.families.reader import Contents, Family, Naming, Reader, Statistics
from tokenizers_mm.weights import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from tokenizers_mm.models import Autoencoder, AutoencoderConfig

_AUTHORS = """
encoder.project_in.{first}.*                                    encoder.{first}.*
encoder.project_out.[main.]op_list.0.conv.*                     encoder.conv_out.*
decoder.project_in.[main.]conv.*                                decoder.conv_in.*
decoder.project_out.op_list.0.*                                 decoder.norm_out.*
decoder.project_out.op_list.2.{last}.*                          decoder.{last}.*
{at}.{i}.op_list.{j}.context_module.[main.]qkv.conv.*           {at}.{i}.{j}.attn.{third}.*    pointwise
{at}.{i}.op_list.{j}.context_module.[main.]aggreg.{k}.{mix}.*   {at}.{i}.{j}.attn.to_qkv_multiscale.{k}.{mix}.*
{at}.{i}.op_list.{j}.context_module.[main.]proj.conv.*          {at}.{i}.{j}.attn.to_out.*     pointwise
{at}.{i}.op_list.{j}.context_module.[main.]proj.norm.*          {at}.{i}.{j}.attn.norm_out.*
{at}.{i}.op_list.{j}.local_module.[main.]{gated}.*              {at}.{i}.{j}.conv_out.{gated}.*
{at}.{i}.op_list.{j}.[main.]{layer}.*                           {at}.{i}.{j}.{layer}.*
"""


def _authors(keys: Collection[str]) -> Names:
    """Where level 0 of a side has no layers, its convolution next to the image changes resolution itself."""
    inner = {
        side: "" if any(key.startswith(f"{side}.stages.0.") for key in keys) else ".conv"
        for side in ("encoder", "decoder")
    }
    return Names(
        _AUTHORS,
        first=f"conv.conv=conv_in.conv conv=conv_in{inner['encoder']}",
        last=f"conv.conv=conv_out.conv conv=conv_out{inner['decoder']}",
        at="encoder.stages=encoder.down_blocks decoder.stages=decoder.up_blocks",
        third="to_q to_k to_v",
        mix="0=proj_in 1=proj_out",
        gated="inverted_conv.conv=conv_inverted depth_conv.conv=conv_depth point_conv.conv=conv_point "
        "point_conv.norm=norm",
        layer="conv1.conv=conv1 conv2.conv=conv2 conv2.norm=norm conv.conv=conv conv",
    )


# ------------------------------------------------------------------------------------------- config.json of diffusers


@dataclass(frozen=True)
class _Entry:
    """An entry of config.json and the option of ours that means the same.

    default  of diffusers' class; words  theirs -> ours; levels  whether there is one per level, or one for all of them
    """

    option: str
    default: Any
    words: Mapping[str, str] | None = None
    levels: bool = False

    def read(self, value: Any, levels: int, where: str) -> Any:
        """Our value."""
        if self.words is None:
            return value
        some = value if isinstance(value, (list, tuple)) else [value] * (levels if self.levels else 1)
        for word in some:
            if str(word) not in self.words:
                raise CheckpointError(f"{where} = {word!r}: expected one of {', '.join(self.words)}")
        return [self.words[word] for word in some] if self.levels else self.words[some[0]]

    def written(self, value: Any) -> Any:
        """Their value; the first of several words."""
        if isinstance(value, tuple):
            return [self.written(one) for one in value]
        return next((their for their, ours in (self.words or {}).items() if ours == value), value)


_BLOCKS = {"ResBlock": "residual", "EfficientViTBlock": "attention"}
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu", "mish": "mish"}
_WIDTHS = [128, 256, 512, 512, 1024, 1024]
_SCALES = [[], [], [], [5], [5], [5]]
_ENTRIES = {
    "encoder_block_out_channels": _Entry("widths", _WIDTHS),
    "encoder_layers_per_block": _Entry("layers", [2, 2, 2, 3, 3, 3]),
    "encoder_block_types": _Entry("blocks", "ResBlock", _BLOCKS, levels=True),
    "encoder_qkv_multiscales": _Entry("scales", _SCALES),
    "encoder_out_shortcut": _Entry("encoder_shortcut", True),
    "decoder_block_out_channels": _Entry("decoder_widths", _WIDTHS),
    "decoder_layers_per_block": _Entry("decoder_layers", [3, 3, 3, 3, 3, 3]),
    "decoder_block_types": _Entry("decoder_blocks", "ResBlock", _BLOCKS, levels=True),
    "decoder_qkv_multiscales": _Entry("decoder_scales", _SCALES),
    "decoder_norm_types": _Entry("decoder_norms", "rms_norm", {"rms_norm": "rms", "batch_norm": "batch"}, levels=True),
    "decoder_act_fns": _Entry("decoder_activations", "silu", _ACTIVATIONS, levels=True),
    "decoder_conv_act_fn": _Entry("last_activation", "relu", _ACTIVATIONS),
    "decoder_in_shortcut": _Entry("decoder_shortcut", True),
    "downsample_block_type": _Entry(
        "downsample", "pixel_unshuffle", {"pixel_unshuffle": "unshuffle", "conv": "conv", "Conv": "conv"}
    ),
    "upsample_block_type": _Entry("upsample", "pixel_shuffle", {"pixel_shuffle": "shuffle", "interpolate": "nearest"}),
    "attention_head_dim": _Entry("head_width", 32),
    "in_channels": _Entry("image_channels", 3),
}
# Published factors of the files in the authors' layout, whose config.json holds nothing but this name.
_FACTORS = {
    "dc-ae-f32c32-in-1.0": 0.3189,
    "dc-ae-f32c32-mix-1.0": 0.4552,
    "dc-ae-f64c128-in-1.0": 0.2889,
    "dc-ae-f64c128-mix-1.0": 0.4538,
    "dc-ae-f128c512-in-1.0": 0.4883,
    "dc-ae-f128c512-mix-1.0": 0.3620,
    "dc-ae-f32c32-sana-1.0": 0.41407,
    "dc-ae-f32c32-sana-1.1": 0.41407,
    "dc-ae-lite-f32c32-sana-1.1": 0.41407,
}


def _read(given: Contents) -> dict[str, Any]:
    """Options of the net that a config.json describes."""
    widths = given.about.get("encoder_block_out_channels", _WIDTHS)
    levels = len(widths) if isinstance(widths, (list, tuple)) else 1  # what is no list is refused with the other types
    stated = {key: given.about.get(key, entry.default) for key, entry in _ENTRIES.items()}
    net = {e.option: e.read(stated[key], levels, f"{given.where}: {key}") for key, e in _ENTRIES.items()}
    return {"kind": "dc", **net}


def _described(config: AutoencoderConfig, need: Need) -> dict[str, Any]:
    """What config.json says of a tokenizer."""
    need("quant_conv", config.quant_conv, 0)
    need("post_quant_conv", config.post_quant_conv, 0, None)
    need("latent_patch", config.latent_patch, 1)
    entries = {key: entry.written(getattr(config.net, entry.option)) for key, entry in _ENTRIES.items()}
    return {"latent_channels": config.z_channels, **entries}


def _factor(tokenizer: Autoencoder, need: Need) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The one factor of the latents that AutoencoderDC has."""
    found = factors.entries(tokenizer.latent_mean_D, tokenizer.latent_std_D)
    need("latent_mean_D", found["shift_factor"] or found["latents_mean"] or 0, 0)
    need("latent_std_D", found["latents_std"] or "one number", "one number")
    return {"scaling_factor": found["scaling_factor"]}, {}


def _statistics(given: Contents) -> Statistics:
    name = str(given.about.get("model_name", "")).rpartition("/")[2]
    return factors.statistics(given.about, 0, given.where, default=_FACTORS.get(name))


def _options(given: Contents) -> dict[str, Any]:
    about, name = given.about, given.about.get("_class_name")
    if name not in (None, "AutoencoderDC"):
        raise CheckpointError(
            f"{given.where}: _class_name = {name!r}: expected AutoencoderDC; use the weights' own config.json"
        )
    if name is None and about.keys().isdisjoint(_ENTRIES):
        net, z = dc_shapes.net_of(given)
    else:
        net, z = _read(given), about.get("latent_channels", 32)
    if any(key.startswith("encoder.project_in.") for key in given.keys):  # only these names show it
        wrapped = {"encoder_shortcut": "encoder.project_out.main.", "decoder_shortcut": "decoder.project_in.main."}
        net |= {side: any(key.startswith(prefix) for key in given.keys) for side, prefix in wrapped.items()}
    bottleneck = {"kind": "identity", "dim": z}
    return {"net": net, "bottleneck": bottleneck, "z_channels": z, "quant_conv": 0, "image_size": (512, 512)}


READER = Reader(
    namings=(
        Naming(
            name="diffusers",
            signature=(r"(encoder\.down_blocks|decoder\.up_blocks)\.\d+\.\d+\.(conv1|attn\.to_q)\.weight",),
            names=Names("*    *"),
        ),
        Naming(
            name="authors",
            signature=(r"(encoder|decoder)\.stages\.(\d+)\.op_list\.(\d+)\.(.+)\.(\w+)",),
            names=_authors,
        ),
    ),
    first=("encoder.conv_in", "encoder.project_in"),
    options=_options,
    statistics=_statistics,
    families=(
        Family(
            name="dc_ae",
            title="DC-AE, f32 to f128",
            paper="https://arxiv.org/abs/2410.10733",
            code_licence="Apache-2.0",
        ),
    ),
    diffusers=(
        DiffusersClass(
            name="AutoencoderDC",
            family="dc_ae",
            describe=_described,
            idle=factors.NAMES,
            net="dc",
            bottlenecks=("identity",),
            tensors=_factor,
        ),
    ),
)
