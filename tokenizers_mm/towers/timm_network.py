"""timm models as image networks: transformers and convnets alike give a map of features and one pooled vector.

Shape letters: B batch, C image channels, H and W pixels, D channels, h and w positions.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tokenizers_mm.towers.lite0 import lite0_network
from tokenizers_mm.weights import file_sha256, load_strict, read_state, tensors_sha256, unfetched

__all__ = ["TimmNetwork", "lite0_tower", "timm_tower"]

Size = tuple[int, int]


class TimmNetwork(nn.Module):
    """Features of a timm model; images are normalised already.

    layer  block (or stage of a convnet) whose output is taken as it is, negative from the end; None takes the last
           features after the final norm
    """

    def __init__(self, model: Any, layer: int | None, input_size: Size) -> None:
        super().__init__()
        depth = len(model.feature_info)
        if layer is not None and not -depth <= layer < depth:
            raise ValueError(f"layer={layer}: this network has {depth}, 0 to {depth - 1}, or -{depth} to -1")
        self.model, self.layer, self.input_size = model, layer, input_size
        self.mean, self.std = tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"])

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Map [B, D, h, w] without class and register tokens, and what the network itself pools, [B, D']."""
        index, last = (-1, True) if self.layer is None else (self.layer, False)
        final, (map_BDhw,) = self.model.forward_intermediates(x_BCHW, indices=[index], norm=last, output_fmt="NCHW")
        pooled_BD: Tensor = self.model.forward_head(final, pre_logits=True)
        if last and final.ndim == 4:  # a convnet's last features come after its last stage
            channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
            map_BDhw = final.permute(0, 3, 1, 2) if channels_last else final
        return map_BDhw, pooled_BD


def timm_tower(
    name: str, layer: int | None, size: Size | None, weights: Path | None, random_init: bool
) -> tuple[TimmNetwork, str]:
    """Network `name` of timm for images of `size` (default: its own), and the SHA-256 of its weights."""
    import timm  # as long to import as torch, so only where it is used

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"name='timm:{name}': timm has no such model{hint}; see timm.list_models()")
    digest = ""
    try:
        # With its classifier: timm loads with gaps where the number of classes is changed.
        model: Any = timm.create_model(name, pretrained=weights is None and not random_init)
    except Exception as error:  # which errors a broken connection raises depends on the hub client's HTTP library
        raise unfetched(f"timm:{name}", error) from error
    if not hasattr(model, "forward_intermediates"):
        raise ValueError(f"name='timm:{name}': this timm model cannot return intermediate features; choose another")
    model.reset_classifier(0)
    if weights is not None and not random_init:
        _load(model, Path(weights))
        digest = file_sha256(weights)
    return TimmNetwork(model, layer, _resized(model, size, f"timm:{name}")), digest or tensors_sha256(model)


def lite0_tower(
    name: str, layer: int | None, size: Size | None, weights: Path | None, random_init: bool
) -> tuple[TimmNetwork, str]:
    """EfficientNet-Lite0 for images of `size` (default: 224), and the SHA-256 of its weights."""
    model, digest = lite0_network(weights, random_init=random_init)
    model.reset_classifier(0)  # type: ignore[operator]
    return TimmNetwork(model, layer, _resized(model, size, "lite0")), digest


def _load(model: Any, path: Path) -> None:
    """Load a weight file: as it is, or as timm's own reader of published files renames it."""
    classifier = model.pretrained_cfg.get("classifier") or ()
    leftover = [f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier)]
    state = read_state(path)
    try:
        load_strict(model, state, path, leftover=leftover)
    except ValueError:
        rename: Callable[..., Any] | None = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        if rename is None:
            raise
        try:
            renamed = dict(rename(dict(state), model))
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError):
            renamed = state  # a file of another network
        load_strict(model, renamed, path, leftover=leftover)


def _resized(model: Any, size: Size | None, name: str) -> Size:
    """Give the network its input size, positions interpolated by timm; `ValueError` where it takes another only."""
    config = model.pretrained_cfg
    native: Size = tuple(config["input_size"][1:])
    if size is None or size == native:
        return native
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None) or 1
    patch = (patch, patch) if isinstance(patch, int) else tuple(patch)
    if any(side % step for side, step in zip(size, patch, strict=True)):
        raise ValueError(f"input_size={size}: {name} cuts images into patches of {patch}; give multiples of them")
    if hasattr(model, "set_input_size"):
        try:
            model.set_input_size(size)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ValueError(f"input_size={size}: {name} cannot take it ({error}); its own is {native}") from error
    elif config.get("fixed_input_size"):
        raise ValueError(f"input_size={size}: {name} takes {native} only")
    return size
