"""Latent diffusion's KL autoencoders (https://arxiv.org/abs/2112.10752) and all that kept their net: SD, SDXL, FLUX."""

from __future__ import annotations

from typing import Any

from tokenizers_mm.checkpoints.families import conv, conv_diffusers, factors
from tokenizers_mm.checkpoints.families.diffusers_class import DiffusersClass
from tokenizers_mm.checkpoints.families.reader import Contents, Family, Reader, Statistics
from tokenizers_mm.weights import CheckpointError

_F8, _F16 = (1, 2, 4, 4), (1, 1, 2, 2, 4)
_SD: dict[str, Any] = {
    **conv.DEPTH, "multipliers": _F8, "decoder_multipliers": None, "attention_levels": (), "middle_attention": True,
}  # fmt: skip
_F16_NET = _SD | {"multipliers": _F16, "attention_levels": (4,)}
_ORDINARY = ("ldm", "diffusers")
_LARGE = {"image_size": (1024, 1024)}
_MIT = "MIT"
_APACHE: dict[str, Any] = {"code_licence": "Apache-2.0", "weights_licence": "Apache-2.0"}
_KL, _FLUX2 = "AutoencoderKL", "AutoencoderKLFlux2"


def _statistics(given: Contents) -> Statistics:
    state, about, name = given.state, given.about, given.about.get("_class_name")
    norm = [key for key in ("bn.running_mean", "bn.running_var") if key in state]
    if len(norm) == 2:
        return conv_diffusers.batch_statistics(state, about)
    if name == _FLUX2 or norm:
        raise CheckpointError(f"{given.where}: no bn.running_mean or no bn.running_var: copy the weights again, whole")
    latents = state["decoder.conv_in.weight"].shape[1]
    return factors.statistics(about, latents, given.where, default=0.18215) if name == _KL else None


