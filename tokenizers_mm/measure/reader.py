"""Text recogniser (CTC) for pictures of words: it measures how many characters a tokenizer loses.

A small convolutional network looks along the picture and says at each place which character it sees, or none
(connectionist temporal classification, Graves et al., "Connectionist Temporal Classification", ICML 2006,
https://www.cs.toronto.edu/~graves/icml_2006.pdf). It is trained on original pictures and has never seen a
reconstruction. Before it looks, colours are reduced to brightness along the picture's own main direction, letters up:
what it reads is shape, not colour.

Training this way stands still for long before it finds out which place belongs to which character. So it begins with a
guess, that the characters of a word are equally wide, and classifies places; after a fifth of the steps nobody guesses.

Shape letters: B batch, H and W pixels, T places along the width, V characters and the blank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_mm.data.sets import ALPHABET
from tokenizers_mm.data.sets.words import words

__all__ = ["Reader", "character_accuracy", "edit_distance", "train_reader"]

_HEIGHT = 32
_BLANK = 0
_GUESSED_SHARE = 0.2
_INK = 0.5  # standard deviations above the mean


class Reader(nn.Module):
    """Reads pictures of words, any size with the letters along the width; pictures are scaled to 32 pixels of height.

    `forward` gives log-probabilities [B, T, V], `read` the texts.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width={width}: expected at least 1 channel")
        c = width
        self.look = nn.Sequential(
            nn.PixelUnshuffle(2),
            *_block(4, c, (3, 3), (2, 1)),
            *_block(c, 2 * c, (3, 3), (2, 1)),
            *_block(2 * c, 4 * c, (4, 3), (1, 1), (0, 1)),
            *_block(4 * c, 4 * c, (1, 5), (1, 1)),
            nn.Dropout(0.1),
        )
        self.name = nn.Conv2d(4 * c, len(ALPHABET) + 1, 1)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Log-probabilities [B, T, V] of images [B, 3, H, W] in [-1, 1]; T is half the width at a height of 32."""
        if image_BCHW.ndim != 4 or image_BCHW.shape[1] != 3:
            raise ValueError(f"image_BCHW has shape {tuple(image_BCHW.shape)}: expected pictures [B, 3, H, W]")
        height, width = image_BCHW.shape[2:]
        if height != _HEIGHT:
            shape = (_HEIGHT, max(round(width * _HEIGHT / height), 2))
            image_BCHW = F.interpolate(image_BCHW, shape, mode="bicubic", antialias=True)
        features_BCT: Tensor = self.name(self.look(_letters_up(image_BCHW))).squeeze(2)
        return features_BCT.transpose(1, 2).float().log_softmax(-1)

    @torch.inference_mode()
    def read(self, image_BCHW: Tensor, batch_size: int = 256) -> list[str]:
        """The text in each picture: at every place the likeliest character, repetitions and blanks taken out."""
        texts = []
        was_training = self.training
        self.eval()
        for part_BCHW in torch.split(image_BCHW, batch_size):
            for places in self(part_BCHW).argmax(-1).tolist():
                kept = [v for v, before in zip(places, [_BLANK, *places], strict=False) if v not in (_BLANK, before)]
                texts.append("".join(ALPHABET[v - 1] for v in kept))
        self.train(was_training)
        return texts


def train_reader(
    *,
    steps: int = 1200,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    seed: int = 0,
    size: tuple[int, int] = (32, 96),
    pool: int = 20_000,
    progress: Callable[[int, float], None] | None = None,
) -> Reader:
    """Train a reader on words of the training split; the same seed and fonts give the same reader on one machine.

    A little noise, and blur on a quarter of each batch, keep it from hanging on exact pixels: reconstructions are soft.

    pool      number of different pictures it sees
    progress  called with step and loss every 50 steps
    """
    if min(steps, batch_size, pool) < 1:
        raise ValueError(f"steps={steps}, batch_size={batch_size}, pool={pool}: each must be at least 1")
    data = words("train", pool, seed, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = Reader()
        optimizer = torch.optim.AdamW(reader.parameters(), lr=learning_rate, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1, pct_start=0.15)
        for step in range(steps):
            chosen = torch.randint(len(data), (batch_size,)).tolist()
            loss_of = _guessed_loss if step < _GUESSED_SHARE * steps else _loss
            loss = loss_of(reader, _distorted(data.tensor(chosen)), [data.captions[i] for i in chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(reader.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            if progress and (step + 1) % 50 == 0:
                progress(step + 1, loss.item())
    return reader.eval()


def character_accuracy(reader: Reader, image_BCHW: Tensor, texts: Sequence[str]) -> float:
    """Share of characters that were read: 1 - edit distance / length, summed over the pictures; 0 is the least.

    Reading nothing, or as many wrong characters as there are, gives 0. Raises `ValueError` where pictures and texts do
    not pair, or a text holds anything but the 36 characters.
    """
    if len(texts) != len(image_BCHW) or not texts:
        raise ValueError(f"texts: {len(texts)} for {len(image_BCHW)} pictures; they must pair one to one")
    for number, text in enumerate(texts):
        if not text or set(text) - set(ALPHABET):
            raise ValueError(f"texts[{number}]={text!r}: expected one or more of {ALPHABET}")
    wrong = sum(edit_distance(text, read) for text, read in zip(texts, reader.read(image_BCHW), strict=True))
    return max(0.0, 1 - wrong / sum(map(len, texts)))


def edit_distance(one: str, other: str) -> int:
    """Least number of inserted, deleted and replaced characters between two texts (Levenshtein, 1966)."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        corner, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (a != b))
    return row[-1]


