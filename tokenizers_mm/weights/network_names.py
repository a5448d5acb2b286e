"""Names of pretrained networks from elsewhere, checked before torch or any of their libraries is imported.

    tower       timm:MODEL[.TAG], open_clip:MODEL/PRETRAINED, lite0
    perceptual  lpips-vgg, lpips-alex, lpips-squeeze, lite0, timm:MODEL
    extractor   inception, inception-pytorch, lite0, timm:MODEL, open_clip:MODEL/PRETRAINED

Whether a library has such a model only the library knows.
"""

from __future__ import annotations

__all__ = ["INCEPTIONS", "LPIPS_BACKBONES", "TOWERS", "check_extractor", "check_perceptual", "check_tower", "is_tower"]

# Where a tower's network comes from, and the licence of that code.
TOWERS = {"timm": "Apache-2.0", "open_clip": "MIT", "lite0": "Apache-2.0"}
# LPIPS network -> file of its backbone, as torchvision publishes it.
LPIPS_BACKBONES = {
    "vgg": "vgg16-397923af.pth",
    "alex": "alexnet-owt-7be5be79.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
INCEPTIONS = ("inception", "inception-pytorch")


def is_tower(name: str) -> bool:
    """Whether this names a tower: a library and a model of it, or lite0."""
    library, _, model = name.partition(":")
    return library in TOWERS and bool(model) != (library == "lite0")


def check_tower(name: str) -> None:
    """Raise `ValueError` unless this names a tower."""
    if not is_tower(name):
        raise ValueError(f"name={name!r}: expected timm:MODEL, open_clip:MODEL/PRETRAINED or lite0")


def check_perceptual(name: str) -> None:
    """Raise `ValueError` unless this names a perceptual distance."""
    known = [f"lpips-{net}" for net in LPIPS_BACKBONES] + ["lite0"]
    if name not in known and not (name.startswith("timm:") and is_tower(name)):
        raise ValueError(f"name={name!r}: expected one of {', '.join(known)}, timm:MODEL")


def check_extractor(name: str) -> None:
    """Raise `ValueError` unless this names an extractor of features for Frechet distances."""
    if name not in INCEPTIONS and not is_tower(name):
        raise ValueError(f"name={name!r}: expected {', '.join(INCEPTIONS)}, lite0, timm:MODEL or open_clip:NAME/TAG")
