"""Modules of vector-quantize-pytorch and quantizers of ours give the same codes and vectors, in both directions."""

import json
from copy import deepcopy

import pytest
import torch
import vector_quantize_pytorch as peer
from safetensors.torch import load, save
from torch.testing import assert_close

from quantizers import build
from quantizers.adapters import (
    from_vector_quantize_pytorch,
    load_vector_quantize_pytorch,
    to_vector_quantize_pytorch,
    vector_quantize_pytorch_state,
)

VQ = {"codebook_size": 32}
COSINE = VQ | {"dim": 8, "use_cosine_sim": True}
GRADIENT = VQ | {"dim": 8, "learnable_codebook": True, "ema_update": False}
DIVEQ = VQ | {"dim": 8, "directional_reparam": True, "directional_reparam_variance": 1e-3, "threshold_ema_dead_code": 2}
SCALES = VQ | {"dim": 8, "scales": [1, 2, 5, 10], "accept_image_fmap": True}
RVQ = {"dim": 8, "codebook_size": 16, "num_quantizers": 3}

# Every class and option that has a counterpart here: the result is a quantizer of ours, by its kind.
NATIVE = [
    ("vq", "VectorQuantize", {"dim": 8} | VQ),
    ("vq", "VectorQuantize", {"dim": 1} | VQ),
    ("vq", "VectorQuantize", {"dim": 8, "rotation_trick": False, "decay": 0.95, "commitment_weight": 0.25} | VQ),
    ("vq", "VectorQuantize", {"dim": 8, "commitment_weight": 0.0, "channel_last": False} | VQ),
    ("vq", "VectorQuantize", {"dim": 8, "kmeans_init": True, "kmeans_iters": 3} | VQ),
    ("vq", "VectorQuantize", {"dim": 8, "threshold_ema_dead_code": 2} | VQ),
    ("vq", "VectorQuantize", {"dim": 8, "accept_image_fmap": True} | VQ),
    ("vq", "VectorQuantize", {"dim": 8, "accept_3d_fmap": True, "use_cosine_sim": True} | VQ),
    ("vq", "VectorQuantize", COSINE),
    (
        "vq",
        "VectorQuantize",
        {"dim": 8, "use_cosine_sim": True, "kmeans_init": True, "threshold_ema_dead_code": 2} | VQ,
    ),
    ("vq", "VectorQuantize", COSINE | {"stochastic_sample_codes": True}),
    ("vq", "VectorQuantize", GRADIENT),
    (
        "vq",
        "VectorQuantize",
        {"dim": 8, "learnable_codebook": True, "ema_update": False, "orthogonal_reg_weight": 10.0} | VQ,
    ),
    (
        "vq",
        "VectorQuantize",
        {"dim": 8, "directional_reparam": True, "directional_reparam_variance": 1e-3, "threshold_ema_dead_code": 2}
        | VQ,
    ),
    ("product", "VectorQuantize", {"dim": 8, "heads": 4, "codebook_dim": 2} | VQ),
    ("product", "VectorQuantize", {"dim": 8, "heads": 2, "codebook_dim": 4, "separate_codebook_per_head": True} | VQ),
    ("product", "VectorQuantize", {"dim": 8, "heads": 2, "codebook_dim": 4, "use_cosine_sim": True} | VQ),
    (
        "product",
        "VectorQuantize",
        {"dim": 8, "heads": 2, "codebook_dim": 4, "use_cosine_sim": True, "separate_codebook_per_head": True} | VQ,
    ),
    ("projected", "VectorQuantize", {"dim": 8, "codebook_dim": 3} | VQ),
    ("projected", "VectorQuantize", {"dim": 8, "codebook_dim": 3, "layernorm_after_project_in": True} | VQ),
    ("projected", "VectorQuantize", {"dim": 8, "codebook_dim": 3, "use_cosine_sim": True} | VQ),
    ("projected", "VectorQuantize", {"dim": 8, "heads": 2} | VQ),
    ("projected", "VectorQuantize", {"dim": 8, "heads": 3, "codebook_dim": 2, "separate_codebook_per_head": True} | VQ),
    ("residual", "ResidualVQ", RVQ),
    ("residual", "ResidualVQ", RVQ | {"use_cosine_sim": True, "rotation_trick": False}),
    ("residual", "ResidualVQ", RVQ | {"shared_codebook": True}),
    ("residual", "ResidualVQ", RVQ | {"quantize_dropout": True}),
    ("residual", "ResidualVQ", RVQ | {"kmeans_init": True, "kmeans_iters": 2, "threshold_ema_dead_code": 2}),
    ("residual", "ResidualVQ", RVQ | {"accept_image_fmap": True}),
    ("residual", "ResidualVQ", {"dim": 8, "codebook_size": (16, 8, 4)}),
    ("projected", "ResidualVQ", RVQ | {"codebook_dim": 5}),
    ("product", "GroupedResidualVQ", RVQ | {"groups": 2}),
    ("product", "GroupedResidualVQ", RVQ | {"groups": 4, "use_cosine_sim": True}),
    ("product", "GroupedResidualVQ", RVQ | {"groups": 2, "codebook_dim": 3, "shared_codebook": True}),
    ("fsq", "FSQ", {"levels": [8, 5, 5, 5]}),
    ("fsq", "FSQ", {"levels": [16, 3, 4], "return_indices": False}),
    ("fsq", "FSQ", {"levels": [2, 3, 4, 7], "preserve_symmetry": True}),
    ("fsq", "FSQ", {"levels": [2, 3, 8], "preserve_symmetry": True, "bound_hard_clamp": True, "noise_dropout": 0.5}),
    ("fsq", "FSQ", {"levels": [8, 5, 6], "bound_hard_clamp": True, "channel_first": True}),
    ("product", "FSQ", {"levels": [8, 5, 4], "num_codebooks": 3}),
    ("projected", "FSQ", {"levels": [8, 5, 5], "dim": 10}),
    ("projected", "FSQ", {"levels": [8, 5, 5], "dim": 10, "num_codebooks": 2, "projection_has_bias": False}),
    ("residual", "ResidualFSQ", {"levels": [5, 5, 3, 3], "num_quantizers": 3}),
    ("residual", "ResidualFSQ", {"levels": [8, 5, 5], "num_quantizers": 3, "quantize_dropout": True}),
    ("residual", "ResidualFSQ", {"levels": [4, 4], "num_quantizers": 2, "bound_hard_clamp": False}),
    (
        "residual",
        "ResidualFSQ",
        {"levels": [4, 3], "num_quantizers": 2, "bound_hard_clamp": False, "soft_clamp_input_value": [1.5, 2.0]},
    ),
    (
        "residual",
        "ResidualFSQ",
        {"levels": [4, 3], "num_quantizers": 2, "bound_hard_clamp": False, "soft_clamp_input_value": 2.0},
    ),
    ("projected", "ResidualFSQ", {"levels": [8, 5, 5], "num_quantizers": 2, "dim": 6, "is_channel_first": True}),
    ("product", "GroupedResidualFSQ", {"levels": [5, 5, 3], "num_quantizers": 2, "dim": 6, "groups": 2}),
    ("product", "GroupedResidualFSQ", {"levels": [5, 5, 3], "num_quantizers": 2, "dim": 10, "groups": 2}),
    ("lfq", "LFQ", {"dim": 8}),
    ("lfq", "LFQ", {"codebook_size": 64, "num_codebooks": 3, "commitment_loss_weight": 0.5}),
    ("lfq", "LFQ", {"dim": 6, "codebook_scale": 0.5, "keep_num_codebooks_dim": True, "channel_first": True}),
    ("projected", "LFQ", {"codebook_size": 64, "dim": 9, "projection_has_bias": False}),
    ("projected", "LFQ", {"codebook_size": 16, "dim": 9, "num_codebooks": 2}),
    ("projected", "LFQ", {"dim": 6, "has_projections": True}),
    ("bsq", "LFQ", {"dim": 8, "spherical": True, "entropy_loss_weight": 0.3, "diversity_gamma": 2.0}),
    ("product", "LFQ", {"codebook_size": 16, "num_codebooks": 2, "spherical": True}),
    ("projected", "LFQ", {"codebook_size": 64, "dim": 9, "spherical": True}),
    ("residual", "ResidualLFQ", {"dim": 6, "codebook_size": 64, "num_quantizers": 3}),
    ("residual", "ResidualLFQ", {"dim": 6, "codebook_size": 64, "num_quantizers": 3, "spherical": True}),
    ("projected", "ResidualLFQ", {"dim": 9, "codebook_size": 64, "num_quantizers": 2}),
    ("product", "GroupedResidualLFQ", {"dim": 12, "codebook_size": 64, "num_quantizers": 2, "groups": 2}),
    ("simvq", "SimVQ", {"dim": 8} | VQ),
    ("simvq", "SimVQ", {"dim": 8, "frozen_codebook_dim": 5, "rotation_trick": False, "commitment_weight": 0.5} | VQ),
    ("simvq", "SimVQ", {"dim": 8, "channel_first": True, "input_to_quantize_commit_loss_weight": 1.0} | VQ),
    ("residual", "ResidualSimVQ", {"dim": 8, "num_quantizers": 3} | VQ),
    ("residual", "ResidualSimVQ", {"dim": 8, "num_quantizers": 2, "quantize_dropout": True} | VQ),
    ("latent", "LatentQuantize", {"levels": [5, 5, 8], "dim": 3}),
    ("latent", "LatentQuantize", {"levels": [4, 3], "dim": 2, "optimize_values": False}),
    ("latent", "LatentQuantize", {"levels": 4, "codebook_dim": 3, "dim": 3}),
    ("projected", "LatentQuantize", {"levels": [5, 5, 8], "dim": 5}),
    ("product", "LatentQuantize", {"levels": [5, 4], "dim": 4, "num_codebooks": 2}),
    ("projected", "LatentQuantize", {"levels": [5, 4], "dim": 7, "num_codebooks": 2}),
    ("multiscale", "HierarchicalVQ", SCALES),
    ("multiscale", "HierarchicalVQ", SCALES | {"share_quant_resi": 2, "quant_resi": 0.3, "channel_first": False}),
    ("multiscale", "HierarchicalVQ", SCALES | {"quant_resi": 0.0, "scales": [[1, 2], [4, 3], [10, 10]]}),
]


