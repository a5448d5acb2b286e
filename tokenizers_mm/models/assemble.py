"""Put a tokenizer together around tensors that are already there, without a second copy of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import quantizers
from tokenizers_mm.config import ConfigError, parse
from tokenizers_mm.models.autoencoder import Autoencoder, AutoencoderConfig, build_autoencoder
from tokenizers_mm.weights import OPTIONS_MAY_DIFFER, CheckpointError, load_strict


def assemble(options: Any, state: Mapping[str, Tensor], where: Path | str) -> Autoencoder:
    """A tokenizer of these options whose parameters are the given tensors themselves, in eval mode.

    The nets are built without memory and take the tensors as they are, mapped from a file or shared with another
    module. Statistics of ours that no public file holds start neutral.

    Raises `CheckpointError` naming missing and unexpected keys, and shapes that contradict the options.
    """
    try:
        config = parse(AutoencoderConfig, options, f"{where}: config")
        with torch.device("meta"):
            model = build_autoencoder(config)
    except CheckpointError:
        raise
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error
    expected = model.state_dict()
    full = {**_neutral(expected, state), **state}
    load_strict(model, full, where, remedy=OPTIONS_MAY_DIFFER, assign=True)
    if any(value.is_meta for value in model.bottleneck.buffers()):  # what a constructor computes and no file holds
        made = quantizers.build(config.bottleneck, "bottleneck")
        made.load_state_dict(model.bottleneck.state_dict(), assign=True)
        model.bottleneck = made
    model.bottleneck.float()  # codebooks of half-precision files: codes are decided in float32
    return model.eval()


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
