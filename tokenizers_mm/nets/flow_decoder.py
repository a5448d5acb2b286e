"""A decoder that paints: a rectified flow from noise to the image, conditioned on the tokens.

What few tokens leave open a regression can only average; a flow draws one image that fits them. So do the decoders of
FlexTok (https://arxiv.org/abs/2502.13967), Emu2 (https://arxiv.org/abs/2312.13286) and SEED-X
(https://arxiv.org/abs/2404.14396). Rectified flow (https://arxiv.org/abs/2209.03003): on the path
x_t = t * data + (1 - t) * noise, t = 1 is clean; the net learns the velocity data - noise, and an ODE solver follows it
from t = 0 to 1. The noise has a fixed seed and is the same for every image, so decoding is deterministic and no image
depends on its batch.

A ViT with adaLN (https://arxiv.org/abs/2212.09748) over the noised patches. Tokens of a map are added to the patches
they lie on; tokens without a place are appended to them. "Images" may be the latents of another tokenizer: `net` and
`decoder_net` with image_channels of its latents' channels, image_size of its grid, and in place of images its latents
as [B, D, h, w], which have unit variance.

Shape letters: B batch, C image channels, D latent channels, H and W pixels, h and w rows and columns of tokens, L
patches, N tokens without a place, E width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_mm.blocks import (
    PatchEmbed,
    PatchUnembed,
    Solver,
    TimeDensity,
    grid_positions,
    interpolate,
    sample_times,
    scaled,
    solve,
    timestep_embedding,
    velocity,
    velocity_towards,
)
from tokenizers_mm.nets.geometry import Geometry
from tokenizers_mm.nets.options import DecoderOptions, NetOptions
from tokenizers_mm.nets.transformer import GridTransformer, TransformerConfig

_LEAST_NOISE = 0.05  # of what divides where the net predicts data
_TIME_CHANNELS = 256


@dataclass(frozen=True, kw_only=True)
class FlowDecoderConfig(DecoderOptions):
    """A flow decoder; its downsampling is that of the encoder it belongs to.

    patch     pixels per side of what the transformer sees as one position; divides the downsampling of a map of tokens
    size      of the transformer
    predicts  "data": the net gives the clean image, from which the velocity follows, as it does best where patches have
              many dimensions (https://arxiv.org/abs/2511.13720); "velocity": it gives the velocity itself
    times     of training: "logit_normal" (https://arxiv.org/abs/2403.03206), most of them in the middle, or "uniform"
    drop      fraction of the examples whose tokens are hidden in training; guidance needs some
    guidance  strength with which decoding moves from the unconditional to the conditional velocity and beyond
              (https://arxiv.org/abs/2207.12598); 1: the conditional one, at half the cost
    steps     of the ODE solver; "heun" evaluates the net twice a step
    seed      of the noise that decoding starts from
    """

    generative: ClassVar[bool] = True
    kind: Literal["flow"] = "flow"
    patch: int = 4
    size: TransformerConfig = field(default_factory=TransformerConfig)
    predicts: Literal["data", "velocity"] = "data"
    times: TimeDensity = "logit_normal"
    drop: float = 0.1
    guidance: float = 1.0
    steps: int = 20
    solver: Solver = "euler"
    seed: int = 0
    image_channels: int = 3

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled from."""
        if min(self.patch, self.steps, self.image_channels) < 1:
            raise ValueError(
                f"patch={self.patch}, steps={self.steps}, image_channels={self.image_channels}: expected at least 1"
            )
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop={self.drop}: expected a fraction in [0, 1)")
        if self.guidance != 1 and not self.drop:
            raise ValueError(
                f"guidance={self.guidance}: needs drop > 0, or the unconditional velocity is never trained"
            )

    def check_takes(self, net: NetOptions) -> None:
        """It takes any: it has the downsampling of the encoder, and learns a place for tokens without one."""


class FlowDecoder(nn.Module):
    """Features [B, in_channels, h, w] or [B, in_channels, 1, N] -> image [B, image_channels, H, W]."""

    def __init__(self, config: FlowDecoderConfig, in_channels: int, geometry: Geometry) -> None:
        super().__init__()
        self.config, self.geometry, width = config, geometry, config.size.width
        per_token = _patches_per_token(config, geometry)
        self.null_D = nn.Parameter(torch.randn(in_channels))
        self.embed = scaled(nn.Linear(in_channels, width * per_token))
        if geometry.tokens is not None:
            self.position_NE = nn.Parameter(torch.randn(geometry.tokens, width))
        self.patches = PatchEmbed(config.patch, config.image_channels, width)
        self.time = nn.Sequential(nn.Linear(_TIME_CHANNELS, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.trunk = GridTransformer(config.size, adaptive=True)
        self.pixels = PatchUnembed(config.patch, config.image_channels, width)
        nn.init.zeros_(self.pixels.project.weight)

    @property
    def last_layer(self) -> Tensor:
        """Weight next to the image."""
        return self.pixels.last_layer

    def velocity(self, x_BCHW: Tensor, t_B: Tensor, latent_BDhw: Tensor) -> Tensor:
        """Velocity [B, C, H, W] at noised images and times in [0, 1), float32."""
        grid = (x_BCHW.shape[2] // self.config.patch, x_BCHW.shape[3] // self.config.patch)
        x_BLE, position_L2 = self.patches(x_BCHW), grid_positions(*grid, device=x_BCHW.device)
        token_BNE = self.embed(latent_BDhw.flatten(2).transpose(1, 2))
        if self.geometry.tokens is None:
            token_BEhw = token_BNE.transpose(1, 2).unflatten(2, latent_BDhw.shape[2:])
            per_side = grid[0] // latent_BDhw.shape[2]
            x_BLE = x_BLE + F.pixel_shuffle(token_BEhw, per_side).flatten(2).transpose(1, 2)
        else:
            x_BLE = torch.cat([x_BLE, token_BNE + self.position_NE], 1)
            position_L2 = torch.cat([position_L2, position_L2.new_zeros(token_BNE.shape[1], 2)])
        time_BE = self.time(timestep_embedding(t_B, _TIME_CHANNELS).to(x_BCHW.dtype))
        x_BLE = self.trunk(x_BLE, position_L2, condition=time_BE)[:, : grid[0] * grid[1]]
        out_BCHW: Tensor = self.pixels(x_BLE, grid).float()
        if self.config.predicts == "velocity":
            return out_BCHW
        return velocity_towards(out_BCHW, x_BCHW.float(), t_B, least_noise=_LEAST_NOISE)

    def velocity_loss(self, latent_BDhw: Tensor, image_BCHW: Tensor) -> Tensor:
        """Mean squared error of the velocity at random times, a scalar; random numbers are torch's global ones."""
        batch, device = len(image_BCHW), image_BCHW.device
        t_B = sample_times(batch, self.config.times, stratified=False).to(device)
        hidden_B = (torch.rand(batch) < self.config.drop).to(device)
        noise_BCHW = torch.randn_like(image_BCHW)
        latent_BDhw = torch.where(hidden_B[:, None, None, None], self._null(latent_BDhw), latent_BDhw)
        velocity_BCHW = self.velocity(interpolate(image_BCHW, noise_BCHW, t_B), t_B, latent_BDhw)
        return F.mse_loss(velocity_BCHW, velocity(image_BCHW, noise_BCHW).float())

    def forward(self, latent_BDhw: Tensor) -> Tensor:
        """Images of about [-1, 1], not clamped; the same for the same tokens, whatever was drawn before."""
        c, (height, width) = self.config, self.geometry.size_of((latent_BDhw.shape[2], latent_BDhw.shape[3]))
        generator = torch.Generator().manual_seed(c.seed)
        noise_1CHW = torch.randn(1, c.image_channels, height, width, generator=generator)
        noise_BCHW = noise_1CHW.to(latent_BDhw.device, latent_BDhw.dtype).expand(len(latent_BDhw), -1, -1, -1)

        def guided(x_BCHW: Tensor, t_B: Tensor) -> Tensor:
            v_BCHW = self.velocity(x_BCHW, t_B, latent_BDhw).to(x_BCHW.dtype)
            if c.guidance == 1:
                return v_BCHW
            null_BCHW = self.velocity(x_BCHW, t_B, self._null(latent_BDhw)).to(x_BCHW.dtype)
            return torch.lerp(null_BCHW, v_BCHW, c.guidance)

        return solve(guided, noise_BCHW, steps=c.steps, solver=c.solver, evaluates_end=False)

    def _null(self, latent_BDhw: Tensor) -> Tensor:
        return self.null_D.to(latent_BDhw.dtype)[:, None, None].expand_as(latent_BDhw)


def _patches_per_token(config: FlowDecoderConfig, geometry: Geometry) -> int:
    """How many patches each token of a map covers; 1 for tokens without a place."""
    f, patch = geometry.downsampling, config.patch
    if geometry.tokens is None:
        if f % patch:
            raise ValueError(f"decoder_net.patch={patch}: expected a divisor of the downsampling {f}")
        return (f // patch) ** 2
    if geometry.image_size[0] % patch or geometry.image_size[1] % patch:
        raise ValueError(f"decoder_net.patch={patch}: expected a divisor of both sides of {geometry.image_size}")
    return 1
