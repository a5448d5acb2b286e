"""Everything that becomes a position of the transformer: codes, latents, places in the grid, conditions.

Shape letters: B batch, N positions, S streams, V rows of a table, D channels of a latent, E width, W text pieces,
P prefix positions, K coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from backbones import text
from tokenizers_mm.api import Condition, TokenSpec
from tokenizers_mm.blocks import zero_linear
from tokenizers_mm.geometry import single_grids


class CodeEmbedding(nn.Module):
    """Vectors of codes: a learned row per code, plus an MLP of the code's own vector where a codebook is given.

    Codes that look alike then start alike, which teaches captions several times faster than ids alone.

    codes        vocabulary of each stream
    codebook_VD  vectors of all codes, the streams' tables below each other (V = sum of `codes`)
    """

    codebook: Tensor | None
    offsets: Tensor

    def __init__(self, codes: tuple[int, ...], width: int, codebook_VD: Tensor | None = None) -> None:
        super().__init__()
        offsets = [sum(codes[:stream]) for stream in range(len(codes))]
        self.register_buffer("offsets", torch.tensor(offsets), persistent=False)
        self.register_buffer("codebook", None if codebook_VD is None else standardized(codebook_VD, codes))
        self.table = nn.Embedding(sum(codes), width)
        nn.init.normal_(self.table.weight, std=0.5 if codebook_VD is None else 0.02)
        if codebook_VD is not None:
            dim = codebook_VD.shape[1]
            self.mlp = nn.Sequential(nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, codes: Tensor, stream: int | None = None) -> Tensor:
        """Vectors [..., S, E] of codes [..., S]; with `stream`, [..., E] of codes [...] of that stream alone."""
        rows = codes + (self.offsets if stream is None else self.offsets[stream])
        x: Tensor = self.table(rows)
        return x if self.codebook is None else x + self.mlp(self.codebook[rows])


def standardized(codebook_VD: Tensor, codes: tuple[int, ...]) -> Tensor:
    """The codebook in float32 with mean 0 and deviation 1 in every channel; `ValueError` where its rows do not fit."""
    if codebook_VD.ndim != 2 or len(codebook_VD) != sum(codes):
        raise ValueError(
            f"codebook_VD has shape {tuple(codebook_VD.shape)}: expected one row for each of the "
            f"{sum(codes)} codes of vocabularies {codes}"
        )
    table = codebook_VD.detach().float()
    return (table - table.mean(0)) / table.std(0).clamp_min(1e-6)


class CodeHead(nn.Module):
    """Logits of one stream: a learned row per code, plus features of the code's own vector where there is one.

    What is learned about a code then holds for the codes that look alike. All logits start at zero.
    """

    def __init__(self, size: int, width: int, dim: int | None) -> None:
        super().__init__()
        self.rows = zero_linear(width, size)
        self.features = None if dim is None else nn.Linear(dim, width)
        if dim is not None:
            self.gain = nn.Parameter(torch.zeros(width))

    def forward(self, h: Tensor, codebook_VD: Tensor | None) -> Tensor:
        """Logits [..., V] of hidden states [..., E]; `codebook_VD` holds the vectors of this stream's codes."""
        if self.features is None or codebook_VD is None:
            logits: Tensor = self.rows(h)
            return logits
        shared_VE = nn.functional.silu(self.features(codebook_VD)) * self.gain
        return nn.functional.linear(h, self.rows.weight + shared_VE, self.rows.bias)


class GridEmbedding(nn.Module):
    """Learned place of every position: one table per coordinate, summed."""

    places: Tensor

    def __init__(self, spec: TokenSpec, width: int) -> None:
        super().__init__()
        coordinate_NK = coordinates(spec)
        self.register_buffer("places", coordinate_NK, persistent=False)
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in (coordinate_NK.amax(0) + 1).tolist())
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.3)  # type: ignore[arg-type]

    def forward(self) -> Tensor:
        """Vectors [N, E]."""
        columns = (table(index_N) for table, index_N in zip(self.tables, self.places.T, strict=True))
        return torch.stack(list(columns)).sum(0)


