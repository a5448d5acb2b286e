"""What becomes a position of the transformer beside tokens: places in the grid, and conditions.

Shape letters: B batch, N positions, E width, W text pieces, P prefix positions, K coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from backbones import text
from tokenizers_mm.api import Condition, TokenSpec
from tokenizers_mm.geometry import single_grids


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
            labels_B = labels_of(condition, self.classes)
            if labels_B.device.type == "cpu":  # others were read where they came in: a step waits for no device
                check_labels(labels_B, self.classes)
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


def labels_of(condition: Condition, classes: int) -> Tensor:
    """Labels [B] int64, of which no value is read; `ValueError` for anything else."""
    if not isinstance(condition, Tensor) or condition.ndim != 1 or condition.dtype != torch.int64:
        raise ValueError(f"this generator reads class labels: expected an int64 tensor [B] of 0..{classes - 1}")
    if not len(condition):
        raise ValueError("labels are empty: expected one label per image")
    return condition


def check_labels(condition: Condition, classes: int, known: tuple[int, int] | None = None) -> None:
    """Raise `ValueError` unless all labels are 0..classes-1; captions (classes=0) pass.

    known  least and greatest label; without it the labels are read, which waits for their device
    """
    if not classes:
        return
    labels_B = labels_of(condition, classes)
    low, high = known or (int(labels_B.min()), int(labels_B.max()))
    if low < 0 or high >= classes:
        raise ValueError(f"labels lie in [{low}, {high}]: this generator has the classes 0..{classes - 1}")


def condition_of(
    captions: Sequence[str],
    labels_B: Tensor | None,
    *,
    classes: int,
    batch: int,
    label_range: tuple[int, int] | None = None,
) -> Condition:
    """The condition a batch of `batch` images trains on; `ValueError` where it is missing or does not pair.

    label_range  that of the labels where it is known, see `Batch`
    """
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
    check_labels(condition, classes, label_range)
    return condition
