"""Every naming scheme of the convolutional lineage, renamed to ours: the names of latent diffusion.

    encoder.conv_in  encoder.down.i.block.j.{norm1,conv1,norm2,conv2,nin_shortcut}  encoder.down.i.attn.j.{norm,q,k,v,
    proj_out}  encoder.down.i.downsample.conv  encoder.mid.{block_1,attn_1,block_2}  encoder.norm_out  encoder.conv_out
    decoder likewise with up.i, level 0 at full resolution;  quant_conv  post_quant_conv  bottleneck.*

Facts about each scheme come from the public code that writes it. Renames give views of the file's tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from tokenizers_mm.checkpoints import diffusers_names

State = dict[str, Tensor]
LOGITS = "bottleneck.to_logits"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A naming scheme: how to tell it, and how to rename its keys to ours.

    signature  patterns (of whole keys) each of which some key matches
    rename     the file's tensors under our names; keys it does not know pass through
    """

    name: str
    signature: tuple[str, ...]
    rename: Callable[[Mapping[str, Tensor]], State]

    def fits(self, keys: Iterable[str]) -> list[str]:
        """Patterns of the signature that no key matches: none where the layout fits."""
        keys = list(keys)
        return [pattern for pattern in self.signature if not any(re.fullmatch(pattern, key) for key in keys)]


def _renamer(*rules: tuple[str, str]) -> Callable[[Mapping[str, Tensor]], State]:
    compiled = [(re.compile(pattern), new) for pattern, new in rules]

    def rename(state: Mapping[str, Tensor]) -> State:
        out = {}
        for key, value in state.items():
            for pattern, new in compiled:
                key = pattern.sub(new, key)
            out[key] = value
        return out

    return rename


def _diffusers(state: Mapping[str, Tensor]) -> State:
    norm = {key: value for key, value in state.items() if key.startswith("bn.")}
    return diffusers_names.to_ours(state) | norm


def _llamagen(state: Mapping[str, Tensor]) -> State:
    """LlamaGen counts the decoder's levels from the coarsest, and its middle layers as one list."""
    renamed = _renamer(
        (r"^encoder\.conv_blocks\.(\d+)\.res\.", r"encoder.down.\1.block."),
        (r"^encoder\.conv_blocks\.", "encoder.down."),
        (r"^decoder\.conv_blocks\.(\d+)\.res\.", r"decoder.conv_blocks.\1.block."),
        (r"\.mid\.0\.", ".mid.block_1."),
        (r"\.mid\.1\.", ".mid.attn_1."),
        (r"\.mid\.2\.", ".mid.block_2."),
    )(state)
    counted = re.compile(r"decoder\.conv_blocks\.(\d+)\.(.*)")
    matches = {key: counted.fullmatch(key) for key in renamed}
    last = max((int(match[1]) for match in matches.values() if match), default=0)
    return {f"decoder.up.{last - int(m[1])}.{m[2]}" if (m := matches[k]) else k: v for k, v in renamed.items()}


def _open_magvit2(state: Mapping[str, Tensor]) -> State:
    renamed = _renamer(
        (r"\.down\.(\d+)\.downsample\.(weight|bias)$", r".down.\1.downsample.conv.\2"),
        (r"\.upsample\.conv1\.", ".upsample.conv."),
        (r"\.mid_block\.(\d+)\.", r".mid.\1."),
    )(state)
    return _counted_middle(renamed)


def _maskgit(state: Mapping[str, Tensor]) -> State:
    return _counted_middle(_renamer((r"\.upsample_conv\.", ".upsample.conv."))(state))


def _counted_middle(state: Mapping[str, Tensor]) -> State:
    """`mid.0`, `mid.1`, ... are residual blocks, ours count from one."""
    counted = re.compile(r"((?:encoder|decoder)\.mid)\.(\d+)\.(.*)")
    return {f"{m[1]}.block_{int(m[2]) + 1}.{m[3]}" if (m := counted.fullmatch(k)) else k: v for k, v in state.items()}


def _var(state: Mapping[str, Tensor]) -> State:
    """VAR: fused q, k, v; convolutions after upsampling, shared by all scales, by some, or by none."""
    renamed = _renamer(
        (r"^quantize\.quant_resi\.(?:qresi_ls\.)?(\d+)\.", r"bottleneck.convolutions.\1."),
        (r"^quantize\.quant_resi\.qresi\.", "bottleneck.convolutions.0."),
        (r"^quantize\.embedding\.weight$", "bottleneck.quantizer.codebook_KD"),
    )(state)
    out = {}
    for key, value in renamed.items():
        if ".qkv." not in key:
            out[key] = value
            continue
        for name, part in zip("qkv", value.chunk(3), strict=True):
            out[key.replace(".qkv.", f".{name}.")] = part
    return out


# Every convolution and every norm of Infinity stands in a wrapper of its own.
_infinity = _renamer((r"\.(?:conv|norm)\.(weight|bias)$", r".\1"))

LAYOUTS = (
    Layout(name="diffusers", signature=(r"encoder\.down_blocks\.0\.resnets\.0\.norm1\.weight",), rename=_diffusers),
    Layout(name="llamagen", signature=(r"encoder\.conv_blocks\.0\.res\.0\.norm1\.weight",), rename=_llamagen),
    Layout(
        name="open_magvit2",
        signature=(r"encoder\.mid_block\.0\.norm1\.weight", r"decoder\.adaptive\.0\.gamma\.weight"),
        rename=_open_magvit2,
    ),
    Layout(
        name="maskgit",
        signature=(r"encoder\.mid\.0\.norm1\.weight", r"decoder\.up\.1\.upsample_conv\.weight"),
        rename=_maskgit,
    ),
    Layout(
        name="infinity",
        signature=(r"encoder\.conv_in\.conv\.weight", r"encoder\.down\.0\.block\.0\.norm1\.norm\.weight"),
        rename=_infinity,
    ),
    Layout(
        name="var",
        signature=(r"encoder\.mid\.attn_1\.qkv\.weight", r"quantize\.quant_resi\..*weight"),
        rename=_var,
    ),
    Layout(
        name="ldm",
        signature=(r"encoder\.down\.0\.block\.0\.norm1\.weight", r"decoder\.up\.0\.block\.0\.norm1\.weight"),
        rename=dict,
    ),
)

# What the schemes have in common: convolutions around the bottleneck that stand inside the nets, and the codebook with,
# under a Gumbel softmax, its map to logits.
_common = _renamer(
    (r"^encoder\.quant_conv\.", "quant_conv."),
    (r"^decoder\.post_quant_conv\.", "post_quant_conv."),
    (r"^quantize\.(?:embedding|embed)\.weight$", "bottleneck.codebook_KD"),
    (r"^quantize\.proj\.", f"{LOGITS}."),
)


def layout_of(keys: Iterable[str]) -> Layout | None:
    """The first layout whose whole signature is there."""
    keys = list(keys)
    return next((layout for layout in LAYOUTS if not layout.fits(keys)), None)


def renamed(layout: Layout, state: Mapping[str, Tensor]) -> State:
    """The file's tensors under our names."""
    out = _common(layout.rename(state))
    if f"{LOGITS}.weight" in out:  # a 1x1 convolution there
        out[f"{LOGITS}.weight"] = out[f"{LOGITS}.weight"].flatten(1)
    return out
