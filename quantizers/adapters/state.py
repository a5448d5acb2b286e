"""State dicts of vector-quantize-pytorch, loaded into quantizers of ours and written from them.

A quantizer is a tree (products, residuals, projections) with leaves that own tensors. Every leaf knows the keys its
tensors have there, and both directions walk the same list of leaves.

Shape letters: H codebooks (heads), K rows, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from quantizers.adapters.reading import UNIT
from quantizers.base import Quantizer
from quantizers.bsq import BSQ
from quantizers.fsq import FSQ
from quantizers.latent import Latent
from quantizers.lfq import LFQ
from quantizers.multiscale import MultiScale
from quantizers.product import Product
from quantizers.projected import Projected
from quantizers.residual import Residual
from quantizers.simvq import SimVQ
from quantizers.vq import VQ

State = dict[str, Tensor]

# A codebook without a history must survive the first training batch. A row is dead below a share of the mean count, so
# the count it starts with decides how large a batch may be: this many vectors.
_LARGEST_BATCH = 2**20


class Leaf:
    """Tensors of ours that have keys there: `tensors`; those in `optional` may be absent from a state dict."""

    optional: tuple[str, ...] = ()

    def __init__(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        self.prefix = prefix
        self.tensors = dict(tensors)

    def read(self) -> State:
        """Tensors under their keys."""
        return {self.prefix + name: tensor.detach().clone() for name, tensor in self.tensors.items()}

    def complaint(self, found: State) -> str:
        """What is wrong with tensors of the right shapes, by name without prefix; "" where nothing is."""
        return ""

    def write(self, found: State) -> None:
        """Take over tensors, by name without prefix."""
        for name, tensor in found.items():
            self.tensors[name].copy_(tensor)


class _Tables(Leaf):
    """The codebook of a VectorQuantize, H rows-by-channels tables, with its averages."""

    optional = ("initted", "cluster_size", "embed_avg")

    def __init__(self, prefix: str, quantizers: list[VQ]) -> None:
        self.prefix, self.quantizers = prefix, quantizers
        self.tensors = self._stacked()

    def _stacked(self) -> State:
        embed = torch.stack([_rows(vq) for vq in self.quantizers])
        count = torch.stack([vq.count_K for vq in self.quantizers])
        total = embed * count[..., None]
        if self.quantizers[0].codebook == "ema":
            total = torch.stack([vq.sum_KD for vq in self.quantizers])
        fresh = count.sum(-1, keepdim=True) == 0
        count, total = torch.where(fresh, 1.0, count), torch.where(fresh[..., None], embed, total)
        return {"initted": torch.tensor(True), "cluster_size": count, "embed_avg": total, "embed": embed}

    def read(self) -> State:
        return {self.prefix + name: tensor.clone() for name, tensor in self._stacked().items()}

    def complaint(self, found: State) -> str:
        if "initted" in found and not bool(found["initted"]):
            return "initted is False: k-means has not run yet, expected a codebook that was initialised"
        error = float((found["embed"].float().norm(dim=-1) - 1).abs().max())
        if self.quantizers[0].metric == "cosine" and error > UNIT:
            return f"embed has rows whose length is off 1 by {error:.1e}: metric='cosine' expects unit vectors"
        return ""

    def write(self, found: State) -> None:
        for i, vq in enumerate(self.quantizers):
            rows_KD = found["embed"][i].to(vq.codebook_KD)
            count_K, sum_KD = found.get("cluster_size"), found.get("embed_avg")
            if count_K is None or bool((count_K[i] == count_K[i, 0]).all()):
                start = max(1.0, vq.revive * _LARGEST_BATCH / vq.size)
                mine_K, mine_KD = torch.full_like(vq.count_K, start), rows_KD * start
            else:
                mine_K = count_K[i].to(vq.count_K)
                mine_KD = rows_KD * mine_K[:, None] if sum_KD is None else sum_KD[i].to(rows_KD)
            state = {"codebook_KD": rows_KD, "count_K": mine_K}
            vq.load_state_dict(state | ({"sum_KD": mine_KD} if vq.codebook == "ema" else {}))


def _rows(vq: VQ) -> Tensor:
    """Rows [K, D] as they are kept, if those are the rows that codes stand for: normalising twice would round twice."""
    kept_KD = vq.codebook_KD.detach()
    unit = bool(((kept_KD.norm(dim=-1) - 1).abs() <= 1e-6).all())
    return kept_KD if vq.metric == "euclidean" or unit else vq.rows().detach()


class _Values(Leaf):
    """Level values of a LatentQuantize; where they are constants there, no state dict holds them."""

    def __init__(self, prefix: str, latent: Latent) -> None:
        rows = zip(latent.value_DL.detach(), latent.levels, strict=True)
        super().__init__(prefix, {f"values_per_latent.{i}": row_L[:level] for i, (row_L, level) in enumerate(rows)})
        self.optional, self.levels = tuple(self.tensors), latent.levels

    def complaint(self, found: State) -> str:
        missing = [name for name in self.tensors if name not in found]
        return f"{missing[0]} is missing: expected the values of all channels, or of none" if found and missing else ""

    def write(self, found: State) -> None:
        constants = zip(self.tensors.items(), Latent(self.levels).value_DL, self.levels, strict=True)
        for (name, tensor), row_L, level in constants:
            tensor.copy_(found.get(name, row_L[:level]))


class _Powers(Leaf):
    """The bit weights that an LFQ keeps in its state: 2^(bits - 1), ..., 1, checked and never written."""

    optional = ("mask",)

    def __init__(self, prefix: str, bits: int) -> None:
        super().__init__(prefix, {"mask": 2 ** torch.arange(bits - 1, -1, -1)})

    def complaint(self, found: State) -> str:
        if "mask" in found and not torch.equal(found["mask"].cpu(), self.tensors["mask"]):
            return f"mask is {found['mask'].tolist()}: expected {self.tensors['mask'].tolist()}"
        return ""

    def write(self, found: State) -> None:
        """Nothing of ours holds them."""


def leaves(quantizer: Quantizer, prefix: str = "") -> Iterator[Leaf]:
    """All leaves of the tree; `ValueError` where vector-quantize-pytorch has nothing of this structure."""
    match quantizer:
        case VQ():
            yield _Tables(f"{prefix}_codebook.", [quantizer])
        case Projected():
            yield _linear(quantizer, prefix)
            yield from leaves(quantizer.quantizer, prefix)
        case Residual():
            for i, level in enumerate(quantizer.levels):
                yield from leaves(level, f"{prefix}layers.{i}.")
        case Product():
            yield from _parts(quantizer, prefix)
        case SimVQ():
            yield Leaf(
                prefix, {"frozen_codebook": quantizer.frozen_KD, "code_transform.weight": quantizer.transform.weight}
            )
        case Latent():
            yield _Values(prefix, quantizer)
        case LFQ() if quantizer.bit_order == "msb" and not (isinstance(quantizer, BSQ) and quantizer.streams > 1):
            yield _Powers(prefix, quantizer.dim // quantizer.streams)
        case MultiScale():
            yield from leaves(quantizer.quantizer, f"{prefix}vq.")
            for i, convolution in enumerate(quantizer.convolutions):
                place = "phi_shared" if quantizer.phi == 1 else f"phi_levels.{i}"
                yield Leaf(f"{prefix}{place}.conv.", dict(convolution.named_parameters()))
        case FSQ():
            pass
        case _:
            raise _nothing_like(quantizer)


def _nothing_like(quantizer: Quantizer) -> ValueError:
    return ValueError(f"{quantizer.options()}: vector-quantize-pytorch has no module of this structure")


def _parts(product: Product, prefix: str) -> Iterator[Leaf]:
    parts = [cast(Quantizer, part) for part in product.quantizers]
    tables = [part for part in parts if isinstance(part, VQ)]
    alone = product.shared or product.groups == 1
    if len(tables) == len(parts) and len({part.codebook_KD.shape for part in tables}) == 1:
        yield _Tables(f"{prefix}_codebook.", tables)
    elif all(isinstance(part, Residual | Projected) for part in parts) and not product.shared:
        for i, part in enumerate(parts):
            yield from leaves(part, f"{prefix}rvqs.{i}.")
    elif isinstance(parts[0], FSQ | BSQ) or (isinstance(parts[0], Latent) and alone):
        if any(part.options() != parts[0].options() for part in parts):
            raise _nothing_like(product)
        yield from leaves(parts[0], prefix)
    else:
        raise _nothing_like(product)


def _linear(quantizer: Projected, prefix: str) -> Leaf:
    inside = "project_in.0." if quantizer.norm else "project_in."
    parts: dict[str, nn.Module] = {inside: quantizer.project_in, "project_out.": quantizer.project_out}
    if quantizer.norm:
        parts["project_in.1."] = quantizer.norm_in
    return Leaf(prefix, {place + name: p for place, part in parts.items() for name, p in part.named_parameters()})


@torch.no_grad()
def vector_quantize_pytorch_state(quantizer: Quantizer) -> State:
    """State dict that the module of vector-quantize-pytorch of the same structure has; copies, not views."""
    return {key: tensor for leaf in leaves(quantizer) for key, tensor in leaf.read().items()}


@torch.no_grad()
def load_vector_quantize_pytorch(quantizer: Quantizer, state_dict: Mapping[str, Tensor], prefix: str = "") -> None:
    """Load a state dict of vector-quantize-pytorch into a quantizer of the same structure, in place.

    prefix  of its keys in a larger state dict; other keys of that are left alone

    Averages and counts of an EMA codebook are carried over; where there are none, or only those a module starts with,
    counts are set so that no row counts as dead in training batches of up to 2^20 vectors. Raises one `ValueError` that
    names every key that is missing, unknown or of another shape, and then changes nothing.
    """
    every = list(leaves(quantizer))
    found = {key.removeprefix(prefix): tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
    expected = {leaf.prefix + name: tensor for leaf in every for name, tensor in leaf.tensors.items()}
    may_miss = {leaf.prefix + name for leaf in every for name in leaf.optional}
    wrong = [
        f"{prefix}{key} is missing: expected a tensor of shape {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key not in found and key not in may_miss
    ]
    for key, tensor in found.items():
        if key not in expected:
            wrong.append(
                f"{prefix}{key} of shape {tuple(tensor.shape)} is unknown: expected {', '.join(expected) or 'no keys'}"
            )
        elif tensor.shape != expected[key].shape:
            wrong.append(f"{prefix}{key} has shape {tuple(tensor.shape)}: expected {tuple(expected[key].shape)}")
    parts = [
        {name: found[leaf.prefix + name] for name in leaf.tensors if leaf.prefix + name in found} for leaf in every
    ]
    if not wrong:
        complaints = (leaf.complaint(part) for leaf, part in zip(every, parts, strict=True))
        wrong = [f"{prefix}{leaf.prefix}{text}" for leaf, text in zip(every, complaints, strict=True) if text]
        wrong += [f"{prefix}{text}" for text in _disagreements(every, parts)]
    if wrong:
        raise ValueError(f"state_dict does not fit {quantizer.kind}: " + "; ".join(wrong))
    for leaf, part in zip(every, parts, strict=True):
        leaf.write(part)


def _disagreements(every: list[Leaf], parts: list[State]) -> Iterator[str]:
    """Levels of a residual that share one codebook here and bring different ones."""
    first: dict[int, tuple[str, Tensor]] = {}
    for leaf, part in zip(every, parts, strict=True):
        if isinstance(leaf, _Tables):
            key, embed = first.setdefault(id(leaf.quantizers[0]), (leaf.prefix, part["embed"]))
            if not torch.equal(embed, part["embed"]):
                yield f"{leaf.prefix}embed differs from {key}embed: one codebook is shared by all levels here"
