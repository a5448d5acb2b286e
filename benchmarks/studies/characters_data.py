"""What the character study measures: held-out words, an independent reader, and JPEG and WebP on the same pictures."""

import numpy as np
import torch
from characters_plan import READER
from safetensors.torch import load_file, save_file

from tokenizers_mm.data import to_tensor, to_uint8
from tokenizers_mm.data.sets.words import words
from tokenizers_mm.measure import (
    VARIANTS,
    Reader,
    character_accuracy,
    kl_bits,
    mean_psnr,
    pareto_front,
    train_reader,
    write_images,
)

COUNT = 300
# Of the pictures: not those on which settings were tried.
SEED = 1
QUALITIES = {"jpeg": (5, 10, 20, 40, 70, 92), "webp": (0, 10, 30, 60, 90)}
_BATCH = 100


class Reading:
    """A reader and the words it is asked to read, none of which it or a tokenizer was trained on."""

    def __init__(self, work, count=COUNT, steps=None):
        self.data = words("test", count, SEED)
        self.reader = reader_of(work, READER | ({} if steps is None else {"steps": steps, "pool": 64}))

    def accuracy(self, images_NHWC):
        """Share of the characters that are read in uint8 images."""
        return character_accuracy(self.reader, _tensor(images_NHWC), self.data.captions)

    def anchors(self):
        """The reader on originals, on pictures of other words, and on nothing: what any accuracy is between."""
        images = self.data.images_NHWC
        return {
            "reader": READER,
            "characters": sum(map(len, self.data.captions)),
            "originals": self.accuracy(images),
            "shuffled": self.accuracy(np.roll(images, len(images) // 2, 0)),
            "blank": self.accuracy(np.full_like(images, 128)),
        }

    def figures(self, tokenizer):
        """Accuracy, PSNR and rate of a tokenizer's reconstructions."""
        parts = self.reconstructions(tokenizer)
        images_NHWC = np.concatenate([images for images, _ in parts])
        found = {
            "accuracy": self.accuracy(images_NHWC),
            "psnr": mean_psnr(images_NHWC, self.data.images_NHWC),
            "bits_per_image": float(np.mean([bits for _, bits in parts])),
        }
        if not tokenizer.spec.discrete:
            drawn = self.reconstructions(tokenizer, torch.Generator().manual_seed(0))
            found["accuracy_of_samples"] = self.accuracy(np.concatenate([images for images, _ in drawn]))
        return found

    @torch.no_grad()
    def reconstructions(self, tokenizer, sample=None):
        """Uint8 images and bits an image of every batch; of posterior samples where a generator is given."""
        parts = []
        for start in range(0, len(self.data), _BATCH):
            image_BCHW = self.data.tensor(slice(start, start + _BATCH))
            decoded_BCHW = tokenizer.decode(tokenizer.encode(image_BCHW, sample=sample))
            if tokenizer.spec.discrete:
                bits = tokenizer.spec.bits_per_image
            else:
                bits = float(kl_bits(*tokenizer.posterior(image_BCHW)).mean())
            parts.append((to_uint8(decoded_BCHW).permute(0, 2, 3, 1).numpy(), bits))
        return parts

    def codec(self, name):
        """Points of one codec that no smaller file equals in PSNR: all pictures in one file, so with one header."""
        images, points = list(self.data.images_NHWC), []
        for quality in QUALITIES[name]:
            for options in VARIANTS[name]:
                size, decoded = write_images(images, name, together=True, quality=quality, **options)
                place = {"bits_per_image": 8 * size / len(images), "psnr": mean_psnr(decoded, images)}
                points.append(({"quality": quality, **options} | place, decoded))
        kept = pareto_front(points, lambda point: (point[0]["bits_per_image"], point[0]["psnr"]))
        return [point | {"accuracy": self.accuracy(decoded)} for point, decoded in kept]


def reader_of(work, options):
    """The reader, trained once and kept in the work folder."""
    path = work / f"reader-{options['steps']}-{options['pool']}.safetensors"
    if path.exists():
        reader = Reader()
        reader.load_state_dict(load_file(path))
        return reader.eval()
    reader = train_reader(**options, progress=lambda step, loss: print(f"reader: step {step}  loss {loss:.3f}"))
    work.mkdir(parents=True, exist_ok=True)
    save_file(reader.state_dict(), path)
    return reader


def _tensor(images_NHWC):
    return torch.stack([to_tensor(image) for image in images_NHWC])
