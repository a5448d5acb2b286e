"""Key names of diffusers' AutoencoderKL, VQModel and AutoencoderKLFlux2 <-> ours, which are those of latent diffusion.

Renames only: every tensor returned is a view of the one given. diffusers counts the decoder's levels from the coarsest,
ours from full resolution, and it has linear layers in attention where ours are 1x1 convolutions. Files from before 2023
call the attention's layers query, key, value and proj_attn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

CODEBOOK = "bottleneck.codebook_KD"

# (theirs, ours), applied in this order; on the way back in the opposite one.
_RULES = (
    (".down_blocks.", ".down."),
    (".up_blocks.", ".up."),
    (".mid_block.resnets.0.", ".mid.block_1."),
    (".mid_block.resnets.1.", ".mid.block_2."),
    (".mid_block.attentions.0.", ".mid.attn_1."),
    (".resnets.", ".block."),
    (".attentions.", ".attn."),
    (".downsamplers.0.", ".downsample."),
    (".upsamplers.0.", ".upsample."),
    (".conv_shortcut.", ".nin_shortcut."),
    (".conv_norm_out.", ".norm_out."),
    (".group_norm.", ".norm."),
    (".to_q.", ".q."),
    (".to_k.", ".k."),
    (".to_v.", ".v."),
    (".to_out.0.", ".proj_out."),
)
_OLD_RULES = ((".query.", ".q."), (".key.", ".k."), (".value.", ".v."), (".proj_attn.", ".proj_out."))
_UP = re.compile(r"(decoder\.up\.)(\d+)(\..*)")
_ATTENTION = re.compile(r".*\.attn(_1|\.\d+)\.(q|k|v|proj_out)\.weight")


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under our names; keys of no known layer pass under their own, as those of FLUX.2's latent norm do.

    Works on shapes as it does on weights: give it tensors of the meta device.
    """
    renamed = _turned({_renamed(key, [*_RULES, *_OLD_RULES]): value for key, value in state.items()})
    if "quantize.embedding.weight" in renamed:
        renamed[CODEBOOK] = renamed.pop("quantize.embedding.weight")
    return {name: _attention(name, value, lambda v: v.reshape(*v.shape[:2], 1, 1)) for name, value in renamed.items()}


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of nets, convolutions around the bottleneck and codebook under diffusers' names; others pass."""
    ours = {key: _attention(key, value, lambda v: v.reshape(v.shape[:2])) for key, value in _turned(state).items()}
    if CODEBOOK in ours:
        ours["quantize.embedding.weight"] = ours.pop(CODEBOOK)
    back = [(new, old) for old, new in reversed(_RULES)]
    return {
        _renamed(key, back) if key.startswith(("encoder.", "decoder.")) else key: value for key, value in ours.items()
    }


def is_diffusers(keys: Iterable[str]) -> bool:
    """Whether these are names that `to_ours` translates."""
    return "encoder.down_blocks.0.resnets.0.norm1.weight" in set(keys)


def _renamed(key: str, rules: Iterable[tuple[str, str]]) -> str:
    for old, new in rules:
        key = key.replace(old, new)
    return key


def _turned(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's levels counted from the other end."""
    matches = {key: _UP.fullmatch(key) for key in state}
    last = max((int(match[2]) for match in matches.values() if match), default=0)
    return {f"{m[1]}{last - int(m[2])}{m[3]}" if (m := matches[key]) else key: v for key, v in state.items()}


def _attention(key: str, value: Tensor, reshaped: Callable[[Tensor], Tensor]) -> Tensor:
    return reshaped(value) if _ATTENTION.fullmatch(key) and value.ndim >= 2 else value
