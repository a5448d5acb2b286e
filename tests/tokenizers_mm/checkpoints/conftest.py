"""Files of every family: keys and shapes of the goldens, and of classes of diffusers, with random numbers in them."""

import json
from pathlib import Path

import pytest
import torch

GOLDENS = Path(__file__).parents[2] / "goldens"
DOWN, UP = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")
# Families that no golden is of, by classes of diffusers.
MADE = {
    "dc_ae": (
        "AutoencoderDC",
        {
            "latent_channels": 8,
            "encoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
            "decoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
            "encoder_block_out_channels": (32, 32, 64),
            "decoder_block_out_channels": (32, 32, 64),
            "encoder_layers_per_block": (1, 2, 1),
            "decoder_layers_per_block": (1, 2, 1),
            "encoder_qkv_multiscales": ((), (), (5,)),
            "decoder_qkv_multiscales": ((), (), (5,)),
            "decoder_norm_types": ("batch_norm", "rms_norm", "rms_norm"),
            "decoder_act_fns": ("relu", "silu", "silu"),
        },
    ),
    "qwen_image": ("AutoencoderKLQwenImage", {"base_dim": 8}),
    "wan": (
        "AutoencoderKLWan",
        {"base_dim": 8, "z_dim": 48, "is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2},
    ),
    "movq": (
        "VQModel",
        {
            "block_out_channels": (32, 64),
            "down_block_types": DOWN,
            "up_block_types": UP[::-1],
            "latent_channels": 4,
            "vq_embed_dim": 4,
            "num_vq_embeddings": 64,
            "norm_type": "spatial",
        },
    ),
}
FILES = sorted(path.stem for path in GOLDENS.glob("*.json") if not path.stem.startswith("q_")) + sorted(MADE)


@pytest.fixture(params=FILES, scope="module")
def public_file(request):
    """Tensors of a tokenizer by the keys of its file, without wrappers, and the config.json beside it, or None."""
    if request.param in MADE:
        import diffusers

        name, options = MADE[request.param]
        with torch.device("meta"):
            made = getattr(diffusers, name)(**options)
        return {key: numbers(value.shape, value.dtype) for key, value in made.state_dict().items()}, None
    facts = json.loads((GOLDENS / f"{request.param}.json").read_text())
    state = {key: numbers(shape, getattr(torch, dtype)) for key, shape, dtype in facts["keys"]}
    return {key: value for key, value in state.items() if not key.startswith("model_ema.")}, facts.get("config")


def numbers(shape, dtype):
    return torch.randn(shape) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)