def coordinates(spec: TokenSpec) -> Tensor:
    """Integer coordinates [N, K] of the grid: (row, column), (place,), or (scale or part, row, column)."""
    each = [torch.cartesian_prod(*map(torch.arange, grid)).reshape(-1, len(grid)) for grid in single_grids(spec.grid)]
    if spec.layout not in ("scales", "parts"):
        return each[0]
    return torch.cat([nn.functional.pad(place_NK, (1, 0), value=number) for number, place_NK in enumerate(each)])


class PieceEmbedding(nn.Module):
    """One vector per word of a caption: the bytes' embeddings side by side, through an MLP."""

    def __init__(self, width: int, byte_width: int = 24) -> None:
        super().__init__()
        self.bytes = nn.Embedding(text.PAD + 1, byte_width)
        self.mlp = nn.Sequential(nn.Linear(text.PIECE * byte_width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, ids_BWP: Tensor) -> Tensor:
        """Vectors [B, W, E] of pieces [B, W, bytes]."""
        x: Tensor = self.mlp(self.bytes(ids_BWP).flatten(2))
        return x


class ConditionEmbedding(nn.Module):
    """The prefix of a condition: a learned first position, then one per word of the caption or one class.

    The first position alone is the null condition (what classifier-free guidance compares with).
    """

    def __init__(self, width: int, *, classes: int, max_text: int) -> None:
        super().__init__()
        self.classes, self.max_text = classes, max_text
        self.first = nn.Parameter(torch.randn(width) * 0.3)
        self.entry = nn.Embedding(classes, width) if classes else PieceEmbedding(width)

    def forward(self, condition: Condition, drop_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Prefix [B, P, E] and the mask [B, P] of what is not padding; rows in `drop_B` become the null condition."""
        ids, valid_BP = self._ids(condition)
        x_BPE = self.entry(ids.to(self.first.device))
        x_BPE = torch.cat([self.first.to(x_BPE.dtype).expand(len(x_BPE), 1, -1), x_BPE], 1)
        valid_BP = valid_BP.to(x_BPE.device)
        if drop_B is not None:
            valid_BP = valid_BP & ~drop_B[:, None]
        return x_BPE, torch.cat([valid_BP.new_ones(len(valid_BP), 1), valid_BP], 1)

    def _ids(self, condition: Condition) -> tuple[Tensor, Tensor]:
        if self.classes:
            labels_B = check_labels(condition, self.classes)
            return labels_B[:, None], torch.ones_like(labels_B[:, None], dtype=torch.bool)
        if isinstance(condition, Tensor):
            raise ValueError("condition is a tensor of labels but this generator reads captions (classes=0)")
        return text.encode_pieces(condition, self.max_text)


def check_condition(classes: int, drop_condition: float, max_text: int) -> None:
    """Raise `ValueError` for options of a condition that mean nothing."""
    if classes < 0:
        raise ValueError(f"classes={classes}: expected 0 (captions) or the number of class labels")
    if not 0 <= drop_condition <= 1:
        raise ValueError(f"drop_condition={drop_condition}: expected a share in [0, 1]")
    if max_text < 1:
        raise ValueError(f"max_text={max_text}: a caption needs at least 1 byte")


def check_labels(condition: Condition, classes: int) -> Tensor:
    """Labels [B] int64 in 0..classes-1, or `ValueError`."""
    if not isinstance(condition, Tensor) or condition.ndim != 1 or condition.dtype != torch.int64:
        raise ValueError(f"this generator reads class labels: expected an int64 tensor [B] of 0..{classes - 1}")
    if not len(condition):
        raise ValueError("labels are empty: expected one label per image")
    low, high = int(condition.min()), int(condition.max())
    if low < 0 or high >= classes:
        raise ValueError(f"labels lie in [{low}, {high}]: this generator has the classes 0..{classes - 1}")
    return condition


def condition_of(captions: Sequence[str], labels_B: Tensor | None, *, classes: int, batch: int) -> Condition:
    """The condition a batch of `batch` images trains on; `ValueError` where it is missing or does not pair."""
    if not batch:
        raise ValueError("the batch holds no images")
    if classes and labels_B is None:
        raise ValueError(f"classes={classes}: the batch carries no labels_B")
    if not classes and not captions:
        raise ValueError('captions are empty: expected one per image; "" stands for no condition')
    condition: Condition = labels_B if classes and labels_B is not None else captions
    if len(condition) != batch:
        kind = "labels" if classes else "captions"
        raise ValueError(f"{len(condition)} {kind} for {batch} images: they must pair one to one")
    return condition
