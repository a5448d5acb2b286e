"""Images out of noise, all positions at once: a transformer that predicts the velocity of a straight path.

Flow Matching (arXiv 2210.02747) on latents, with the trunk of DiT (arXiv 2212.09748); the caption's words stand before
the latents in the sequence and, pooled, beside the time in the modulation.

`Flow.forward` also gives the hidden state of a block, which alignment with other features trains (REPA,
https://arxiv.org/abs/2410.06940); what is done with it is a recipe's business.

Shape letters: B batch, N positions, D channels of a latent, L patches, P prefix, E width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from backbones.embed import ConditionEmbedding, GridEmbedding, check_condition, check_labels, condition_of
from backbones.guidance import check_scale, guide
from backbones.mask import prefix_mask
from backbones.trunk import Trunk, TrunkConfig
from tokenizers_mm.api import Batch, Condition, Tokens, TokenSpec
from tokenizers_mm.blocks import (
    TIME_DENSITIES,
    TimeDensity,
    TimeEmbedding,
    interpolate,
    patchify,
    sample_times,
    solve,
    unpatchify,
    velocity,
    zero_linear,
)


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Choices of a flow generator.

    patch           positions of a raster grid joined into one patch, per side
    density         training times: uniform or logit_normal
    classes         0: the condition is a caption; otherwise the number of class labels
    drop_condition  share of training images without condition; what classifier-free guidance needs
    max_text        most bytes of a caption
    """

    width: int = 128
    depth: int = 5
    heads: int = 4
    patch: int = 1
    density: TimeDensity = "uniform"
    classes: int = 0
    drop_condition: float = 0.1
    max_text: int = 128

    def __post_init__(self) -> None:
        """Refuse an unknown density, and shares and counts that mean nothing."""
        check_condition(self.classes, self.drop_condition, self.max_text)
        if self.density not in TIME_DENSITIES:
            raise ValueError(f"density={self.density!r}: expected one of {', '.join(TIME_DENSITIES)}")
        if self.patch < 1:
            raise ValueError(f"patch={self.patch}: at least 1")


class FlowDraw(NamedTuple):
    """What training draws for a batch of latents.

    noise_BND  the other end of every path; t_B  where on it; drop_B  True for images that lose their condition, or None
    """

    noise_BND: Tensor
    t_B: Tensor
    drop_B: Tensor | None


class FlowStates(NamedTuple):
    """What a training pass gives: the scalar velocity loss, and the hidden state [B, L, E] of one block's patches."""

    loss: Tensor | None
    hidden_BLE: Tensor | None


