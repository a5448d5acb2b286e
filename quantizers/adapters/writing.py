"""The module of vector-quantize-pytorch 1.32 that does what a quantizer of ours does: its class and arguments.

In evaluation the two agree. Training options are carried where that package has them; `ValueError` names one that it
has not.
"""

from __future__ import annotations

from typing import Any, cast

from quantizers.base import Quantizer
from quantizers.bsq import BSQ
from quantizers.fsq import FSQ
from quantizers.latent import Latent
from quantizers.lfq import LFQ
from quantizers.multiscale import MultiScale
from quantizers.product import Product
from quantizers.projected import Projected
from quantizers.residual import Residual
from quantizers.scales import phi_index
from quantizers.simvq import SimVQ
from quantizers.vq import VQ

Arguments = dict[str, Any]
Call = tuple[str, Arguments]


def call_of(quantizer: Quantizer) -> Call:
    """Class name and arguments there."""
    match quantizer:
        case VQ():
            return "VectorQuantize", _vq(quantizer)
        case FSQ():
            return "FSQ", _fsq(quantizer)
        case LFQ():
            return "LFQ", _bits(quantizer)
        case Latent():
            return "LatentQuantize", _latent(quantizer)
        case SimVQ():
            return "SimVQ", _simvq(quantizer)
        case Residual():
            return _residual(quantizer)
        case Product():
            return _product(quantizer)
        case Projected():
            return _projected(quantizer)
        case MultiScale():
            return "HierarchicalVQ", _multiscale(quantizer)
    raise ValueError(f"{quantizer.kind}: vector-quantize-pytorch has no module that does the same")


def _refuse(quantizer: Quantizer, **options: Any) -> None:
    """`ValueError` on the first option that is not what it must be."""
    for name, expected in options.items():
        value = getattr(quantizer, name)
        if value not in (expected if isinstance(expected, tuple) else (expected,)):
            raise ValueError(f"{name}={value!r} of {quantizer.kind}: vector-quantize-pytorch has only {expected!r}")


def _same(quantizer: Product | Residual, parts: list[Quantizer]) -> Quantizer:
    """The first part, of which the others must be copies as far as options go."""
    for part in parts[1:]:
        if _lasting(part.options()) != _lasting(parts[0].options()):
            raise ValueError(f"inner of {quantizer.kind}: vector-quantize-pytorch has only equal options in all parts")
    return parts[0]


def _lasting(options: Any) -> Any:
    """Options without the share below which rows are dead: there it is a count, and shares of one count differ."""
    if isinstance(options, dict):
        return {name: _lasting(value) for name, value in options.items() if name != "revive"}
    return [_lasting(value) for value in options] if isinstance(options, list) else options


def _vq(vq: VQ) -> Arguments:
    _refuse(vq, metric=("euclidean", "cosine"))
    mean = float(vq.count_K.mean())
    arguments: Arguments = {
        "dim": vq.dim,
        "codebook_size": vq.size,
        "use_cosine_sim": vq.metric == "cosine",
        "decay": vq.decay,
        "commitment_weight": float(vq.commitment),
        "threshold_ema_dead_code": vq.revive * mean,
        "rotation_trick": vq.estimator == "rotation",
    }
    if vq.codebook == "gradient":
        _refuse(vq, metric="euclidean")
        arguments |= {"learnable_codebook": True, "ema_update": False, "orthogonal_reg_weight": float(vq.orthogonal)}
    if vq.estimator == "diveq":
        # It insists on reviving; with this threshold no row is ever dead.
        threshold = arguments["threshold_ema_dead_code"] or 1e-9
        arguments |= {"directional_reparam": True, "directional_reparam_variance": 1e-3}
        arguments |= {"threshold_ema_dead_code": threshold}
    if vq.temperature:
        _refuse(vq, metric="cosine")
        arguments |= {"stochastic_sample_codes": True, "sample_codebook_temp": vq.temperature / 2}
    return arguments


def _fsq(fsq: FSQ) -> Arguments:
    _refuse(fsq, form=("tanh", "symmetric"), activation=("tanh", "clamp"))
    symmetric = fsq.form == "symmetric"
    if not symmetric and min(fsq.levels) < 3:
        raise ValueError(f"levels={fsq.levels} of fsq: vector-quantize-pytorch has 2 levels in form='symmetric' only")
    if not symmetric:
        _refuse(fsq, noise_dropout=0)
    arguments = {"levels": list(fsq.levels), "preserve_symmetry": symmetric, "noise_dropout": fsq.noise_dropout}
    return arguments | {"bound_hard_clamp": fsq.activation == "clamp"}


