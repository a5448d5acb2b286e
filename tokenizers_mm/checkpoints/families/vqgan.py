"""VQGANs (https://arxiv.org/abs/2012.09841) in the net of latent diffusion: taming's, latent diffusion's, Chameleon."""

from __future__ import annotations

from typing import Any

from tokenizers_mm.checkpoints.families import conv, conv_diffusers
from tokenizers_mm.checkpoints.families.diffusers_class import DiffusersClass
from tokenizers_mm.checkpoints.families.names import Names
from tokenizers_mm.checkpoints.families.reader import Family, Naming, Reader

_F16 = (1, 1, 2, 2, 4)
_TAMING, _LDM = "https://arxiv.org/abs/2012.09841", "https://arxiv.org/abs/2112.10752"
_BY_DISTANCE: dict[str, Any] = {"config": {"bottleneck": conv.TRAINED}, "adds": "codes by distance"}
_GUMBEL = Naming(
    name="gumbel",
    signature=(*conv.LDM_SIGNATURE, r"quantize\.proj\.weight", r"quantize\.embed\.weight"),
    names=Names(
        f"""
        quantize.embed.weight    {conv.CODEBOOK}
        quantize.proj.*          bottleneck.to_logits.*    pointwise
        *                        *
        """
    ),
)


READER = Reader(
    namings=(_GUMBEL, conv.LDM, conv.DIFFUSERS),
    options=conv_diffusers.options,
    needs={**conv.needs(1, **conv.LDM_NET, blocks=int, decoder_blocks=None), "bottleneck.kind": "vq"},
    dropped=(*conv.LEFT, r"quantize\.used"),
    families=(
        Family(
            name="ibq",
            title="IBQ, f16: codes by inner product",
            paper="https://arxiv.org/abs/2412.02692",
            namings=("ldm",),
            marks=(r"model_ema\.quantizeembeddingweight", r"loss\."),
            typical={"net.blocks": 4},
            proof=True,
            config={"bottleneck": {"kind": "ibq"}},
            adds="codes by inner product",
            code_licence="Apache-2.0",
            parameters=106.7,
        ),
        Family(
            name="taming_vqgan",
            title="VQGAN, f16 and others",
            paper=_TAMING,
            namings=("ldm",),
            marks=(r"loss\.",),
            typical={"net.multipliers": _F16, "net.attention_levels": (4,), "net.blocks": 2},
            **_BY_DISTANCE,
            code_licence="MIT",
            parameters=71.7,
        ),
        Family(
            name="taming_gumbel",
            title="VQGAN with a Gumbel softmax, f8: codes by logits",
            paper=_TAMING,
            namings=("gumbel",),
            needs={"bottleneck.kind": "gumbel"},
            marks=(r"loss\.",),
            typical={"net.multipliers": (1, 1, 2, 4), "net.attention_levels": (3,), "net.blocks": 2},
            adds="codes by logits",
            code_licence="MIT",
            parameters=64.8,
        ),
        Family(
            name="ldm_vq",
            title="Latent diffusion VQ autoencoder, f4 to f16",
            paper=_LDM,
            namings=("ldm",),
            needs={"net.blocks": 2},
            marks=(r"loss\.",),
            typical={"bottleneck.dim": 3, "net.multipliers": (1, 2, 4)},
            **_BY_DISTANCE,
            code_licence="MIT",
        ),
        Family(
            name="chameleon",
            title="Chameleon's VQGAN, f16 at 512 pixels",
            paper="https://arxiv.org/abs/2405.09818",
            namings=("ldm",),
            needs=conv.needs(**conv.DEPTH, attention_levels=(), multipliers=_F16),
            marks=(r"loss\.",),
            typical={"net.multipliers": _F16, "net.attention_levels": (), "net.blocks": 2},
            config={"bottleneck": conv.TRAINED, "image_size": (512, 512)},
            adds="codes by distance",
            code_licence="Chameleon Research License",
            weights_licence="Chameleon Research License: research, no commercial use",
            restricted=True,
            parameters=66.5,
        ),
        Family(
            name="diffusers_vq",
            title="VQModel of diffusers",
            paper=_TAMING,
            namings=("diffusers",),
            **_BY_DISTANCE,
            code_licence="Apache-2.0",
        ),
    ),
    diffusers=(
        DiffusersClass(
            name="VQModel",
            family="diffusers_vq",
            describe=conv_diffusers.vq,
            idle=conv_diffusers.IDLE,
            bottlenecks=("vq", "simvq"),
            tensors=conv_diffusers.vq_tensors,
        ),
    ),
)