class Flow(nn.Module):
    """Velocity of an image's latents given a caption or a class; sampling integrates it.

    Raises `ValueError` for a discrete spec and for a grid that `patch` does not divide.
    """

    kind = "flow"

    def __init__(self, config: FlowConfig, spec: TokenSpec) -> None:
        super().__init__()
        if spec.discrete:
            raise ValueError("spec is discrete: a flow needs continuous latents; use backbones.Autoregressive")
        patched = patched_spec(spec, config.patch)
        self.config, self.spec, self.hidden_grid, width = config, spec, patched.grid, config.width
        self.trunk = Trunk(TrunkConfig(width=width, depth=config.depth, heads=config.heads, adaptive=True))
        self.condition = ConditionEmbedding(width, classes=config.classes, max_text=config.max_text)
        self.time = TimeEmbedding(width)
        self.pooled = nn.Linear(width, width)
        self.inputs = nn.Linear(patched.dim, width)
        self.grid = GridEmbedding(patched, width)
        self.head = zero_linear(width, patched.dim)

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """`velocity`: mean squared error of the velocity at random times, per channel of a latent."""
        data_BND = self._checked(batch.tokens)
        condition = condition_of(
            batch.captions,
            batch.labels_B,
            classes=self.config.classes,
            batch=len(batch),
            label_range=batch.label_range,
        )
        loss = self(data_BND, condition, self.draw(data_BND)).loss
        assert loss is not None
        return {"velocity": loss}

    def draw(self, data_BND: Tensor) -> FlowDraw:
        """Draw noise, times and, in training, which images lose their condition."""
        config, device = self.config, data_BND.device
        drop_B = torch.rand(len(data_BND), device=device) < config.drop_condition if self.training else None
        noise_BND = torch.randn_like(data_BND)
        t_B = sample_times(len(data_BND), config.density, stratified=True, device=device)
        return FlowDraw(noise_BND, t_B, drop_B)

    def forward(
        self, data_BND: Tensor, condition: Condition, draw: FlowDraw, *, layer: int | None = None, stop: bool = False
    ) -> FlowStates:
        """Training pass over latents; gradients reach them too.

        layer  also give the hidden state after this many blocks, its patches in the order of `hidden_grid`
        stop   run no further than that: no loss

        Raises `ValueError` for a layer that is not there.
        """
        depth = self.config.depth
        if (stop and layer is None) or not 1 <= (1 if layer is None else layer) <= depth:
            raise ValueError(f"layer={layer}: this generator has the blocks 1..{depth}")
        x_BND, hidden_BLE = interpolate(data_BND, draw.noise_BND, draw.t_B), None
        prefix = self.condition(condition, draw.drop_B)
        for number, state_BLE in enumerate(self._states(x_BND, draw.t_B, prefix), start=1):
            if number == layer:
                hidden_BLE = state_BLE
                if stop:
                    return FlowStates(None, hidden_BLE)
        predicted_BND = self._velocity(state_BLE)
        loss = (predicted_BND.float() - velocity(data_BND, draw.noise_BND)).square().mean()
        return FlowStates(loss, hidden_BLE)

    def velocity(self, x_BND: Tensor, t_B: Tensor, prefix: tuple[Tensor, Tensor]) -> Tensor:
        """Predicted velocity [B, N, D] at x_t; `prefix` is what `self.condition` returns."""
        for state_BLE in self._states(x_BND, t_B, prefix):
            last_BLE = state_BLE
        return self._velocity(last_BLE)

    def _states(self, x_BND: Tensor, t_B: Tensor, prefix: tuple[Tensor, Tensor]) -> Iterator[Tensor]:
        """Hidden states [B, L, E] of the patches, after one block after the other."""
        prefix_BPE, valid_BP = prefix
        patches_BLE = self.inputs(self._patches(x_BND)) + self.grid()
        length, start = patches_BLE.shape[1], prefix_BPE.shape[1]
        pooled_BE = (prefix_BPE * valid_BP[..., None]).sum(1) / valid_BP.sum(1, keepdim=True)
        condition_BE = nn.functional.silu(self.time(t_B) + self.pooled(pooled_BE))
        position_L1 = torch.cat([torch.arange(start), torch.arange(length)])[:, None].to(x_BND.device)
        mask_BLL = prefix_mask(valid_BP, length, bidir=True)
        x_BLE = torch.cat([prefix_BPE, patches_BLE], 1)
        for state_BLE in self.trunk.states(x_BLE, position_L1, mask_BLL, condition=condition_BE):
            yield state_BLE[:, start:]

    def _velocity(self, last_BLE: Tensor) -> Tensor:
        return self._positions(self.head(self.trunk.norm(last_BLE)))

    @torch.no_grad()
    def sample(
        self,
        condition: Condition,
        *,
        guidance: float = 1.0,
        seed: int | None = None,
        steps: int = 20,
        solver: str = "euler",
    ) -> Tokens:
        """Draw one image's latents for every caption, or every label, in `condition`.

        guidance  1 is the model itself, more follows the condition more closely (needs `drop_condition` > 0)
        solver    euler (one evaluation a step) or heun (two)
        """
        check_scale(guidance)
        check_labels(condition, self.config.classes)
        prefix_BPE, valid_BP = self.condition(condition)
        if guidance != 1:
            null_BPE, null_BP = self.condition(condition, valid_BP.new_ones(len(valid_BP)))
            prefix_BPE, valid_BP = torch.cat([prefix_BPE, null_BPE]), torch.cat([valid_BP, null_BP])

        def field(x_BND: Tensor, t_B: Tensor) -> Tensor:
            if guidance == 1:
                return self.velocity(x_BND, t_B, (prefix_BPE, valid_BP)).float()
            both_BND = self.velocity(x_BND.repeat(2, 1, 1), t_B.repeat(2), (prefix_BPE, valid_BP)).float()
            conditional_BND, null_BND = both_BND.chunk(2)
            return guide(conditional_BND, null_BND, guidance)

        device = self.head.weight.device
        generator = None if seed is None else torch.Generator(device).manual_seed(seed)
        shape = len(condition), self.spec.length, self.spec.dim
        noise_BND = torch.randn(shape, generator=generator, device=device)
        return Tokens(latents_BND=solve(field, noise_BND, steps=steps, solver=solver), grid=self.spec.grid)

    def _checked(self, tokens: Tokens) -> Tensor:
        latents_BND = tokens.check(self.spec).latents_BND
        if latents_BND is None or tokens.grid != self.spec.grid:
            raise ValueError(f"tokens have the grid {tokens.grid}: this generator was built for {self.spec.grid}")
        return latents_BND

    def _patches(self, x_BND: Tensor) -> Tensor:
        patch = self.config.patch
        return x_BND if patch == 1 else patchify(x_BND, cast(tuple[int, int], self.spec.grid), patch)

    def _positions(self, x_BLD: Tensor) -> Tensor:
        patch = self.config.patch
        return x_BLD if patch == 1 else unpatchify(x_BLD, cast(tuple[int, int], self.spec.grid), patch)


def patched_spec(spec: TokenSpec, patch: int) -> TokenSpec:
    """The spec of `spec`'s raster grid after joining patch x patch positions; `ValueError` where that cannot be."""
    if patch == 1:
        return spec
    if spec.layout != "raster" or any(cast(int, side) % patch for side in spec.grid):
        raise ValueError(f"patch={patch}: needs a raster grid whose sides it divides, not {spec.layout} {spec.grid}")
    grid = tuple(cast(int, side) // patch for side in spec.grid)
    return TokenSpec(image_size=spec.image_size, grid=grid, dim=spec.dim * patch * patch)