def _bits(quantizer: LFQ) -> Arguments:
    _refuse(quantizer, bit_order="msb", entropy_group=None)
    arguments: Arguments = {
        "codebook_size": 2 ** (quantizer.dim // quantizer.streams),
        "num_codebooks": quantizer.streams,
        "commitment_loss_weight": quantizer.commitment,
        "entropy_loss_weight": quantizer.entropy,
        "diversity_gamma": quantizer.diversity,
    }
    _refuse(quantizer, temperature=0.01)
    if isinstance(quantizer, BSQ):
        _refuse(quantizer, streams=1)
        return arguments | {"spherical": True}
    return arguments | {"codebook_scale": quantizer.scale}


def _latent(latent: Latent) -> Arguments:
    weights = {"commitment_loss_weight": latent.commitment, "quantization_loss_weight": latent.codebook}
    return {"levels": list(latent.levels), "dim": latent.dim} | weights


def _simvq(simvq: SimVQ) -> Arguments:
    if not simvq.codebook:
        _refuse(simvq, commitment=0)
    share = simvq.commitment / simvq.codebook if simvq.codebook else 0.0
    return {
        "dim": simvq.dim,
        "codebook_size": simvq.size,
        "commitment_weight": simvq.codebook,
        "input_to_quantize_commit_loss_weight": share,
        "rotation_trick": simvq.estimator == "rotation",
        "frozen_codebook_dim": simvq.frozen_dim,
    }


def _residual(residual: Residual) -> Call:
    _refuse(residual, dropout=(0, 1))
    dropout = {"num_quantizers": residual.depth, "quantize_dropout": residual.dropout == 1}
    first = residual.levels[0]
    match first:
        case VQ():
            return "ResidualVQ", _residual_vq(residual) | dropout
        case SimVQ():
            _refuse(residual, shrink=None, soft_clamp=None, shared=False)
            return "ResidualSimVQ", _simvq(cast(SimVQ, _same(residual, residual.levels))) | dropout
        case FSQ():
            return "ResidualFSQ", _residual_fsq(residual) | dropout
        case LFQ():
            return "ResidualLFQ", _residual_bits(residual) | dropout
    raise ValueError(f"residual of {first.kind}: vector-quantize-pytorch has no module that does the same")


def _residual_vq(residual: Residual) -> Arguments:
    _refuse(residual, shrink=None, soft_clamp=None)
    levels = [cast(VQ, level) for level in residual.levels]
    own = ("codebook_size", "threshold_ema_dead_code")
    every = [_vq(level) if isinstance(level, VQ) else {} for level in levels]
    arguments = every[0]
    if any(other.get(name) != value for other in every for name, value in arguments.items() if name not in own):
        raise ValueError("inner of residual: vector-quantize-pytorch has only equal options in all levels, sizes aside")
    sizes = tuple(level.size for level in levels)
    size = sizes[0] if len(set(sizes)) == 1 else sizes
    return arguments | {"codebook_size": size, "shared_codebook": residual.shared}


def _residual_fsq(residual: Residual) -> Arguments:
    fsq = cast(FSQ, _same(residual, residual.levels))
    _refuse(fsq, form="symmetric")
    levels = [float(level) for level in fsq.levels]
    shrink = residual.factor_LD[1].tolist() if residual.depth > 1 else levels
    if shrink != levels:
        raise ValueError(f"shrink={residual.shrink} of residual: vector-quantize-pytorch has only the levels, {levels}")
    bound = None if residual.soft_clamp is None else residual.bound_D.tolist()
    arguments: Arguments = {"levels": list(fsq.levels), "noise_dropout": fsq.noise_dropout}
    clamped = fsq.activation == "clamp"
    _fsq(fsq)
    if not clamped:
        return arguments | {"bound_hard_clamp": False, "soft_clamp_input_value": bound}
    expected = [1 + 1 / (level - 1) for level in levels]
    if bound is None or any(abs(a - b) > 1e-6 for a, b in zip(bound, expected, strict=True)):
        raise ValueError(f"soft_clamp={residual.soft_clamp} of residual: vector-quantize-pytorch has only {expected}")
    return arguments


def _residual_bits(residual: Residual) -> Arguments:
    """Levels at half the scale of the one before: by `scale` of every LFQ, or by shrink=2."""
    _refuse(residual, soft_clamp=None)
    arguments = []
    for i, level in enumerate(residual.levels):
        if not isinstance(level, LFQ):
            raise ValueError(f"residual of lfq and {level.kind}: vector-quantize-pytorch has no module of both")
        scale = 1.0 if isinstance(level, BSQ) else level.scale
        factor = float(residual.factor_LD[i].flatten()[0])
        if scale / factor != 2.0**-i or bool((residual.factor_LD[i] != factor).any()):
            raise ValueError(f"level {i} of residual has scale {scale / factor}: vector-quantize-pytorch has 2^-level")
        arguments.append(_level_of_bits(level, spherical_scale=1 / factor))
    if any(other != arguments[0] for other in arguments[1:]):
        raise ValueError("inner of residual: vector-quantize-pytorch has only equal options in all levels")
    return arguments[0] | {"dim": residual.dim, "codebook_size": 2**residual.dim}


def _level_of_bits(level: LFQ, spherical_scale: float) -> Arguments:
    _refuse(level, bit_order="msb", entropy_group=None, streams=1)
    square = spherical_scale**2 if isinstance(level, BSQ) else 1.0
    if abs(level.temperature * square - 0.01) > 1e-6:
        raise ValueError(
            f"temperature={level.temperature} of {level.kind}: vector-quantize-pytorch has {0.01 / square}"
        )
    return {
        "commitment_loss_weight": level.commitment / square,
        "entropy_loss_weight": level.entropy,
        "diversity_gamma": level.diversity,
        "spherical": isinstance(level, BSQ),
    }


def _product(product: Product) -> Call:
    parts = [cast(Quantizer, part) for part in product.quantizers]
    first = _same(product, parts)
    match first:
        case VQ():
            heads = {"heads": product.groups, "separate_codebook_per_head": not product.shared}
            return "VectorQuantize", _vq(first) | heads | {"dim": product.dim, "codebook_dim": first.dim}
        case FSQ():
            return "FSQ", _fsq(first) | {"num_codebooks": product.groups}
        case BSQ() if not product.shared or product.groups == 1:
            return "LFQ", _bits(first) | {"num_codebooks": product.groups}
        case Latent() if product.shared or product.groups == 1:
            return "LatentQuantize", _latent(first) | {"num_codebooks": product.groups, "dim": product.dim}
        case Residual() | Projected() if not product.shared or product.groups == 1:
            name, arguments = call_of(first)
            if name in ("ResidualVQ", "ResidualFSQ", "ResidualLFQ"):
                return f"Grouped{name}", arguments | {"dim": product.dim, "groups": product.groups}
    raise ValueError(
        f"product of {first.kind}, shared={product.shared}: vector-quantize-pytorch has no module that does the same"
    )


def _projected(projected: Projected) -> Call:
    inner = projected.quantizer
    name, arguments = call_of(inner)
    outside = {"dim": projected.in_dim}
    if name == "LFQ":
        _refuse(projected, norm=False)
        return name, arguments | outside | {"has_projections": True, "projection_has_bias": projected.bias}
    if name not in ("VectorQuantize", "ResidualVQ", "FSQ", "ResidualFSQ", "ResidualLFQ", "LatentQuantize"):
        raise ValueError(f"projected {inner.kind}: vector-quantize-pytorch has no module that does the same")
    if projected.in_dim == inner.dim:
        raise ValueError(f"in_dim={projected.in_dim} of projected: {name} has projections only to another width")
    if name == "FSQ":
        _refuse(projected, norm=False)
        return name, arguments | outside | {"projection_has_bias": projected.bias}
    _refuse(projected, bias=True, norm=(False, True) if name == "VectorQuantize" else False)
    if name == "VectorQuantize":
        outside |= {"layernorm_after_project_in": projected.norm}
    if name in ("VectorQuantize", "ResidualVQ"):
        outside |= {"codebook_dim": arguments.get("codebook_dim", inner.dim)}
    return name, arguments | outside


def _multiscale(multiscale: MultiScale) -> Arguments:
    inner = multiscale.quantizer
    if not isinstance(inner, VQ):
        raise ValueError(f"multiscale {inner.kind}: vector-quantize-pytorch has scales of one VectorQuantize only")
    _refuse(multiscale, upscale="bilinear")
    _refuse(inner, codebook="ema", metric="euclidean")
    depth, phi = len(multiscale.scales), multiscale.phi
    indices = [phi_index(i, depth, phi) for i in range(depth)] if phi else []
    theirs = [round(i / max(depth - 1, 1) * (phi - 1)) for i in range(depth)] if phi else []
    if phi == 0 or indices != theirs or phi > depth:
        raise ValueError(f"phi={phi} of multiscale with {depth} scales: vector-quantize-pytorch chooses {theirs}")
    if list(multiscale.scales) != sorted(multiscale.scales):
        raise ValueError(f"scales={multiscale.scales} of multiscale: vector-quantize-pytorch has none that decrease")
    arguments = _vq(inner)
    del arguments["use_cosine_sim"]
    return arguments | {
        "scales": list(multiscale.scales),
        "share_quant_resi": phi,
        "quant_resi": multiscale.phi_ratio,
        "accept_image_fmap": True,
    }
