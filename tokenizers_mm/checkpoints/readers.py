"""The bodies that are no latent-diffusion nets, each with a reader of its own: DC-AE, Wan, Qwen-Image, Emu3, MoVQ."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tokenizers_mm.checkpoints import causal, dc, emu3

State = Mapping[str, Tensor]
About = Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Body:
    """How files of one body are read; every function takes the file's tensors under their own names.

    families    rows of the table with this body, the likeliest first
    options     of `AutoencoderConfig`, as plain data, from the tensors, the config.json beside them, and the path for
                messages
    rename      tensors under our names; unused  keys that images do not need
    statistics  published mean and deviation of the latents, from the tensors and the config.json
    """

    families: tuple[str, ...]
    is_mine: Callable[[Collection[str]], bool]
    options: Callable[[State, About, str], dict[str, Any]]
    rename: Callable[[State], dict[str, Tensor]]
    unused: Callable[[State], list[str]]
    statistics: Callable[[State, About], tuple[Any, Any] | None]


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def _dc_options(state: State, about: About, where: str) -> dict[str, Any]:
    return {"image_size": (512, 512), **dc.options(about, _shapes(state), where=where)}


def _causal_options(state: State, about: About, where: str) -> dict[str, Any]:
    return {"image_size": (512, 512), **causal.options(about, _shapes(state), where=where)}


def _emu3_options(state: State, about: About, where: str) -> dict[str, Any]:
    return {"image_size": (512, 512), **emu3.options(state, where)}


def _causal_names(state: State) -> dict[str, Tensor]:
    # A third of each kernel is all an image needs; a copy of it lets the file's pages go.
    return {key: value.contiguous() for key, value in causal.to_ours(state)[0].items()}


def _causal_statistics(state: State, about: About) -> tuple[Any, Any] | None:
    return causal.statistics(about, causal.to_ours(state)[0]["decoder.conv_in.weight"].shape[1])


BODIES = (
    Body(
        families=("dc_ae",),
        is_mine=lambda keys: dc.is_diffusers(keys) or dc.is_original(keys),
        options=_dc_options,
        rename=lambda state: dc.from_original(state) if dc.is_original(state) else dict(state),
        unused=lambda state: [],
        statistics=lambda state, about: dc.statistics(about),
    ),
    Body(
        families=("qwen_image", "wan"),
        is_mine=causal.is_causal,
        options=_causal_options,
        rename=_causal_names,
        unused=lambda state: causal.to_ours(state)[1],
        statistics=_causal_statistics,
    ),
    *(
        Body(
            families=(name,),
            is_mine=is_mine,
            options=_emu3_options,
            rename=emu3.to_ours,
            unused=lambda state: [],
            statistics=lambda state, about: None,
        )
        for name, is_mine in (("emu3", emu3.is_emu3), ("movq", emu3.is_movq))
    ),
)


def body_of(keys: Collection[str]) -> Body | None:
    """The body whose names these are; None for the convolutional lineage."""
    return next((body for body in BODIES if body.is_mine(keys)), None)
