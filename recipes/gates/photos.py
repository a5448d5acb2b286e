"""The held-out photographs: two tokenizers, and JPEG and WebP at the rates of both, with the same measures.

Shape letters: B batch, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from recipes.gates.figures import Figure, Findings, merge
from tokenizers_mm.api import Tokens
from tokenizers_mm.data import pad_to_multiple, to_tensor, to_uint8, unpad
from tokenizers_mm.data.sets import heldout_photos
from tokenizers_mm.losses import Perceptual
from tokenizers_mm.measure import (
    Codec,
    CodecResult,
    Protocol,
    encode_at_rate,
    evaluate,
    perceptual_distance,
    psnr,
    ssim,
)
from tokenizers_mm.models import Autoencoder
from tokenizers_mm.report import Pixels, false_colour
from tokenizers_mm.saving import fingerprint

__all__ = ["CODECS", "PHOTO_TARGETS", "PICTURES", "TOKENIZERS", "measure_photos", "save_picture"]

PICTURES = "pictures"
TOKENIZERS = ("fsq", "vae")
CODECS: dict[Codec, str] = {"jpeg": "JPEG", "webp": "WebP"}
PHOTO_TARGETS = {("china", "fsq"): 20.0, ("flower", "fsq"): 25.5, ("china", "vae"): 21.5, ("flower", "vae"): 29.0}
_REFERENCE = "photographs of scikit-learn, held out, whole"
# Measurements of `evaluate`: the rate of each tokenizer; path, unit and factor of what its codes look like.
_RATES = {"fsq": "Rate per pixel", "vae": "KL per pixel"}
_CODE_FIGURES = {
    "Code usage": ("usage", "share", 0.01),
    "Perplexity": ("perplexity", "codes", 1.0),
    "Marginal entropy": ("entropy", "bits per token", 1.0),
}
_SMALLEST_RATE = 1e-3


@torch.no_grad()
def measure_photos(folder: Path, network: Perceptual | None, progress: Callable[[str], None]) -> Findings:
    """Measure the runs photos_fsq and photos_vae of a demo folder; pictures go to folder/pictures."""
    models = {name: Autoencoder.from_pretrained(folder / f"photos_{name}" / "tokenizer") for name in TOKENIZERS}
    parts = []
    for photo, pixels in heldout_photos().items():
        progress(f"photograph {photo}: two tokenizers, JPEG, WebP")
        save_picture(folder, f"{photo}_original", pixels)
        for name, model in models.items():
            part = _measure_tokenizer(folder, photo, pixels, name, model, network)
            rate = max(part.value(f"photos/{photo}/{name}/rate"), _SMALLEST_RATE)
            parts += [part, *(_measure_codec(folder, photo, pixels, name, codec, rate, network) for codec in CODECS)]
    return merge(parts)


def save_picture(folder: Path, name: str, pixels: Pixels) -> None:
    """Write folder/pictures/name.png."""
    (folder / PICTURES).mkdir(exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(folder / PICTURES / f"{name}.png")


def _measure_tokenizer(
    folder: Path, photo: str, pixels: Pixels, name: str, model: Autoencoder, network: Perceptual | None
) -> Findings:
    path, record = f"photos/{photo}/{name}", f"{photo.title()}, {name.upper()}"
    result = evaluate(
        model,
        [to_tensor(pixels)[None]],
        protocol=Protocol(reference=_REFERENCE, ema=True),
        perceptual=network,
        pad=True,
    )
    decoded, tokens = _reconstruct(model, pixels)
    save_picture(folder, f"{photo}_{name}", decoded)
    nominal = model.spec.bits_per_pixel
    figures = {
        f"{path}/psnr": Figure(
            value=result["PSNR"].value, unit="dB", protocol=record, at_least=PHOTO_TARGETS.get((photo, name))
        ),
        f"{path}/ssim": Figure(value=result["SSIM"].value, unit="", protocol=record),
        f"{path}/rate": Figure(value=result[_RATES[name]].value, unit="bits per pixel", protocol=record),
        f"{path}/nominal": Figure(value=nominal, unit="bits per pixel", protocol=record),
    }
    if network is not None:
        figures[f"{path}/perceptual"] = Figure(value=result[network.name].value, unit="", protocol=record)
    if tokens.codes_BNS is not None:
        save_picture(folder, f"{photo}_tokens", false_colour(tokens.codes_BNS[0, :, 0].reshape(tokens.grid).numpy()))  # type: ignore[arg-type]
        for measure, (end, unit, factor) in _CODE_FIGURES.items():
            figure = result[measure]
            figures[f"{path}/{end}"] = Figure(value=factor * figure.value, unit=unit, protocol=record, note=figure.note)
        figures[f"{path}/tokens"] = Figure(value=tokens.data.shape[1], unit="tokens", protocol=record)
        figures[f"{path}/vocabulary"] = Figure(value=model.spec.codes[0], unit="codes", protocol=record)
    last = result[network.name if network else "PSNR"].protocol  # the record that names the network, if there is one
    protocol = {"tokenizer": fingerprint(model), **asdict(last), "rate": _rate_words(name, nominal)}
    return Findings(figures=figures, protocols={record: protocol})


def _rate_words(name: str, nominal: float) -> str:
    if name == "fsq":
        return f"log2 of the vocabulary for every token, {nominal:.4g} bits per pixel, and the tokens of the padding"
    return f"KL of the posterior to a standard normal, of this photograph; stored as 16-bit numbers: {nominal:.4g}"


def _reconstruct(model: Autoencoder, pixels: Pixels) -> tuple[Pixels, Tokens]:
    image_BCHW, size = pad_to_multiple(to_tensor(pixels)[None], model.downsampling)
    tokens = model.encode(image_BCHW)
    return to_uint8(unpad(model.decode(tokens), size))[0].permute(1, 2, 0).numpy(), tokens


def _measure_codec(
    folder: Path, photo: str, pixels: Pixels, name: str, codec: Codec, rate: float, network: Perceptual | None
) -> Findings:
    """JPEG or WebP with at most the bits that tokenizer `name` spent on this photograph."""
    path = f"photos/{photo}/{codec}_at_{name}"
    record = f"{photo.title()}, {CODECS[codec]} at the rate of {name.upper()}"
    result = encode_at_rate(pixels, codec, rate)
    save_picture(folder, f"{photo}_{codec}_at_{name}", result.pixels)
    image, target = to_tensor(result.pixels)[None], to_tensor(pixels)[None]
    values = {"psnr": (float(psnr(image, target)), "dB"), "ssim": (float(ssim(image, target)), "")}
    values["rate"] = (result.bpp, "bits per pixel")
    if network is not None:
        values["perceptual"] = (float(perceptual_distance(network, image, target)), "")
    note = "" if result.reached else "the smallest file there is; it is above the rate"
    figures = {
        f"{path}/{end}": Figure(value=value, unit=unit, protocol=record, note=note)
        for end, (value, unit) in values.items()
    }
    return Findings(figures=figures, protocols={record: _codec_record(result)})


def _codec_record(result: CodecResult) -> dict[str, object]:
    return {
        "reference": _REFERENCE,
        "rate": "every byte of the file, headers too",
        "choice": "the highest quality within the rate; of all variants the one of highest PSNR",
        **{name: value for name, value in result.record().items() if name != "psnr"},
    }
