"""Statistics that give latents zero mean and unit variance, and stay float32 whatever the nets compute in.

An autoencoder, a tower, and two tokenizers in one each have them, as buffers of their own: the state dict knows them by
the module's name for them. Towers stand below the models, so what all three share stands here.

Shape letters: B batch, N positions, D channels of a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

__all__ = ["WithLatents"]


class WithLatents(nn.Module):
    """A module with statistics of its latents: buffers NAME_mean_D and NAME_std_D, [D], or [N, D] of every position.

    `.to`, `.half` and others never take bits from its own parameters and buffers.

    latents_name    NAME of the buffers
    full_precision  children from which they take none either
    """

    latents_name: ClassVar[str] = "latent"
    full_precision: ClassVar[tuple[str, ...]] = ()

    def register_statistics(self, *shape: int) -> None:
        """Mean zero and deviation one, until they are measured or set."""
        self.register_buffer(f"{self.latents_name}_mean_D", torch.zeros(shape))
        self.register_buffer(f"{self.latents_name}_std_D", torch.ones(shape))

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the latents; `ValueError` where none were registered."""
        if f"{self.latents_name}_mean_D" not in self._buffers:
            raise ValueError("this tokenizer gives codes, or latents of its halves as they are: it has no statistics")
        return getattr(self, f"{self.latents_name}_mean_D"), getattr(self, f"{self.latents_name}_std_D")

    @torch.no_grad()
    def set_statistics(self, mean: Tensor | float, std: Tensor | float) -> None:
        """Latents become (z - mean) / std: numbers, or tensors that broadcast to [D], or to [N, D] per position.

        A published scale s and shift m are mean = m and std = 1 / s. `ValueError` for what does not fit.
        """
        mean_D, std_D = self.statistics
        for buffer, value in ((mean_D, mean), (std_D, std)):
            given = torch.as_tensor(value, dtype=buffer.dtype, device=buffer.device)
            if given.ndim and given.shape != buffer.shape[-given.ndim :]:
                raise ValueError(f"statistics of shape {tuple(given.shape)}: expected {tuple(buffer.shape)}")
            if not bool(torch.isfinite(given).all()) or (buffer is std_D and float(given.min()) <= 0):
                raise ValueError("statistics must be finite, and deviations positive")
            buffer.copy_(given)

    @torch.no_grad()
    def measure_statistics(self, latents_BND: Iterable[Tensor]) -> None:
        """Set the statistics to those of latents before normalisation, all of which are held in memory."""
        positions = self.statistics[0].ndim - 1
        values = torch.cat([one_BND if positions else one_BND.flatten(0, 1) for one_BND in latents_BND]).float()
        self.set_statistics(values.mean(0), values.std(0).clamp(min=1e-6))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `.to`, `.half`, `.cuda` and others go through."""

        def kept(value: Tensor) -> Tensor:
            out = fn(value)
            return out if out.element_size() >= value.element_size() else value.to(out.device)

        for name, module in self.named_children() if recurse else ():
            module._apply(kept if name in self.full_precision else fn)  # type: ignore[no-untyped-call]
        return super()._apply(kept, recurse=False)  # type: ignore[no-untyped-call,no-any-return]