def native_id(case):
    return f"{case[1]}-{'-'.join(f'{k}={v}' for k, v in case[2].items())}".replace(" ", "")


every_native = pytest.mark.parametrize("case", NATIVE, ids=native_id)


KEPT = {}


def trained(case, as_sequence):
    """A module after three training batches, in evaluation, and vectors for it; a copy of what was trained once."""
    _, name, options = case
    if id(case) not in KEPT:
        torch.manual_seed(0)
        module = getattr(peer, name)(**options)
        dim = from_vector_quantize_pytorch(module).in_dim
        for _ in range(0 if name == "ResidualVQ" and module.accept_image_fmap else 3):
            as_sequence(module, torch.randn(4, 100, dim))
        KEPT[id(case)] = module.eval(), 0.7 * torch.randn(3, 100, dim)
    return deepcopy(KEPT[id(case)])


def expected(module, z, as_sequence):
    """What the module gives. A ResidualVQ of images can only be run on sequences: images break its own forward."""
    if getattr(module, "accept_image_fmap", False) and type(module).__name__ == "ResidualVQ":
        out = from_vector_quantize_pytorch(module, wrap=True)(z)
        return out.z_BND, out.codes_BNS
    return as_sequence(module, z)


def agree(quantizer, z, vectors, codes):
    if codes is not None:
        assert torch.equal(quantizer.encode(z), codes)
    close = {"rtol": 1e-5, "atol": 2e-6}
    assert_close(quantizer.decode(quantizer.encode(z)), vectors, **close)
    out = quantizer(z)
    assert torch.equal(out.codes_BNS, quantizer.encode(z))
    assert_close(out.z_BND, vectors, **close)


