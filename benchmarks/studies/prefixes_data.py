"""What the prefix study measures on held-out emoji: pictures of the first k tokens, and what frozen features know."""

import numpy as np
import torch

from tokenizers_mm.api import Tokens
from tokenizers_mm.data import to_uint8
from tokenizers_mm.data.sets.emoji import emoji
from tokenizers_mm.measure import (
    FeatureStatistics,
    batches_of,
    cross_validate,
    extractor,
    frechet_distance,
    linear_probe,
    mean_psnr,
    pooled_features,
)

# Pixels a side that the network of the distance sees: 32 of an image, enlarged.
EXTRACTOR_SIZE = 64
# Shares of the tokens whose pictures are compared as a distribution.
DISTANCES = (1 / 8, 1 / 4, 1 / 2, 1)
_FOLDS, _BATCH = 5, 64


class Images:
    """Held-out emoji and all of them, and the network that distances are measured in.

    count  use only so many held-out ones, and eight times as many of all
    """

    def __init__(self, size, count=None):
        every, held_out, train = (emoji(split, size) for split in ("all", "test", "train"))
        self.test = held_out if count is None else _spread(held_out, count)
        self.every = every if count is None else _spread(every, 8 * count)
        self.train = _spread(train, len(self.test))
        self.extractor = extractor("lite0", input_size=EXTRACTOR_SIZE)
        self._real = self._statistics(self.test.images_NHWC)

    def distance(self, images_NHWC):
        """Frechet distance to the held-out emoji."""
        return frechet_distance(self._statistics(images_NHWC), self._real)

    def anchors(self):
        """What any figure lies above or below: other real emoji, and one mean picture for all."""
        mean_HWC = emoji("train", self.test.images_NHWC.shape[1]).images_NHWC.mean(0).round().astype(np.uint8)
        mean_NHWC = np.broadcast_to(mean_HWC, self.test.images_NHWC.shape)
        return {
            "distance_name": self.extractor.distance_name,
            "images": len(self.test),
            "mean_picture_psnr": mean_psnr(mean_NHWC, self.test.images_NHWC),
            "training_images_distance": self.distance(self.train.images_NHWC),
        }

    def prefixes(self, tokenizer):
        """PSNR for every number of tokens, from one to all, and the distance for some."""
        lengths = range(1, tokenizer.spec.length + 1)
        pictures = {k: [] for k in lengths}
        mean_ND = None if tokenizer.spec.layout == "nested" else mean_vectors(tokenizer, batches_of(self.train))
        for image_BCHW in batches_of(self.test, _BATCH):
            for k, decoded_BCHW in decoded_prefixes(tokenizer, image_BCHW, lengths, mean_ND):
                pictures[k].append(to_uint8(decoded_BCHW).permute(0, 2, 3, 1).numpy())
        images = {k: np.concatenate(parts) for k, parts in pictures.items()}
        return {
            "tokens": list(lengths),
            "bits": [k * tokenizer.spec.bits_per_image / tokenizer.spec.length for k in lengths],
            "psnr": [mean_psnr(images[k], self.test.images_NHWC) for k in lengths],
            "distance": [self.distance(images[k]) if k / len(lengths) in DISTANCES else None for k in lengths],
        }

    def frozen(self, tokenizer):
        """PSNR of held-out emoji, and how well a linear probe reads their groups off the mean latent."""
        parts = [to_uint8(tokenizer.decode(tokenizer.encode(x))) for x in batches_of(self.test, _BATCH)]
        images_NHWC = torch.cat(parts).permute(0, 2, 3, 1).numpy()
        features_ND = pooled_features(tokenizer, batches_of(self.every))
        folds, names = self.every.folds(_FOLDS), self.every.classes
        result = cross_validate(linear_probe, features_ND, self.every.labels_N, folds, names=names)
        return {
            "psnr": mean_psnr(images_NHWC, self.test.images_NHWC),
            "distance": self.distance(images_NHWC),
            "probe": 100 * result.accuracy,
            "majority": 100 * result.majority,
        }

    def _statistics(self, images_NHWC):
        statistics = FeatureStatistics.of(self.extractor(_levels(images_NHWC[:_BATCH])))
        for start in range(_BATCH, len(images_NHWC), _BATCH):
            statistics.update(self.extractor(_levels(images_NHWC[start : start + _BATCH])))
        return statistics


@torch.no_grad()
def decoded_prefixes(tokenizer, image_BCHW, lengths, mean_ND=None):
    """Pairs (k, images of the first k tokens).

    mean_ND  for tokens that are not nested: what stands in place of those that are missing
    """
    tokens = tokenizer.encode(image_BCHW)
    for k in lengths:
        if mean_ND is None:
            yield k, tokenizer.decode(Tokens(codes_BNS=tokens.data[:, :k], grid=(k,)))
            continue
        vectors = tokenizer.vectors(tokens)
        missing_BND = mean_ND[k:].expand(len(tokens), -1, -1)
        yield k, tokenizer.pixels(vectors._replace(z_BND=torch.cat([vectors.z_BND[:, :k], missing_BND], 1)))


@torch.no_grad()
def mean_vectors(tokenizer, batches):
    """Mean vector [N, D] of every token, the best single guess of one that is missing."""
    return torch.cat([tokenizer.vectors(tokenizer.encode(image_BCHW))[0] for image_BCHW in batches]).mean(0)


def _spread(data, count):
    """So many images, or all there are, from beginning to end."""
    return data.subset(np.linspace(0, len(data) - 1, min(count, len(data))).astype(int))


def _levels(images_NHWC):
    return torch.from_numpy(np.ascontiguousarray(images_NHWC)).permute(0, 3, 1, 2).float()