READER = Reader(
    namings=(conv.INSIDE, conv.LDM, conv.DIFFUSERS),
    options=conv_diffusers.options,
    statistics=_statistics,
    needs={**conv.needs(**conv.LDM_NET, blocks=int, decoder_blocks=None), "bottleneck.kind": "gaussian"},
    dropped=(*conv.LEFT, r"bn\..*"),
    families=(
        Family(
            name="sd",
            title="Stable Diffusion VAE, f8 with 4 channels",
            paper="https://arxiv.org/abs/2112.10752",
            namings=_ORDINARY,
            needs={**conv.needs(1, **_SD), "bottleneck.dim": 4, "latent_patch": 1},
            marks=(r"first_stage_model\.", r"cond_stage_model\."),
            scale=0.18215,
            code_licence=_MIT,
            weights_licence="CreativeML OpenRAIL-M (MIT for vae-ft-mse and vae-ft-ema)",
            restricted=True,
            parameters=83.7,
        ),
        Family(
            name="sdxl",
            title="Stable Diffusion XL VAE, f8 with 4 channels",
            paper="https://arxiv.org/abs/2307.01952",
            namings=_ORDINARY,
            needs={**conv.needs(1, **_SD), "bottleneck.dim": 4, "latent_patch": 1},
            marks=(r"first_stage_model\.", r"conditioner\."),
            config=_LARGE,
            scale=0.13025,
            code_licence=_MIT,
            weights_licence="CreativeML OpenRAIL++-M (MIT for sdxl-vae)",
            restricted=True,
            parameters=83.7,
        ),
        Family(
            name="flux1",
            title="FLUX.1 autoencoder, f8 with 16 channels; Bagel's is the same file",
            paper="https://github.com/black-forest-labs/flux",
            namings=_ORDINARY,
            needs={**conv.needs(0, **_SD), "bottleneck.dim": 16, "latent_patch": 1},
            typical={"bottleneck.dim": 16},
            config=_LARGE,
            scale=0.3611,
            shift=0.1159,
            **_APACHE,
            parameters=83.8,
        ),
        Family(
            name="sd3",
            title="Stable Diffusion 3 VAE, f8 with 16 channels",
            paper="https://arxiv.org/abs/2403.03206",
            namings=_ORDINARY,
            needs={**conv.needs(0, **_SD), "bottleneck.dim": 16, "latent_patch": 1},
            marks=(r"first_stage_model\.", r"model\.diffusion_model\.joint_blocks\."),
            typical={"bottleneck.dim": 16},
            config=_LARGE,
            scale=1.5305,
            shift=0.0609,
            code_licence=_MIT,
            weights_licence="Stability AI Community License",
            restricted=True,
            parameters=83.8,
        ),
        Family(
            name="bagel",
            title="Bagel's autoencoder: FLUX.1's, whose posterior Bagel samples",
            paper="https://arxiv.org/abs/2505.14683",
            namings=("ldm",),
            needs={**conv.needs(0, **_SD), "bottleneck.dim": 16, "latent_patch": 1},
            config=_LARGE,
            scale=0.3611,
            shift=0.1159,
            **_APACHE,
            parameters=83.8,
        ),
        Family(
            name="flux2",
            title="FLUX.2 autoencoder, f8 with 32 channels in 2 x 2 patches normalised by batch statistics",
            paper="https://github.com/black-forest-labs/flux2",
            namings=("inside", "diffusers"),
            needs={"latent_patch": 2},
            typical={"bottleneck.dim": 32},
            config=_LARGE,
            **_APACHE,
            parameters=84.0,
        ),
        Family(
            name="ldm_kl",
            title="Latent diffusion KL autoencoder, f4 to f32",
            paper="https://arxiv.org/abs/2112.10752",
            namings=_ORDINARY,
            needs={"latent_patch": 1},
            marks=(r"loss\.",),
            code_licence=_MIT,
            parameters=83.7,
        ),
        Family(
            name="va_vae",
            title="VA-VAE, f16 aligned with DINOv2",
            paper="https://arxiv.org/abs/2501.01423",
            namings=("ldm",),
            needs={**conv.needs(1, **_F16_NET), "latent_patch": 1},
            marks=(r"foundation_model\.", r"linear_proj\.", r"loss\."),
            typical={"bottleneck.dim": 32, "net.multipliers": _F16},
            code_licence=_MIT,
            parameters=69.8,
        ),
        Family(
            name="repa_e",
            title="REPA-E: VA-VAE or SD's VAE tuned through the diffusion model",
            paper="https://arxiv.org/abs/2504.10483",
            namings=("ldm",),
            needs={**conv.needs(1), "latent_patch": 1},
            code_licence=_MIT,
            parameters=69.8,
        ),
        Family(
            name="mar_kl16",
            title="MAR's KL autoencoder, f16 with 16 channels",
            paper="https://arxiv.org/abs/2406.11838",
            namings=("ldm",),
            needs={
                **conv.needs(1, **_F16_NET | {"decoder_attention_levels": ()}),
                "bottleneck.dim": 16,
                "latent_patch": 1,
            },
            marks=(r"loss\.",),
            typical={"bottleneck.dim": 16, "net.multipliers": _F16},
            scale=0.2325,
            code_licence=_MIT,
            parameters=66.5,
        ),
    ),
    diffusers=(
        DiffusersClass(
            name=_KL,
            family="ldm_kl",
            describe=conv_diffusers.kl,
            idle=conv_diffusers.IDLE,
            bottlenecks=("gaussian",),
            suits=conv_diffusers.is_plain,
            tensors=conv_diffusers.kl_tensors,
        ),
        DiffusersClass(
            name=_FLUX2,
            family="flux2",
            describe=conv_diffusers.flux2,
            idle=conv_diffusers.IDLE,
            bottlenecks=("gaussian",),
            tensors=conv_diffusers.flux2_tensors,
        ),
    ),
)
