"""One attention mask for every layout, from four attributes a token carries.

    doc      tokens see only their own document (padding is a document of its own)
    block    blocks follow each other: a token sees every earlier block of its document
    bidir    within its block a token sees all (True) or only itself and what came before (False)
    private  a token that only its own block sees (a noisy image that later text must not read)

Causal, prefix, scale-by-scale, diffusion-in-a-sequence and packed layouts are all values of these four.

Shape letters: B batch, L positions, P prefix positions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def allow(doc_BL: Tensor, block_BL: Tensor, bidir_BL: Tensor, private_BL: Tensor) -> Tensor:
    """Boolean mask [B, L, L], True where the query (dim 1) may look at the key (dim 2).

    allow(q, k) = same doc and (block[k] < block[q] or (same block and (bidir[q] or k <= q)))
                  and not (private[k] and another block)
    """
    q_block, k_block = block_BL[:, :, None], block_BL[:, None, :]
    index = torch.arange(block_BL.shape[1], device=block_BL.device)
    causal = index[:, None] >= index
    same_doc = doc_BL[:, :, None] == doc_BL[:, None, :]
    within = (q_block == k_block) & (bidir_BL[:, :, None] | causal)
    hidden = private_BL[:, None, :] & (q_block != k_block)
    return same_doc & ((k_block < q_block) | within) & ~hidden


def prefix_mask(valid_BP: Tensor, targets: int, *, bidir: bool = False) -> Tensor:
    """Mask [B, P + targets, P + targets] of a bidirectional prefix and targets that see it.

    valid_BP  which prefix positions are not padding
    bidir     targets see each other all (True) or causally (False)
    """
    batch, prefix = valid_BP.shape
    is_target = (torch.arange(prefix + targets, device=valid_BP.device) >= prefix).expand(batch, -1)
    valid = torch.cat([valid_BP, valid_BP.new_ones(batch, targets)], 1)
    free = torch.ones_like(is_target) if bidir else ~is_target
    return allow(valid.long(), is_target.long(), free, torch.zeros_like(is_target))
