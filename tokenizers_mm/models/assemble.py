"""Put a tokenizer together around the tensors of a public file, without a second copy of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenizers_mm.models.autoencoder import Autoencoder

__all__ = ["assemble"]


def assemble(options: Any, state: Mapping[str, Tensor], where: Path | str) -> Autoencoder:
    """A tokenizer of these options whose parameters are the given tensors themselves, in eval mode.

    Statistics of ours that no public file holds start neutral.

    Raises `CheckpointError` naming missing and unexpected keys, and shapes that contradict the options.
    """
    model = Autoencoder.empty(options, f"{where}: config")
    return model.adopt({**_neutral(model.state_dict(), state), **state}, where)


def _neutral(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Statistics that the file lacks: latents as they are, every row of a codebook in use, no training steps counted.

    A codebook without counts would start again from the first training batch. Some writers drop batch norm's counters.
    """
    made = {}
    for key, value in expected.items():
        if key not in state and key.rpartition(".")[2] in ("latent_mean_D", "latent_std_D", "count_K"):
            made[key] = torch.zeros(value.shape) if key.endswith("mean_D") else torch.ones(value.shape)
        elif key not in state and key.endswith("sum_KD"):
            made[key] = state[key.removesuffix("sum_KD") + "codebook_KD"].clone()
        elif key not in state and key.endswith(".num_batches_tracked"):
            made[key] = torch.zeros(value.shape, dtype=value.dtype)
    return made
