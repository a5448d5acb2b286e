"""Measurements and their protocols: a number, and how it was made.

Three public evaluators give three scores to the same reconstructions; the record says why. Everything that is
known to move a figure is a field here, so two figures may be compared when their records agree.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

__all__ = ["Measurement", "Original", "Posterior", "Protocol", "Rounding", "Window"]

Rounding = Literal["rounded", "truncated", "float"]
Original = Literal["exact", "truncated"]
Posterior = Literal["none", "mode", "sample"]
Window = Literal["gaussian", "uniform"]
_LISTS = {
    "rounding": get_args(Rounding),
    "frechet_rounding": get_args(Rounding),
    "original": get_args(Original),
    "ssim": get_args(Window),
    "posterior": get_args(Posterior),
}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a figure was made; JSON-able.

    reference         name of the images measured against, e.g. "scikit-image photographs, held out"
    reference_sha256  of their uint8 pixels in order, shapes included
    resize            filter, library and order, e.g. "bicubic, antialiased, on uint8, before the crop"
    crop, padding     what was cut off or added; padding is removed again before anything is compared
    preset            whose conventions these are (`measure.presets`); empty: chosen one by one
    rounding          of the reconstruction, after clamping to 0..255: to the nearest level, towards zero, or not at all
    frechet_rounding  the same for what an extractor of features sees
    original          levels of the original: exact, or truncated again from float32, which lowers 95 of the 256 by one
    ssim, ssim_range  window of SSIM (Gaussian of 11 pixels, or uniform of 7) and its data range on the 0..255 scale
    samples           images measured, N
    extractor         network whose features are compared; its weights' hash beside it
    posterior         latents decoded: the mode, a sample, or none where tokens are discrete
    ema               whether averaged weights were measured; None where there is no average
    dtype             arithmetic of the tokenizer
    """

    reference: str
    reference_sha256: str = ""
    resize: str = "none"
    crop: str = "none"
    padding: str = "none"
    preset: str = ""
    rounding: Rounding = "rounded"
    frechet_rounding: Rounding = "rounded"
    original: Original = "exact"
    ssim: Window = "gaussian"
    ssim_range: float = 255.0
    samples: int = 0
    extractor: str = "none"
    extractor_sha256: str = ""
    posterior: Posterior = "none"
    ema: bool | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Refuse values outside the closed lists."""
        for name, allowed in _LISTS.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(allowed)}")
        if not self.ssim_range > 0:
            raise ValueError(f"ssim_range={self.ssim_range}: expected a positive range")

    def to_json(self) -> str:
        """One line of JSON, fields in alphabetical order: equal protocols give equal text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Protocol:
        """Read what `to_json` wrote; raises `ValueError` on anything else."""
        fields = json.loads(text)
        if not isinstance(fields, dict) or not {"reference"} <= set(fields) <= set(cls.__dataclass_fields__):
            raise ValueError(
                f"protocol {text!r}: expected a JSON object with keys among {list(cls.__dataclass_fields__)}"
            )
        return cls(**fields)


@dataclass(frozen=True)
class Measurement:
    """One figure: what, how much, in what unit, made how; `note` says what a reader must know to trust it."""

    name: str
    value: float
    unit: str
    protocol: Protocol
    note: str = ""

    @property
    def text(self) -> str:
        """The value as it is printed: four significant digits, thousands whole."""
        if math.isfinite(self.value) and abs(self.value) >= 1000:
            return f"{self.value:,.0f}"
        return f"{self.value:.4g}"

    def record(self) -> dict[str, Any]:
        """JSON-able; an infinite value (PSNR of identical images) becomes the text "inf"."""
        return asdict(self) | {"value": self.value if math.isfinite(self.value) else str(self.value)}
