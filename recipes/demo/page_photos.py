"""The page's photographs: tokenizers beside JPEG and WebP at the same rates, whoever wins."""

from __future__ import annotations

from collections.abc import Callable

from recipes.gates import CODECS, PHOTO_TARGETS, Findings
from tokenizers_mm.report import Cell, Page, Pixels

__all__ = ["Pictures", "add_photographs"]

Pictures = Callable[[str], Pixels]

_PHOTOS = ("china", "flower")
_CROPS = {"china": (0.42, 0.33), "flower": (0.45, 0.49)}  # where the detail lies, down and across
_CROP_HEIGHT, _CROP_WIDTH = 96, 128


def add_photographs(page: Page, findings: Findings, pictures: Pictures) -> None:
    """Whole, in detail, and in numbers."""
    page.section(
        "Held-out photographs",
        "Two tokenizers learned from random crops of nine photographs and were asked to carry two others, whole. "
        "JPEG and WebP were given at most the same number of bits, every byte of the file counted. The recipes were "
        "tuned while looking at these two: a development result, not a blind one.\n\n"
        "Click a picture and use the arrow keys to flip between versions.",
    )
    versions = {"original": "Original", "fsq": "FSQ", "vae": "VAE", "jpeg_at_fsq": "JPEG", "webp_at_fsq": "WebP"}
    whole: dict[str, list[tuple[Pixels, str]]] = {}
    detail: dict[str, list[tuple[Pixels, str]]] = {}
    for photo in _PHOTOS:
        row = [pictures(f"{photo}_{version}") for version in versions]
        texts = ["24 bits per pixel"] + [_rate_text(findings, f"photos/{photo}/{v}") for v in list(versions)[1:]]
        whole[photo.title()] = list(zip(row, texts, strict=True))
        detail[photo.title()] = [(_detail(picture, *_CROPS[photo]), "") for picture in row]
    columns = list(versions.values())
    page.figure(whole, columns, note="JPEG and WebP here are at the rate of FSQ.")
    page.heading("At the pixel", f"The same pictures, {_CROP_WIDTH} × {_CROP_HEIGHT} pixels of each.")
    page.figure(detail, columns)
    _photo_table(page, findings, "fsq", "At the rate of FSQ", "")
    nominal = findings.value("photos/china/vae/nominal")
    _photo_table(
        page,
        findings,
        "vae",
        "At the rate of the VAE",
        "The rate of a VAE is the KL divergence of its posterior from a standard normal, measured on each photograph: "
        f"what an ideal coder would need. Stored as 16-bit numbers the same latents take {nominal:.3g} bits per pixel.",
    )


def _detail(picture: Pixels, down: float, across: float) -> Pixels:
    height, width = picture.shape[:2]
    top, left = round(max(0, height - _CROP_HEIGHT) * down), round(max(0, width - _CROP_WIDTH) * across)
    return picture[top : top + _CROP_HEIGHT, left : left + _CROP_WIDTH]


def _rate_text(findings: Findings, path: str) -> str:
    return f"{findings.value(f'{path}/psnr'):.1f} dB · {findings.value(f'{path}/rate'):.3f} bpp"


def _photo_table(page: Page, findings: Findings, name: str, title: str, text: str) -> None:
    """One tokenizer, and JPEG and WebP at its rate."""
    network = str(findings.environment["perceptual"])
    rows: list[list[Cell]] = []
    for photo in _PHOTOS:
        for version, words in ((name, name.upper()), (f"jpeg_at_{name}", "JPEG"), (f"webp_at_{name}", "WebP")):
            path = f"photos/{photo}/{version}"
            measures = ("rate", "psnr", "ssim", *(["perceptual"] if network else []))
            values: list[Cell] = [findings.value(f"{path}/{measure}") for measure in measures]
            target = PHOTO_TARGETS.get((photo, version))
            goal: list[Cell] = [None if target is None else f"≥ {target:.1f}", findings[f"{path}/psnr"].reached]
            rows.append([f"{photo.title()}, {words}", *values, *goal])
    columns = ["", "Bits per pixel", "PSNR, dB", "SSIM", *([network] if network else []), "Target, dB", ""]
    page.heading(title, text).table(columns, rows, note=_comparison(findings, name))


def _comparison(findings: Findings, name: str) -> str:
    """Who wins, in words."""
    sentences = []
    for codec, title in CODECS.items():
        leads = [
            findings.value(f"photos/{photo}/{codec}_at_{name}/psnr") - findings.value(f"photos/{photo}/{name}/psnr")
            for photo in _PHOTOS
        ]
        words = [
            f"{abs(lead):.1f} dB {'ahead' if lead > 0 else 'behind'} on {photo}"
            for lead, photo in zip(leads, _PHOTOS, strict=True)
        ]
        sentences.append(f"{title} is {' and '.join(words)}.")
    extra = "Pixels are rounded to 8 bits before they are compared."
    if name == "fsq":
        extra += " The rate counts the tokens of the five rows that were added to reach a multiple of 8."
    return " ".join([*sentences, extra])