@every_native
def test_a_module_becomes_a_quantizer_of_ours(case, as_sequence):
    module, z = trained(case, as_sequence)
    quantizer = from_vector_quantize_pytorch(module)
    assert quantizer.kind == case[0], getattr(quantizer, "reason", "")
    assert not quantizer.training
    agree(quantizer, z, *expected(module, z, as_sequence))


@every_native
def test_it_can_be_wrapped_instead(case, as_sequence):
    module, z = trained(case, as_sequence)
    quantizer = from_vector_quantize_pytorch(module, wrap=True)
    assert quantizer.kind == "foreign"
    agree(quantizer, z, *expected(module, z, as_sequence))


@every_native
def test_it_is_plain_data_and_plain_tensors(case, as_sequence):
    module, z = trained(case, as_sequence)
    quantizer = from_vector_quantize_pytorch(module)
    again = build(json.loads(json.dumps(quantizer.options()))).eval()
    again.load_state_dict(load(save(quantizer.state_dict())))
    assert torch.equal(again.encode(z), quantizer.encode(z))
    # a copy: training the module does not move it
    before = quantizer.decode(quantizer.encode(z)).clone()
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            tensor.data.add_(1.0)
    assert torch.equal(quantizer.decode(quantizer.encode(z)), before)


@every_native
def test_and_back(case, as_sequence):
    module, z = trained(case, as_sequence)
    quantizer = from_vector_quantize_pytorch(module)
    back = to_vector_quantize_pytorch(quantizer)
    assert type(back) is type(module)
    assert not back.training
    agree(quantizer, z, *expected(back, z, as_sequence))
    theirs, ours = module.state_dict(), back.state_dict()
    values = {key for key in ours if key.startswith("values_per_latent")}
    assert set(ours) - values == set(theirs) - values
    for key, tensor in theirs.items():
        # averages of a codebook that learns by gradients move nothing, and are not kept
        if not (case[2].get("learnable_codebook", "directional_reparam" in case[2]) and key.endswith("embed_avg")):
            assert_close(ours[key], tensor, rtol=1e-6, atol=1e-6)


