"""The autoencoder of Stable Diffusion with random weights, as diffusers runs it and as ours does.

`python autoencoders.py CANDIDATE DIRECTION PIXELS` prints the most memory of a process that runs one of them once, in
MiB: all of it, and what the run added to the process before it.
"""

import re
import sys
from pathlib import Path

import diffusers
import torch

from tokenizers_mm import Tokens
from tokenizers_mm.checkpoints import from_diffusers
from tokenizers_mm.fast import optimize

LEVELS = 4
DOWNSAMPLING = 2 ** (LEVELS - 1)


@torch.no_grad()
def autoencoder():
    """diffusers' model; norms and biases, which start as ones and zeros, are made random too."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * LEVELS,
        up_block_types=("UpDecoderBlock2D",) * LEVELS,
        layers_per_block=2,
        latent_channels=4,
    ).eval()
    for weight in vae.parameters():
        if weight.ndim == 1:
            weight.add_(0.1 * torch.randn_like(weight))
    return vae


def inputs(pixels, batch=1):
    """Images in [-1, 1], and latents."""
    side = pixels // DOWNSAMPLING
    return torch.rand(batch, 3, pixels, pixels) * 2 - 1, torch.randn(batch, 4, side, side)


def runs(candidate, vae, image_BCHW, latent_BDhw):
    """Functions that encode and decode: moments [B, 2 D, h, w] of the posterior, and pixels."""
    if candidate == "diffusers":
        return lambda: vae.encode(image_BCHW).latent_dist.parameters, lambda: vae.decode(latent_BDhw).sample
    tokenizer, grid = from_diffusers(vae), tuple(latent_BDhw.shape[2:])
    if candidate != "plain":
        tokenizer = optimize(tokenizer, candidate)
    z_BND = (latent_BDhw.flatten(2).transpose(1, 2) - tokenizer.latent_mean_D) / tokenizer.latent_std_D
    tokens = Tokens(latents_BND=z_BND, grid=grid)

    def encode():
        h_BND, _ = tokenizer.features(image_BCHW)
        return h_BND.transpose(1, 2).unflatten(2, grid)

    return encode, lambda: tokenizer.decode(tokens)


def _high_water():
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


@torch.no_grad()
def main(candidate, direction, pixels):
    run = runs(candidate, autoencoder(), *inputs(int(pixels)))[("encode", "decode").index(direction)]
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _high_water()
    run()
    print(_high_water(), _high_water() - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
