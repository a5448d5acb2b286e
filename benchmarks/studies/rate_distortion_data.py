"""What the rate-distortion study measures on: held-out emoji and photographs, and JPEG and WebP on the same pixels."""

import numpy as np
import torch

from tokenizers_mm.data import to_tensor
from tokenizers_mm.data.sets import heldout_photos
from tokenizers_mm.data.sets.emoji import emoji
from tokenizers_mm.measure import Protocol, codec_curve, encode_at_rate, evaluate, mean_psnr, psnr_at_rate

QUALITIES = {"jpeg": range(1, 96), "webp": range(101)}
_BATCH, _WHOLE = 128, 8
_EMOJI = "held-out emoji, 32x32 on white"
_PHOTO_RATES = (0.1, 0.15625, 0.25, 0.4, 0.625, 1.0)


def images_of(group):
    """Sets of uint8 images [N, H, W, 3] by name; photographs lose the rows that no tokenizer of the study can take."""
    if not group.startswith("photos"):
        return {"emoji": emoji("test", 32).images_NHWC}
    return {
        name: pixels[None, : pixels.shape[0] // _WHOLE * _WHOLE, : pixels.shape[1] // _WHOLE * _WHOLE]
        for name, pixels in heldout_photos().items()
    }


def figures(tokenizer, images_NHWC):
    """Reconstruction, rate and code statistics of one tokenizer on one set of images, plain numbers."""
    tokenizer = _for_size(tokenizer, images_NHWC.shape[1:3])
    batches = [torch.cat([to_tensor(image)[None] for image in part]) for part in _parts(images_NHWC)]
    result = evaluate(tokenizer, batches, protocol=Protocol(reference=_EMOJI, ema=True))
    found = {"psnr": result["PSNR"].value, "psnr_of_mean_error": result["PSNR of mean error"].value}
    found["ssim"] = result["SSIM"].value
    if result.codes is None:
        found["bits_per_pixel"] = result["KL per pixel"].value
        found["psnr_of_samples"] = sampled_psnr(tokenizer, images_NHWC)
        return found
    found["bits_per_pixel"] = result["Rate per pixel"].value
    found["entropy_per_pixel"] = result["Marginal entropy per pixel"].value
    found["usage"] = list(result.codes.usage)
    found["perplexity"] = list(result.codes.perplexity)
    found["tokens"] = result.codes.tokens
    return found


@torch.no_grad()
def sampled_psnr(tokenizer, images_NHWC):
    """PSNR of reconstructions of posterior samples: what the bits of the KL pay for (the mode says more)."""
    generator = torch.Generator().manual_seed(0)
    values = []
    for part in _parts(images_NHWC):
        image_BCHW = torch.cat([to_tensor(image)[None] for image in part])
        decoded_BCHW = tokenizer.decode(tokenizer.encode(image_BCHW, sample=generator))
        pixels_BCHW = ((decoded_BCHW.clamp(-1, 1) + 1) * 127.5).round().byte()
        values += [mean_psnr(pixels_BCHW.permute(0, 2, 3, 1).numpy(), part)] * len(part)
    return float(np.mean(values))


def codecs(group, rate):
    """For every set and codec: the curve, and the best point within `rate` bits per pixel.

    Emoji are written as one file of all tiles, photographs one by one.
    """
    found = {}
    for name, images_NHWC in images_of(group).items():
        for codec in QUALITIES:
            if group.startswith("photos"):
                points = [_photo_point(images_NHWC[0], codec, target) for target in _PHOTO_RATES]
                found[f"{name}/{codec}"] = {"curve": points, "at_rate": _photo_point(images_NHWC[0], codec, rate)}
            else:
                curve = codec_curve(list(images_NHWC), codec, QUALITIES[codec], below=1.1)
                points = [point.record() for point in curve]
                found[f"{name}/{codec}"] = {"curve": points, "at_rate": best_within(curve, rate)}
    return found


def best_within(curve, rate):
    """The point of highest PSNR within a rate, or None where every file is larger.

    Qualities are coarse, so it may spend less than it might: `interpolated` is the PSNR of the curve at just this rate.
    """
    within = [point for point in curve if point.bpp <= rate]
    return within[-1].record() | {"interpolated": psnr_at_rate(curve, rate) or within[-1].psnr} if within else None


def _photo_point(pixels, codec, rate):
    result = encode_at_rate(np.ascontiguousarray(pixels), codec, rate)
    return {"bpp": result.bpp, "psnr": result.psnr, "quality": result.quality, "reached": result.reached}


def _for_size(tokenizer, size):
    """A multi-scale tokenizer takes one size only: its scales grow with the image, in the same proportions."""
    if tokenizer.spec.layout != "scales":
        return tokenizer
    grid = [side // tokenizer.downsampling for side in size]
    finest = tokenizer.bottleneck.scales[-1]
    scales = [[round(full * h / most) for full, h, most in zip(grid, scale, finest, strict=True)]
              for scale in tokenizer.bottleneck.scales]  # fmt: skip
    return tokenizer.with_scales(scales)


def _parts(images_NHWC):
    return [images_NHWC[start : start + _BATCH] for start in range(0, len(images_NHWC), _BATCH)]
