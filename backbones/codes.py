"""Codes become positions of the transformer, and its hidden states become logits of codes.

Shape letters: S streams, V rows of a table, D channels of a code's own vector, E width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenizers_mm.api import Quantizer
from tokenizers_mm.blocks import zero_linear

_LARGEST = 65_536


class CodeEmbedding(nn.Module):
    """Vectors of codes: a learned row per code, plus an MLP of the code's own vector where a codebook is given.

    Codes that look alike then start alike, which teaches captions several times faster than ids alone.

    codes        vocabulary of each stream
    codebook_VD  vectors of all codes, the streams' tables below each other (V = sum of `codes`), see `code_tables`
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


@torch.no_grad()
def code_tables(quantizer: Quantizer) -> Tensor | None:
    """Vectors of all codes [V, D], the streams' tables below each other: what a code adds to its position's vector.

    None without codes or with more than 65 536, and for a kind that does not tell its streams apart.
    """
    codes = quantizer.codes
    if not 0 < sum(codes) <= _LARGEST:
        return None
    device = next((tensor.device for tensor in quantizer.state_dict().values()), torch.device("cpu"))
    tables = []
    for stream, size in enumerate(codes):
        every_1VS = torch.zeros(1, size, len(codes), dtype=torch.int64, device=device)
        every_1VS[..., stream] = torch.arange(size)
        try:
            tables.append(quantizer.stream_vectors(every_1VS)[0, :, stream].float().cpu())
        except ValueError:
            return None
    return torch.cat(tables)


def standardized(codebook_VD: Tensor, codes: tuple[int, ...]) -> Tensor:
    """The codebook in float32 with mean 0 and deviation 1 in every channel of every stream, 0 where one is constant.

    Streams differ in size: what later levels of a residual quantizer add is small, and a group of a product has no
    other group's channels. `ValueError` where the rows do not fit.
    """
    if codebook_VD.ndim != 2 or len(codebook_VD) != sum(codes):
        raise ValueError(
            f"codebook_VD has shape {tuple(codebook_VD.shape)}: expected one row for each of the "
            f"{sum(codes)} codes of vocabularies {codes}"
        )
    tables = torch.split(codebook_VD.detach().float(), list(codes))
    return torch.cat([(table_VD - table_VD.mean(0)) / table_VD.std(0).clamp_min(1e-6) for table_VD in tables])


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