def _letters_up(image_BCHW: Tensor) -> Tensor:
    """One channel [B, 1, H, W]: the main colour direction, unit variance, the border (mostly ground) negative."""
    pixels_BCP = image_BCHW.flatten(2).float()
    pixels_BCP = pixels_BCP - pixels_BCP.mean(2, keepdim=True)
    covariance_BCC = pixels_BCP @ pixels_BCP.transpose(1, 2) / pixels_BCP.shape[2]
    direction_BC = torch.linalg.eigh(covariance_BCC).eigenvectors[..., -1]
    grey_BHW: Tensor = (direction_BC[:, :, None] * pixels_BCP).sum(1).view(-1, *image_BCHW.shape[2:])
    border_BP = torch.cat([grey_BHW[:, 0], grey_BHW[:, -1], grey_BHW[:, :, 0], grey_BHW[:, :, -1]], dim=1)
    sign_B = torch.where(border_BP.mean(1) > 0, -1.0, 1.0)
    scale_B = sign_B / grey_BHW.flatten(1).std(1).clamp_min(1e-3)
    return (grey_BHW * scale_B[:, None, None])[:, None]


def _distorted(image_BCHW: Tensor) -> Tensor:
    quarter = len(image_BCHW) // 4
    soft = F.avg_pool2d(F.pad(image_BCHW[:quarter], (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    image_BCHW = torch.cat([(soft + image_BCHW[:quarter]) / 2, image_BCHW[quarter:]])
    return image_BCHW + 0.05 * torch.randn_like(image_BCHW)


def _guessed_loss(reader: Reader, image_BCHW: Tensor, texts: Sequence[str]) -> Tensor:
    """Cross-entropy of the places, as if all characters of a word were equally wide; borders between them are blank."""
    logs_BTV = reader(image_BCHW)
    places = logs_BTV.shape[1]
    ink_BT = F.adaptive_max_pool1d(_letters_up(image_BCHW).amax(2), places).squeeze(1) > _INK
    target_BT = torch.full(ink_BT.shape, _BLANK)
    for ink_T, target_T, text in zip(ink_BT, target_BT, texts, strict=True):
        span = ink_T.nonzero()[:, 0]
        position_T = (torch.arange(places) - span[0] + 0.5) / (span[-1] - span[0] + 1) * len(text)
        middle_T = (position_T >= 0) & (position_T < len(text)) & ((position_T % 1 - 0.5).abs() < 0.3)
        codes = torch.tensor([ALPHABET.index(letter) + 1 for letter in text])
        target_T[middle_T] = codes[position_T[middle_T].long()]
    return F.nll_loss(logs_BTV.flatten(0, 1), target_BT.flatten())


def _loss(reader: Reader, image_BCHW: Tensor, texts: Sequence[str]) -> Tensor:
    targets = torch.tensor([ALPHABET.index(letter) + 1 for text in texts for letter in text])
    logs_TBV = reader(image_BCHW).transpose(0, 1)
    places = torch.full((len(texts),), len(logs_TBV))
    return F.ctc_loss(logs_TBV, targets, places, torch.tensor([len(text) for text in texts]), blank=_BLANK)


def _block(
    inward: int, outward: int, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int] | None = None
) -> Sequence[nn.Module]:
    padding = padding if padding is not None else (kernel[0] // 2, kernel[1] // 2)
    return (nn.Conv2d(inward, outward, kernel, stride, padding, bias=False), nn.BatchNorm2d(outward), nn.ReLU())
