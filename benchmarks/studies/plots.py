"""What the plots of studies share: pyplot without a screen, and the names and colours of bottlenecks and codecs."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

__all__ = ["COLOURS", "LABELS", "plt", "save"]

LABELS = {
    "vq": "VQ", "rvq": "RVQ", "fsq": "FSQ", "lfq": "LFQ", "bsq": "BSQ", "multiscale": "multi-scale", "vae": "VAE",
    "jpeg": "JPEG", "webp": "WebP",
}  # fmt: skip
COLOURS = {
    "vq": "#1f6f8b", "rvq": "#3aa0c0", "fsq": "#66a182", "lfq": "#d1495b", "bsq": "#edae49", "multiscale": "#8d5b9e",
    "vae": "#222222", "jpeg": "#999999", "webp": "#c8d6dc",
}  # fmt: skip


def save(figure, path):
    """Write a figure and forget it."""
    figure.savefig(path, dpi=110)
    plt.close(figure)
