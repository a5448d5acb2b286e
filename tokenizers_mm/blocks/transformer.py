"""A stack of transformer blocks with rotary positions; what the blocks are made of is the user's choice.

Shape letters: B batch, L new positions, K all positions so far, A axes of a position, E width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from tokenizers_mm.blocks.block import Block
from tokenizers_mm.blocks.cache import KeyValueCache
from tokenizers_mm.blocks.rotary import rotation

__all__ = ["Transformer"]


class Transformer(nn.Module):
    """Blocks, one after the other, and a last norm: [B, L, E] -> the same shape.

    head_dim  channels of a head, which rotary positions of this `base` turn
    """

    def __init__(self, blocks: Iterable[Block], norm: nn.Module, *, head_dim: int, base: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.head_dim, self.base = head_dim, base

    def forward(
        self,
        x_BLE: Tensor,
        position: Tensor,
        mask: Tensor | None = None,
        *,
        condition: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Run the new positions.

        position   rotary position of every new token, [L, A] or [B, L, A]
        mask       True where a new position (row) may look at any position so far (column), [L, K] or [B, L, K], with
                   K = L without a cache; default: everywhere
        condition  of blocks with modulation, which need one: [B, E], or [B, L, E], one for each position
        cache      earlier positions; extended in place

        Raises `ValueError` for a condition that is missing, or that no block reads.
        """
        for state_BLE in self.states(x_BLE, position, mask, condition=condition, cache=cache):
            x_BLE = state_BLE
        out: Tensor = self.norm(x_BLE)
        return out

    def states(
        self,
        x_BLE: Tensor,
        position: Tensor,
        mask: Tensor | None = None,
        *,
        condition: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Iterator[Tensor]:
        """What every block gives, [B, L, E], one after the other: who needs an early one runs no further.

        The arguments are those of `forward`, which is the norm of the last.
        """
        turns = rotation(position, self.head_dim, self.base)
        for layer, block in enumerate(self.blocks):
            if (block.modulation is None) != (condition is None):
                given = "None" if condition is None else f"a tensor {tuple(condition.shape)}"
                raise ValueError(f"condition={given}: blocks with modulation need one, and others cannot read one")
            kept = None if cache is None else cache[layer]
            x_BLE = block(x_BLE, turns, mask, condition=condition, cache=kept)
            yield x_BLE
