"""The one table of public tokenizers: how to recognise each, and what its weights do not say.

Structure (levels, widths, attention, kernels, codebook) is read off shapes, see `shapes`. A row adds what no shape
tells: how codes are chosen, which way bits count, the scale of latents, the range of pixels, and whose licence holds.
Rows that fit a file equally well differ in such things alone; the first one is taken, and the others are named.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers_mm.checkpoints.shapes import Facts

VAR_SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
INFINITY_SCALES = (1, 2, 4, 6, 8, 12, 16)


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of public checkpoints.

    layouts     naming schemes its files come in, see `layouts`; "body" for those of `bodies`
    quantizer   what the bottleneck must be, see `Facts`
    needs       structure it must have: names of `Facts` or of `ConvConfig` options, and their values
    prefix      what its keys must start with, where the tokenizer lives in another model's file
    marks       patterns of keys (in full) that only this family's files hold; a file needs none of them
    typical     structure of the published files; a file that has it fits better
    proof       whether recognition needs the first mark or the typical structure: what it adds would be wrong elsewhere
    bottleneck  options of the quantizer beside its size; config  other options of the tokenizer
    scale, shift  published latents are (z - shift) * scale; None where nothing was published
    ema         whether the authors' own loader prefers moving averages where a file holds both
    code_licence, weights_licence, restricted  licences as far as stated, and whether they limit use
    parameters  of encoder and decoder, in millions, as published
    """

    name: str
    title: str
    paper: str
    layouts: tuple[str, ...]
    quantizer: str
    needs: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""
    marks: tuple[str, ...] = ()
    typical: Mapping[str, Any] = field(default_factory=dict)
    proof: bool = False
    bottleneck: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    scale: float | None = None
    shift: float = 0.0
    ema: bool = True
    code_licence: str = "not stated"
    weights_licence: str = "not stated"
    restricted: bool = False
    parameters: float | None = None

    def misfits(self, layout: str, facts: Facts, prefix: str) -> list[str]:
        """What keeps a file out of this family, in words; empty where it fits."""
        found = []
        if layout not in self.layouts:
            found.append(f"names are those of {layout}, not of {' or '.join(self.layouts)}")
        if facts.quantizer != self.quantizer:
            found.append(f"its bottleneck is {facts.quantizer}, not {self.quantizer}")
        if self.prefix and not prefix.endswith(self.prefix):
            found.append(f"keys start with {prefix!r}, not {self.prefix!r}")
        for name, value in self.needs.items():
            here = structure(facts, name)
            if here != value:
                found.append(f"{name} is {here}, not {value}")
        return found

    def likeness(self, facts: Facts, keys: Collection[str]) -> tuple[int, int]:
        """How well a file fits: marks found, then typical structure found."""
        marks = sum(any(re.match(mark, key) for key in keys) for mark in self.marks)
        return marks, sum(structure(facts, name) == value for name, value in self.typical.items())

    def is_proved(self, facts: Facts, keys: Collection[str]) -> bool:
        """Whether a file shows what this family asks for, where it asks for something."""
        marked = any(re.match(self.marks[0], key) for key in keys) if self.marks else False
        return not self.proof or marked or self.is_typical(facts)

    def is_typical(self, facts: Facts) -> bool:
        """Whether a file has the structure of the published ones."""
        return all(structure(facts, name) == value for name, value in self.typical.items())


def structure(facts: Facts, name: str) -> Any:
    """A fact or an option of the net, in the form the table writes it."""
    value = facts.net[name] if name in facts.net else getattr(facts, name)
    if isinstance(value, list):
        value = tuple(int(v) if float(v).is_integer() else v for v in value)
    return value


_TAMING = "https://arxiv.org/abs/2012.09841"
_LDM = "https://arxiv.org/abs/2112.10752"
_FLUX = "https://github.com/black-forest-labs/flux"
_F8, _F16, _F4 = (1, 2, 4, 4), (1, 1, 2, 2, 4), (1, 2, 4)
_LEARNED = {"codebook": "gradient", "revive": 0.0}
_MIT, _APACHE = "MIT", "Apache-2.0"