@every_native
def test_its_state_dict_loads(case, as_sequence):
    module, z = trained(case, as_sequence)
    state = module.state_dict()
    quantizer = build(from_vector_quantize_pytorch(module).options()).eval()
    for name, parameter in quantizer.named_parameters():
        if "value_DL" not in name:
            parameter.data.normal_()
    load_vector_quantize_pytorch(quantizer, {f"model.vq.{k}": v for k, v in state.items()} | {"head": z}, "model.vq.")
    agree(quantizer, z, *expected(module, z, as_sequence))
    again = build(quantizer.options())
    load_vector_quantize_pytorch(again, vector_quantize_pytorch_state(quantizer))
    assert all(torch.equal(tensor, quantizer.state_dict()[key]) for key, tensor in again.state_dict().items())


@every_native
def test_a_state_dict_that_does_not_fit_is_refused_by_key(case, as_sequence):
    module, _ = trained(case, as_sequence)
    quantizer = from_vector_quantize_pytorch(module)
    before = {key: tensor.clone() for key, tensor in quantizer.state_dict().items()}
    state = module.state_dict()
    with pytest.raises(ValueError, match=r"stray of shape \(3,\) is unknown: expected "):
        load_vector_quantize_pytorch(quantizer, state | {"stray": torch.zeros(3)})
    for key, tensor in state.items():
        found = torch.zeros(7, *tensor.shape)
        shapes = rf"{key} has shape \(7,.*: expected \({', '.join(map(str, tensor.shape))},?\)"
        with pytest.raises(ValueError, match=shapes):
            load_vector_quantize_pytorch(quantizer, state | {key: found})
        if not key.endswith(("initted", "cluster_size", "embed_avg", "mask")):
            without = {other: value for other, value in state.items() if other != key}
            with pytest.raises(ValueError, match=rf"{key} is missing: expected "):
                load_vector_quantize_pytorch(quantizer, without)
    assert all(torch.equal(tensor, before[key]) for key, tensor in quantizer.state_dict().items())
