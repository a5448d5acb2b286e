"""Options of ours that reproduce a module of vector-quantize-pytorch 1.32, read off its attributes.

In evaluation the two agree in every code and vector. In training the loss terms, estimators and averages are those the
options name; where ours has no such option, or it means something else, `Unlike` says which one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from quantizers.adapters.known import KNOWN
from quantizers.adapters.peer import is_peer, name_of
from quantizers.scales import phi_index

Options = dict[str, Any]

# Rows of a cosine codebook are compared as they are there and normalised here: the same only where they are unit.
UNIT = 1e-4
_REVIVE = 0.1


class Unlike(Exception):
    """An option that no quantizer of ours reproduces."""


def options_of(module: nn.Module) -> Options:
    """Options of the quantizer of ours that does what the module does; `Unlike` where there is none."""
    name = name_of(module)
    if name not in _READERS:
        raise Unlike(f"{type(module).__name__} has no counterpart here")
    for part in module.modules():
        if name_of(part) and not is_peer(part):
            raise Unlike(f"{type(part).__name__} is a subclass of {name_of(part)}")
        if name_of(part) in KNOWN:
            _expect_known(part)
    return _READERS[name](module)


def _expect_known(module: nn.Module) -> None:
    """No option of a later version is in use, as far as the module shows it."""
    for name, parameter in inspect.signature(type(module)).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD or name in KNOWN[name_of(module)]:
            continue
        if getattr(module, name, inspect) != parameter.default:
            raise Unlike(f"{name} of {type(module).__name__} is an option newer than this adapter")


def _expect(module: Any, **options: Any) -> None:
    for name, expected in options.items():
        value = getattr(module, name)
        if value != expected:
            raise Unlike(f"{name}={value!r} of {type(module).__name__}")


def _projected(module: Any, inner: Options) -> Options:
    """`inner` between the linear maps of the module, where it has them."""
    norm = isinstance(module.project_in, nn.Sequential)
    linear = module.project_in[0] if norm else module.project_in
    if isinstance(linear, nn.Identity):
        return inner
    if type(linear) is not nn.Linear:
        raise Unlike(f"project_in is a {type(linear).__name__}")
    bias = linear.bias is not None
    return {"kind": "projected", "inner": inner, "in_dim": linear.in_features, "bias": bias, "norm": norm}


def _repeated(every: list[Options]) -> Options | list[Options]:
    """One mapping where all are equal, and so are built as copies of one another."""
    shares = [share for options in every for share in _shares(options)]
    every = [_with_share(options, sum(shares) / len(shares)) if shares else options for options in every]
    return every[0] if all(options == every[0] for options in every) else every


def _shares(options: Any) -> list[float]:
    """All `revive` in them. It is one threshold over counts that differ a little: levels and groups get their mean."""
    if isinstance(options, list):
        return [share for part in options for share in _shares(part)]
    return [options["revive"]] if "revive" in options else _shares(options.get("inner", []))


def _with_share(options: Any, share: float) -> Any:
    if isinstance(options, list):
        return [_with_share(part, share) for part in options]
    own = {"revive": share} if "revive" in options else {}
    return options | own | ({"inner": _with_share(options["inner"], share)} if "inner" in options else {})


def _dropout(module: Any) -> float:
    if not module.quantize_dropout:
        return 0.0
    _expect(module, quantize_dropout_cutoff_index=0, quantize_dropout_multiple_of=1)
    return 1.0


def _vector_quantize(module: Any) -> Options:
    inner = _table(module)
    if module.heads > 1:
        shared = not module.separate_codebook_per_head
        inner = {"kind": "product", "inner": inner, "groups": module.heads, "shared": shared}
    return _projected(module, inner)


def _table(module: Any, *, manual: bool = False) -> Options:
    """One codebook of a VectorQuantize; `manual` where a ResidualVQ updates the codebook that its levels share."""
    book = module._codebook
    _expect(module, commitment_use_cross_entropy_loss=False, codebook_diversity_loss_weight=0, sync_update_v=0)
    _expect(module, in_place_codebook_optimizer=None, freeze_codebook=False, route_gradients_to_input=True)
    _expect(book, affine_param=False, vq_bridge=None, eps=1e-5, manual_ema_update=manual)
    if not bool(book.initted):
        raise Unlike("k-means has not run yet: there is no codebook to carry over")
    if book.ema_update == module.learnable_codebook or book.learnable_codebook != module.learnable_codebook:
        raise Unlike(f"ema_update={book.ema_update} of a codebook that is learnable={book.learnable_codebook}")
    cosine = bool(book.use_cosine_sim)
    if cosine and float((book.embed.detach().norm(dim=-1) - 1).abs().max()) > UNIT:
        raise Unlike("use_cosine_sim with rows that are not of unit length")
    options = {"kind": "vq", "size": book.codebook_size, "dim": book.embed.shape[-1], "decay": book.decay}
    options |= {"metric": "cosine" if cosine else "euclidean", "revive": _revive(book)}
    options |= {"temperature": _temperature(book, cosine), "orthogonal": _orthogonal(module)}
    options |= {"estimator": "rotation" if module.rotation_trick else "straight_through"}
    options |= {"commitment": float(module.commitment_weight) if module.has_commitment_loss else 0.0}
    return options | (_gradient(module, options) if module.learnable_codebook else {"codebook": "ema"})


def _gradient(module: Any, options: Options) -> Options:
    if module.directional_reparam:
        _expect(module, directional_reparam_variance=1e-3)
        return {"codebook": "gradient", "estimator": "diveq"}
    if options["commitment"] != 1:
        # There one weight serves both directions of |z - q|^2; here the one that moves the codebook has weight 1.
        raise Unlike(f"commitment_weight={options['commitment']} of a learnable codebook")
    return {"codebook": "gradient"}


def _orthogonal(module: Any) -> float:
    if not module.has_codebook_orthogonal_loss:
        return 0.0
    _expect(module, orthogonal_reg_active_codes_only=False, learnable_codebook=True)
    if module.orthogonal_reg_max_codes is not None and module.orthogonal_reg_max_codes < module.codebook_size:
        raise Unlike(f"orthogonal_reg_max_codes={module.orthogonal_reg_max_codes}")
    return float(module.orthogonal_reg_weight)


def _temperature(book: Any, cosine: bool) -> float:
    """Of exp(-|z - e|^2 / t) with unit vectors, which is exp(2 z.e / t) up to a factor."""
    sampling = book.gumbel_sample.keywords
    if sampling["straight_through"]:
        raise Unlike("straight_through=True, gradients of a softmax over codes")
    if not sampling["stochastic"] or book.sample_codebook_temp <= 0:
        return 0.0
    if not cosine:
        raise Unlike("stochastic_sample_codes by distances, not by their squares")
    return 2.0 * float(book.sample_codebook_temp)


def _revive(book: Any) -> float:
    """The threshold as a share of the mean count, which is how ours measures it for any batch size."""
    if not book.threshold_ema_dead_code:
        return 0.0
    mean = float(book.cluster_size.mean())
    return min(_REVIVE, float(book.threshold_ema_dead_code) / mean) if mean > 0 else _REVIVE


def _residual_vq(module: Any) -> Options:
    _expect(module, implicit_neural_codebook=False, diveq=False, quant_grad_frac=0)
    for beam in (module.beam_size, module.eval_beam_size):
        if beam is not None and beam > 1:
            raise Unlike(f"beam_size={beam}")
    shared = bool(module.shared_codebook)
    levels = [_table(layer, manual=shared) for layer in module.layers]
    return _projected(module, _residual(module, levels[0] if shared else _repeated(levels), shared=shared))


def _residual(module: Any, inner: Options | list[Options], **options: Any) -> Options:
    depth = module.num_quantizers
    return {"kind": "residual", "inner": inner, "depth": depth, "dropout": _dropout(module)} | options


def _grouped(module: Any) -> Options:
    inner = _repeated([options_of(group) for group in module.rvqs])
    return {"kind": "product", "inner": inner, "groups": module.groups}


def _fsq(module: Any) -> Options:
    _expect(module, orthogonal_rotation=False)
    inner: Options = {"kind": "fsq", "levels": module._levels.tolist(), "noise_dropout": float(module.noise_dropout)}
    inner["form"] = "symmetric" if module.preserve_symmetry else "tanh"
    inner["activation"] = "clamp" if module.bound_hard_clamp else "tanh"
    if module.num_codebooks > 1:
        inner = {"kind": "product", "inner": inner, "groups": module.num_codebooks, "shared": True}
    return _projected(module, inner)


def _residual_fsq(module: Any) -> Options:
    levels = [_fsq(layer) for layer in module.layers]
    clamp = module.soft_clamp_input_value
    bound = None if clamp is None else torch.broadcast_to(clamp, (len(module.levels),)).tolist()
    shrink = [float(level) for level in module.levels]
    return _projected(module, _residual(module, _repeated(levels), shrink=shrink, soft_clamp=bound))


def _lfq(module: Any) -> Options:
    if module.spherical:
        _expect(module, codebook_scale=1)
        inner = _bits(module)
        if module.num_codebooks > 1:
            # Every code is a unit vector of its own, with entropies of its own.
            inner = {"kind": "product", "inner": inner, "groups": module.num_codebooks}
        return _projected(module, inner)
    return _projected(module, _bits(module))


def _bits(module: Any, scale: float = 1.0) -> Options:
    """One level of bits, at `scale` times what the module says."""
    _expect(module, orthogonal_rotation=False, frac_per_sample_entropy=1, soft_clamp_input_value=None)
    _expect(module, experimental_softplus_entropy_loss=False)
    if type(module.activation) is not nn.Identity:
        raise Unlike(f"straight_through_activation={module.activation!r}")
    options: Options = {"entropy": float(module.entropy_loss_weight), "diversity": float(module.diversity_gamma)}
    weight = float(module.commitment_loss_weight)
    if module.spherical:
        # Vectors of length s here, of length 1 there: products are s^2 times as large, and so are squares.
        temperature = 0.01 / module.codebook_scale**2
        options |= {"temperature": temperature, "commitment": weight * module.codebook_scale**2}
        return {"kind": "bsq", "dim": module.codebook_dim} | options
    options |= {"temperature": 0.01, "commitment": weight, "scale": float(module.codebook_scale)}
    width = module.codebook_dim * module.num_codebooks
    return {"kind": "lfq", "dim": width, "streams": module.num_codebooks} | options


def _residual_lfq(module: Any) -> Options:
    levels = [_bits(layer) for layer in module.layers]
    shrink = 2.0 if module.layers[0].spherical else None
    return _projected(module, _residual(module, _repeated(levels), shrink=shrink))


def _simvq(module: Any) -> Options:
    transform = module.code_transform
    if type(transform) is not nn.Linear or transform.bias is not None:
        raise Unlike(f"codebook_transform={transform!r}")
    size, width = module.frozen_codebook.shape
    weight = float(module.commitment_weight)
    return {
        "kind": "simvq",
        "size": size,
        "dim": transform.out_features,
        "codebook": weight,
        "commitment": weight * float(module.input_to_quantize_commit_loss_weight),
        "estimator": "rotation" if module.rotation_trick else "straight_through",
        "frozen_dim": None if width == transform.out_features else width,
    }


def _residual_simvq(module: Any) -> Options:
    return _residual(module, _repeated([_simvq(layer) for layer in module.layers]))


def _latent(module: Any) -> Options:
    _expect(module, in_place_codebook_optimizer=None)
    inner: Options = {"kind": "latent", "levels": module._levels.tolist()}
    inner["commitment"] = float(module.commitment_loss_weight)
    inner["codebook"] = float(module.quantization_loss_weight)
    if module.num_codebooks > 1:
        inner = {"kind": "product", "inner": inner, "groups": module.num_codebooks, "shared": True}
    return _projected(module, inner)


def _hierarchical(module: Any) -> Options:
    _expect(module, spatial_dims=2, nested_dropout=0, vqs=None)
    convolutions = [module.phi_shared] if module.phi_shared is not None else list(module.phi_levels)
    ratio, depth = convolutions[0].resi_ratio, module.num_levels
    chosen = [convolutions.index(module.choose_phi(level)) for level in range(depth)]
    if ratio > 1 or chosen != [phi_index(level, depth, len(convolutions)) for level in range(depth)]:
        raise Unlike(f"share_quant_resi={len(convolutions)}, quant_resi={ratio}: other convolutions, or more of them")
    options: Options = {"kind": "multiscale", "inner": _table(module.vq), "scales": list(module.level_shapes)}
    options |= {"phi": len(convolutions), "phi_ratio": ratio if ratio > 1e-8 else 0.0}
    # There is no term on the sum of scales there, only the commitment of every scale.
    return options | {"upscale": "bilinear", "commitment": 0.0}


_READERS: dict[str, Callable[[Any], Options]] = {
    "VectorQuantize": _vector_quantize,
    "ResidualVQ": _residual_vq,
    "GroupedResidualVQ": _grouped,
    "FSQ": _fsq,
    "ResidualFSQ": _residual_fsq,
    "GroupedResidualFSQ": _grouped,
    "LFQ": _lfq,
    "ResidualLFQ": _residual_lfq,
    "GroupedResidualLFQ": _grouped,
    "SimVQ": _simvq,
    "ResidualSimVQ": _residual_simvq,
    "LatentQuantize": _latent,
    "HierarchicalVQ": _hierarchical,
}