FAMILIES = (
    Family(
        name="sd",
        title="Stable Diffusion VAE, f8 with 4 channels",
        paper=_LDM,
        layouts=("ldm", "diffusers"),
        quantizer="gaussian",
        needs={"quant_conv": 1, "latent": 4, "multipliers": _F8, "attention_levels": (), "patch": 1},
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
        layouts=("ldm", "diffusers"),
        quantizer="gaussian",
        needs={"quant_conv": 1, "latent": 4, "multipliers": _F8, "attention_levels": (), "patch": 1},
        marks=(r"first_stage_model\.", r"conditioner\."),
        config={"image_size": (1024, 1024)},
        scale=0.13025,
        code_licence=_MIT,
        weights_licence="CreativeML OpenRAIL++-M (MIT for sdxl-vae)",
        restricted=True,
        parameters=83.7,
    ),
    Family(
        name="flux1",
        title="FLUX.1 autoencoder, f8 with 16 channels; Bagel's is the same file",
        paper=_FLUX,
        layouts=("ldm", "diffusers"),
        quantizer="gaussian",
        needs={"quant_conv": 0, "multipliers": _F8, "attention_levels": (), "patch": 1},
        typical={"latent": 16},
        config={"image_size": (1024, 1024)},
        scale=0.3611,
        shift=0.1159,
        code_licence=_APACHE,
        weights_licence=_APACHE,
        parameters=83.8,
    ),
    Family(
        name="sd3",
        title="Stable Diffusion 3 VAE, f8 with 16 channels",
        paper="https://arxiv.org/abs/2403.03206",
        layouts=("ldm", "diffusers"),
        quantizer="gaussian",
        needs={"quant_conv": 0, "multipliers": _F8, "attention_levels": (), "patch": 1},
        marks=(r"first_stage_model\.", r"model\.diffusion_model\.joint_blocks\."),
        typical={"latent": 16},
        config={"image_size": (1024, 1024)},
        scale=1.5305,
        shift=0.0609,
        code_licence="MIT",
        weights_licence="Stability AI Community License",
        restricted=True,
        parameters=83.8,
    ),
    Family(
        name="bagel",
        title="Bagel's autoencoder: FLUX.1's, whose posterior Bagel samples",
        paper="https://arxiv.org/abs/2505.14683",
        layouts=("ldm",),
        quantizer="gaussian",
        needs={"quant_conv": 0, "multipliers": _F8, "attention_levels": (), "patch": 1},
        config={"image_size": (1024, 1024)},
        scale=0.3611,
        shift=0.1159,
        code_licence=_APACHE,
        weights_licence=_APACHE,
        parameters=83.8,
    ),
    Family(
        name="flux2",
        title="FLUX.2 autoencoder, f8 with 32 channels in 2 x 2 patches normalised by batch statistics",
        paper="https://github.com/black-forest-labs/flux2",
        layouts=("ldm", "diffusers"),
        quantizer="gaussian",
        needs={"patch": 2},
        typical={"latent": 32},
        config={"image_size": (1024, 1024)},
        code_licence=_APACHE,
        weights_licence=_APACHE,
        parameters=84.0,
    ),
    Family(
        name="ldm_kl",
        title="Latent diffusion KL autoencoder, f4 to f32",
        paper=_LDM,
        layouts=("ldm", "diffusers"),
        quantizer="gaussian",
        needs={"patch": 1},
        marks=(r"loss\.",),
        code_licence=_MIT,
        parameters=83.7,
    ),
    Family(
        name="va_vae",
        title="VA-VAE, f16 aligned with DINOv2",
        paper="https://arxiv.org/abs/2501.01423",
        layouts=("ldm",),
        quantizer="gaussian",
        needs={
            "quant_conv": 1,
            "multipliers": _F16,
            "patch": 1,
            "attention_levels": (4,),
            "decoder_attention_levels": None,
        },
        marks=(r"foundation_model\.", r"linear_proj\.", r"loss\."),
        typical={"latent": 32, "multipliers": _F16},
        code_licence=_MIT,
        parameters=69.8,
    ),
    Family(
        name="repa_e",
        title="REPA-E: VA-VAE or SD's VAE tuned through the diffusion model",
        paper="https://arxiv.org/abs/2504.10483",
        layouts=("ldm",),
        quantizer="gaussian",
        needs={"quant_conv": 1, "patch": 1},
        code_licence=_MIT,
        parameters=69.8,
    ),
    Family(
        name="mar_kl16",
        title="MAR's KL autoencoder, f16 with 16 channels",
        paper="https://arxiv.org/abs/2406.11838",
        layouts=("ldm",),
        quantizer="gaussian",
        needs={"quant_conv": 1, "attention_levels": (4,), "decoder_attention_levels": (), "patch": 1},
        marks=(r"loss\.",),
        typical={"latent": 16, "multipliers": _F16},
        scale=0.2325,
        code_licence=_MIT,
        parameters=66.5,
    ),
    Family(
        name="ibq",
        title="IBQ, f16: codes by inner product",
        paper="https://arxiv.org/abs/2412.02692",
        layouts=("ldm",),
        quantizer="codebook",
        needs={"quant_conv": 1},
        marks=(r"model_ema\.quantizeembeddingweight", r"loss\."),
        typical={"blocks": 4},
        proof=True,
        bottleneck={"kind": "ibq"},
        code_licence=_APACHE,
        parameters=106.7,
    ),
    Family(
        name="taming_vqgan",
        title="VQGAN, f16 and others",
        paper=_TAMING,
        layouts=("ldm",),
        quantizer="codebook",
        needs={"quant_conv": 1},
        marks=(r"loss\.",),
        typical={"multipliers": _F16, "attention_levels": (4,), "blocks": 2},
        bottleneck=_LEARNED,
        code_licence=_MIT,
        parameters=71.7,
    ),
    Family(
        name="taming_gumbel",
        title="VQGAN with a Gumbel softmax, f8: codes by logits",
        paper=_TAMING,
        layouts=("ldm",),
        quantizer="logits",
        needs={"quant_conv": 1},
        marks=(r"loss\.",),
        typical={"multipliers": (1, 1, 2, 4), "attention_levels": (3,), "blocks": 2},
        bottleneck={"kind": "gumbel"},
        code_licence=_MIT,
        parameters=64.8,
    ),
    Family(
        name="ldm_vq",
        title="Latent diffusion VQ autoencoder, f4 to f16",
        paper=_LDM,
        layouts=("ldm",),
        quantizer="codebook",
        needs={"quant_conv": 1, "blocks": 2},
        marks=(r"loss\.",),
        typical={"latent": 3, "multipliers": _F4},
        bottleneck=_LEARNED,
        code_licence=_MIT,
    ),
    Family(
        name="chameleon",
        title="Chameleon's VQGAN, f16 at 512 pixels",
        paper="https://arxiv.org/abs/2405.09818",
        layouts=("ldm",),
        quantizer="codebook",
        needs={"quant_conv": 1, "attention_levels": (), "multipliers": _F16, "blocks": 2},
        marks=(r"loss\.",),
        typical={"multipliers": _F16, "attention_levels": (), "blocks": 2},
        bottleneck=_LEARNED,
        config={"image_size": (512, 512)},
        code_licence="Chameleon Research License",
        weights_licence="Chameleon Research License: research, no commercial use",
        restricted=True,
        parameters=66.5,
    ),
    Family(
        name="diffusers_vq",
        title="VQModel of diffusers",
        paper=_TAMING,
        layouts=("diffusers",),
        quantizer="codebook",
        bottleneck=_LEARNED,
        code_licence=_APACHE,
    ),
    Family(
        name="janus",
        title="Janus and Janus-Pro VQ-16, inside the language model's file",
        paper="https://arxiv.org/abs/2410.13848",
        layouts=("llamagen",),
        quantizer="codebook",
        prefix="gen_vision_model.",
        bottleneck=_LEARNED | {"metric": "cosine"},
        config={"image_size": (384, 384)},
        code_licence=_MIT,
        weights_licence="DeepSeek Model License: use restrictions",
        restricted=True,
        parameters=71.7,
    ),
    Family(
        name="llamagen",
        title="LlamaGen VQ-16 and VQ-8",
        paper="https://arxiv.org/abs/2406.06525",
        layouts=("llamagen",),
        quantizer="codebook",
        bottleneck=_LEARNED | {"metric": "cosine"},
        code_licence=_MIT,
        weights_licence=_MIT,
        parameters=71.7,
    ),
    Family(
        name="var",
        title="VAR's multi-scale VQ, f16",
        paper="https://arxiv.org/abs/2404.02905",
        layouts=("var",),
        quantizer="scales",
        bottleneck={"scales": VAR_SCALES, "inner": _LEARNED},
        code_licence=_MIT,
        weights_licence=_MIT,
        parameters=108.8,
    ),
    Family(
        name="infinity",
        title="Infinity's multi-scale bits, f16 and f8",
        paper="https://arxiv.org/abs/2412.04431",
        layouts=("infinity", "ldm"),
        quantizer="bits",
        needs={"quant_conv": 0, "modulation": False, "middle_attention": False},
        bottleneck={
            "kind": "multiscale",
            "scales": INFINITY_SCALES,
            "inner": {"kind": "bsq", "entropy": 0.0},
            "phi": 0,
            "upscale": "bilinear",
        },
        ema=False,
        code_licence=_MIT,
        weights_licence=_MIT,
        parameters=110.1,
    ),
    Family(
        name="open_magvit2",
        title="Open-MAGVIT2, f16: bits, the first one least significant",
        paper="https://arxiv.org/abs/2409.04410",
        layouts=("open_magvit2",),
        quantizer="bits",
        needs={"modulation": True},
        bottleneck={"kind": "lfq", "bit_order": "lsb"},
        config={"net": {"downsample": "centre"}},
        code_licence=_APACHE,
        parameters=115.1,
    ),
    Family(
        name="showo",
        title="Show-o's MAGVIT-v2, f16: 13 bits, the first one most significant",
        paper="https://arxiv.org/abs/2408.12528",
        layouts=("ldm",),
        quantizer="bits",
        needs={"quant_conv": 1},
        bottleneck={"kind": "lfq", "bit_order": "msb"},
        code_licence=_APACHE,
        parameters=95.4,
    ),
    Family(
        name="maskgit_vq",
        title="MaskGIT's VQGAN, f16, pixels in [0, 1]",
        paper="https://arxiv.org/abs/2202.04200",
        layouts=("maskgit",),
        quantizer="codebook",
        bottleneck=_LEARNED,
        config={"pixel_mean": (0.0,), "pixel_std": (1.0,)},
        code_licence=_APACHE,
        parameters=54.3,
    ),
    Family(
        name="dc_ae",
        title="DC-AE, f32 to f128",
        paper="https://arxiv.org/abs/2410.10733",
        layouts=("body",),
        quantizer="identity",
        code_licence=_APACHE,
    ),
    Family(
        name="qwen_image",
        title="Qwen-Image's autoencoder, f8 with 16 channels",
        paper="https://arxiv.org/abs/2508.02324",
        layouts=("body",),
        quantizer="gaussian",
        code_licence=_APACHE,
        weights_licence=_APACHE,
    ),
    Family(
        name="wan",
        title="Wan's video autoencoder, for single images",
        paper="https://arxiv.org/abs/2503.20314",
        layouts=("body",),
        quantizer="gaussian",
        code_licence=_APACHE,
        weights_licence=_APACHE,
    ),
    Family(
        name="emu3",
        title="Emu3's vision tokenizer, f8 with 32768 codes, for single images",
        paper="https://arxiv.org/abs/2409.18869",
        layouts=("body",),
        quantizer="codebook",
        code_licence=_APACHE,
        weights_licence=_APACHE,
        parameters=270.6,
    ),
    Family(
        name="movq",
        title="MoVQ, f8: a decoder normalised by the codes (Kandinsky 2)",
        paper="https://arxiv.org/abs/2209.09002",
        layouts=("body",),
        quantizer="codebook",
        code_licence=_APACHE,
        parameters=67.8,
    ),
)
BY_NAME = {family.name: family for family in FAMILIES}
