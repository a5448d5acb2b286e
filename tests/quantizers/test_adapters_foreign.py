"""What has no counterpart here keeps running as it is, behind our contract."""

import itertools
from copy import deepcopy
from functools import partial

import pytest
import torch
import vector_quantize_pytorch as peer
from torch import nn
from torch.testing import assert_close

from quantizers.adapters import Foreign, from_vector_quantize_pytorch, to_vector_quantize_pytorch


def vq(**options):
    return peer.VectorQuantize(**({"dim": 8, "codebook_size": 32} | options))


def rvq(**options):
    return peer.ResidualVQ(**({"dim": 8, "codebook_size": 16, "num_quantizers": 3} | options))


def lfq(**options):
    return peer.LFQ(**({"dim": 8, "codebook_size": 256} | options))


def scales(**options):
    return peer.HierarchicalVQ(**({"dim": 8, "codebook_size": 16, "scales": [1, 2, 4], "kmeans_init": False} | options))


def mlp(*widths):
    return nn.Sequential(nn.Linear(*widths), nn.Tanh(), nn.Linear(*widths[::-1]))


GRADIENT = {"learnable_codebook": True, "ema_update": False}
SGD = partial(torch.optim.SGD, lr=0.1)

# Part of the reason given, and how the module is made.
FOREIGN = {
    "affine_param": lambda: vq(affine_param=True),
    "vq_bridge": lambda: vq(vq_bridge=nn.Linear(8, 8)),
    "commitment_use_cross_entropy_loss": lambda: vq(commitment_use_cross_entropy_loss=True),
    "codebook_diversity_loss_weight": lambda: vq(codebook_diversity_loss_weight=0.1),
    "stochastic_sample_codes": lambda: vq(stochastic_sample_codes=True),
    "straight_through=True": lambda: vq(straight_through=True, rotation_trick=False),
    "in_place_codebook_optimizer": lambda: vq(in_place_codebook_optimizer=SGD, **GRADIENT),
    "sync_update_v": lambda: vq(sync_update_v=0.5, **GRADIENT),
    "commitment_weight=0.25": lambda: vq(commitment_weight=0.25, **GRADIENT),
    "freeze_codebook": lambda: vq(freeze_codebook=True),
    "ema_update=False": lambda: vq(ema_update=False),
    "manual_ema_update": lambda: vq(manual_ema_update=True),
    "eps=0.01": lambda: vq(eps=0.01),
    "route_gradients_to_input": lambda: vq(route_gradients_to_input=False),
    "learnable=True": lambda: vq(orthogonal_reg_weight=1.0),
    "orthogonal_reg_active_codes_only": lambda: vq(
        orthogonal_reg_weight=1.0, orthogonal_reg_active_codes_only=True, **GRADIENT
    ),
    "orthogonal_reg_max_codes": lambda: vq(orthogonal_reg_weight=1.0, orthogonal_reg_max_codes=8, **GRADIENT),
    "directional_reparam_variance": lambda: vq(directional_reparam=True, threshold_ema_dead_code=2),
    "expected a codebook of at least 2 rows": lambda: vq(codebook_size=1),
    "decay=1.0": lambda: vq(decay=1.0, heads=2, codebook_dim=3),
    "affine_param=True of Codebook": lambda: vq(affine_param=True, heads=2, codebook_dim=3, channel_last=False),
    "codebook_diversity_loss": lambda: vq(codebook_diversity_loss_weight=1.0, accept_image_fmap=True, codebook_dim=3),
    "implicit_neural_codebook": lambda: rvq(implicit_neural_codebook=True),
    "implicit_neural": lambda: rvq(implicit_neural_codebook=True, codebook_dim=4, mlp_kwargs={"depth": 2}),
    "beam_size=3": lambda: rvq(beam_size=3),
    "beam_size": lambda: peer.GroupedResidualVQ(dim=8, groups=2, codebook_size=16, num_quantizers=3, beam_size=2),
    "quant_grad_frac": lambda: rvq(quant_grad_frac=0.5),
    "diveq": lambda: rvq(diveq=True, rotation_trick=False),
    "quantize_dropout_cutoff_index": lambda: rvq(quantize_dropout=True, quantize_dropout_cutoff_index=1),
    "codebook_diversity": lambda: rvq(codebook_diversity_loss_weight=0.1, accept_image_fmap=True),
    "orthogonal_rotation=True of FSQ": lambda: peer.FSQ([5, 5, 5], dim=8, orthogonal_rotation=True),
    "orthogonal_rotation": lambda: peer.FSQ([4, 4], num_codebooks=2, orthogonal_rotation=True, return_indices=False),
    "orthogonal": lambda: peer.ResidualFSQ(levels=[5, 5], num_quantizers=2, orthogonal_rotation=True),
    "orthogonal_rotation=True of LFQ": lambda: lfq(orthogonal_rotation=True, dim=16, num_codebooks=2),
    "orthogonal_rotation=T": lambda: peer.ResidualLFQ(
        dim=8, codebook_size=256, num_quantizers=2, spherical=True, orthogonal_rotation=True
    ),
    "CosineSimLinear": lambda: lfq(dim=12, cosine_sim_project_in=True),
    "soft_clamp_input_value": lambda: lfq(soft_clamp_input_value=2.0),
    "frac_per_sample_entropy": lambda: lfq(frac_per_sample_entropy=0.5),
    "experimental_softplus_entropy_loss": lambda: lfq(experimental_softplus_entropy_loss=True),
    "straight_through_activation": lambda: lfq(straight_through_activation=nn.Tanh()),
    "codebook_scale": lambda: lfq(spherical=True, codebook_scale=0.5, channel_first=True),
    "soft_clamp": lambda: peer.ResidualLFQ(
        dim=12, codebook_size=256, num_quantizers=2, soft_clamp_input_value=4.0, quantize_dropout=True
    ),
    "soft": lambda: peer.GroupedResidualLFQ(
        dim=12, groups=2, codebook_size=64, num_quantizers=2, soft_clamp_input_value=4.0
    ),
    "codebook_transform": lambda: peer.SimVQ(dim=8, codebook_size=32, codebook_transform=mlp(8, 6)),
    "codebook_trans": lambda: peer.ResidualSimVQ(
        dim=8, codebook_size=32, num_quantizers=2, codebook_transform=mlp(8, 6), channel_first=True
    ),
    "FSP has no counterpart": lambda: peer.FSP([5, 4, 3]),
    "FSP has": lambda: peer.FSP([5, 4, 3], dim=8, act_name="normal", need_inv_act=True, channel_first=True),
    "RandomProjectionQuantizer": lambda: peer.RandomProjectionQuantizer(dim=8, codebook_size=16, codebook_dim=4),
    "RandomProjection": lambda: peer.RandomProjectionQuantizer(
        dim=8, codebook_size=16, codebook_dim=4, num_codebooks=3, norm=False
    ),
    "BinaryMapper": lambda: peer.BinaryMapper(bits=6, deterministic_on_eval=True),
    "vqs": lambda: scales(shared_codebook=False, codebook_size=[8, 16, 32], accept_image_fmap=True),
    "share_quant_resi": lambda: scales(share_quant_resi=3, scales=[1, 2, 3, 4], accept_image_fmap=True),
    "spatial_dims=1": lambda: scales(),
    "spatial_dims=3": lambda: scales(accept_3d_fmap=True, channel_first=False),
    "nested_dropout": lambda: scales(nested_dropout=0.5, accept_image_fmap=True, channel_first=False),
    "Sequential": lambda: peer.Sequential(nn.Linear(8, 5), nn.LayerNorm(5), vq(dim=5), nn.Linear(5, 7)),
    "Sequential has": lambda: peer.Sequential(peer.FSQ([8, 5, 5])),
    "EvoLFQ": lambda: peer.EvoLFQ(nn.Linear(10, 8), mlp(8, 6), lfq()),
    "EvoLFQ has": lambda: peer.EvoLFQ(nn.Linear(10, 6), nn.Linear(6, 4), dim=6, codebook_size=8, num_codebooks=2),
    "in_place_codebook": lambda: peer.LatentQuantize([5, 4], dim=6, num_codebooks=2, in_place_codebook_optimizer=SGD),
}
# Training these is refused by the package itself, or changes what the next call gives.
NO_TRAINING = {"in_place_codebook"}

every_foreign = pytest.mark.parametrize("reason", FOREIGN)
every_trainable = pytest.mark.parametrize("reason", [reason for reason in FOREIGN if reason not in NO_TRAINING])
KEPT = {}


def made(reason):
    """Module, quantizer around it and vectors, after two training batches; a copy of what was trained once."""
    if reason not in KEPT:
        torch.manual_seed(0)
        module = FOREIGN[reason]()
        quantizer = from_vector_quantize_pytorch(module)
        n = quantizer.part.counts[-1] if type(module).__name__ == "HierarchicalVQ" else 64
        if reason not in NO_TRAINING:
            for _ in range(2):
                quantizer(torch.randn(3, n, quantizer.in_dim))
        KEPT[reason] = module.eval(), quantizer.eval(), torch.randn(3, n, quantizer.in_dim)
    return deepcopy(KEPT[reason])


def theirs(module, z, as_sequence, copy=True):
    """Vectors and codes, where the class gives them and takes sequences at all."""
    module, name = deepcopy(module) if copy else module, type(module).__name__
    if name == "RandomProjectionQuantizer":
        return None, module(z).reshape(*z.shape[:2], -1)
    if getattr(module, "diveq", False) and not module.training:
        return None, module(z)[1]  # it adds its noise in evaluation too; here vectors are those of the codes
    if name == "BinaryMapper":
        vectors, codes, _ = module(z, return_indices=True)
        return vectors, codes[..., None]
    if name == "ResidualVQ" and module.accept_image_fmap:
        cube = z.transpose(1, 2).reshape(3, 8, 8, 8)
        vectors, codes, _ = module(cube)
        return vectors.flatten(2).transpose(1, 2), codes.flatten(1, 2)
    return as_sequence(module, z)


@every_foreign
def test_it_gives_what_the_module_gives(reason, as_sequence):
    module, quantizer, z = made(reason)
    assert isinstance(quantizer, Foreign)
    assert quantizer.reason.find(reason) >= 0, quantizer.reason
    vectors, codes = theirs(module, z, as_sequence)
    out = quantizer(z)
    if codes is not None:
        assert torch.equal(out.codes_BNS, codes)
    if vectors is not None:
        assert_close(out.z_BND, vectors, rtol=1e-5, atol=1e-5)
    assert_close(quantizer.decode(out.codes_BNS), out.z_BND, rtol=1e-5, atol=1e-5)
    assert out.z_BND.shape == (3, z.shape[1], quantizer.dim)
    assert out.codes_BNS.shape == (3, quantizer.length(z.shape[1]), len(quantizer.codes))
    # the affine map follows every batch, in evaluation too
    if "affine" not in reason:
        assert torch.equal(quantizer.encode(z), out.codes_BNS)


@every_foreign
def test_it_keeps_the_contract(reason):
    module, quantizer, z = made(reason)
    before = [dict(vars(part)) for part in module.modules() if "training" in vars(part)]
    codes = quantizer(z).codes_BNS
    assert codes.dtype == torch.int64
    assert bool(((codes >= 0) & (codes < torch.tensor(quantizer.codes))).all())
    with torch.autocast("cpu", torch.bfloat16):
        low = quantizer(z.bfloat16())
    assert low.z_BND.dtype == low.loss.dtype == torch.float32
    with pytest.raises(ValueError, match=r"z_BND has 1 NaN or Inf"):
        quantizer(z.index_fill(0, torch.tensor([1]), 0).index_put((torch.tensor(0),) * 3, torch.tensor(torch.nan)))
    with pytest.raises(ValueError, match=rf"foreign expects \[batch, position, {quantizer.in_dim}\]"):
        quantizer.encode(torch.zeros(1, z.shape[1], quantizer.in_dim + 1))
    with pytest.raises(ValueError, match=rf"has codes 0..{quantizer.codes[-1] - 1}"):
        quantizer.decode(torch.full_like(codes, quantizer.codes[-1]))
    with pytest.raises(ValueError, match=rf"{type(module).__name__} of vector_quantize_pytorch .* build the module"):
        quantizer.options()
    with pytest.raises(ValueError, match="cannot read codes off vectors"):
        quantizer.codes_of(quantizer.decode(codes))
    assert to_vector_quantize_pytorch(quantizer) is module
    after = [dict(vars(part)) for part in module.modules() if "training" in vars(part)]
    for left, right in zip(before, after, strict=True):  # its layout and mode are as they were
        assert {k: v for k, v in left.items() if isinstance(v, bool)} == {
            k: v for k, v in right.items() if isinstance(v, bool)
        }


def masked(quantizer, z):
    """What comes out where a third of the positions hold garbage, the mask, and what went in."""
    mask = torch.rand(z.shape[:2]) < 0.7
    filled = torch.where(mask[..., None], z, 1e3).requires_grad_()
    out = quantizer(filled, mask)
    assert bool((out.z_BND[~mask] == 0).all())
    assert bool(torch.isfinite(out.loss))
    if quantizer.pointwise:
        assert bool((out.codes_BNS[~mask] == 0).all())
    return out, mask, filled


@every_foreign
def test_masked_positions_count_for_nothing(reason):
    _, quantizer, z = made(reason)
    out, mask, _ = masked(quantizer, z)
    if "affine" not in reason:
        alone = quantizer(torch.where(mask[..., None], z, 0.0), mask)
        assert torch.equal(alone.z_BND, out.z_BND)
        assert torch.equal(alone.codes_BNS, out.codes_BNS)
        if quantizer.pointwise:
            assert torch.equal(out.codes_BNS[mask], quantizer.encode(z)[mask])


@every_trainable
def test_masked_positions_get_no_gradient(reason):
    _, quantizer, z = made(reason)
    out, mask, filled = masked(quantizer.train(), z)
    (out.z_BND.square().sum() + out.loss).backward()
    assert bool((filled.grad[~mask] == 0).all())


@every_trainable
def test_it_trains_by_its_own_rules(reason, as_sequence):
    module, quantizer, z = made(reason)
    twin = deepcopy(module).train()
    z.requires_grad_()
    torch.manual_seed(1)
    vectors, codes = theirs(twin, z, as_sequence, copy=False)
    torch.manual_seed(1)
    out = quantizer.train()(z)
    if codes is not None:  # it marks levels left out by dropout with -1
        assert torch.equal(out.codes_BNS, codes.clamp(min=0))
    if vectors is not None:
        assert_close(out.z_BND, vectors, rtol=1e-5, atol=1e-5)
    for key, tensor in twin.state_dict().items():
        assert_close(module.state_dict()[key], tensor, rtol=1e-5, atol=1e-6)
    assert (out.loss.shape, out.loss.dtype) == ((), torch.float32)
    ((out.z_BND * torch.randn_like(out.z_BND)).sum() + out.loss).backward()
    assert bool(z.grad.any()) == (type(module).__name__ != "RandomProjectionQuantizer")


@every_foreign
def test_empty_batches_are_legal(reason):
    _, quantizer, z = made(reason)
    shapes = [(0, z.shape[1])] if not quantizer.pointwise else [(0, 4), (3, 0)]
    for shape, training in itertools.product(shapes, (False, True)):
        quantizer.train(training)
        empty = torch.zeros(*shape, quantizer.in_dim, requires_grad=True)
        out, codes = quantizer(empty), quantizer.encode(empty)
        assert out.z_BND.shape == quantizer.decode(codes).shape == (*shape, quantizer.dim)
        assert codes.shape == out.codes_BNS.shape == (shape[0], quantizer.length(shape[1]), len(quantizer.codes))
        (out.loss + out.z_BND.sum()).backward()


def test_what_it_does_not_know_it_says():
    several, one = (from_vector_quantize_pytorch(module, wrap=True) for module in (scales(), vq()))
    codes = several.encode(torch.randn(2, 4, 8))
    for ask in (
        lambda: several.vectors(codes),
        lambda: several.stream_vectors(codes),
        lambda: several.code_grid((4,)),
        lambda: several.input_grid((4,)),
    ):
        with pytest.raises(ValueError, match="HierarchicalVQ of vector_quantize_pytorch has scales"):
            ask()
    with pytest.raises(ValueError, match="VectorQuantize of vector_quantize_pytorch: build another one"):
        one.fresh()
    codes = one.encode(torch.randn(2, 5, 8))
    assert torch.equal(one.stream_vectors(codes)[..., 0, :], one.vectors(codes))
    assert one.code_grid((1, 5)) == one.input_grid((1, 5)) == (1, 5)
    levels = from_vector_quantize_pytorch(rvq(), wrap=True)
    with pytest.raises(ValueError, match=r"foreign.*3.*contributes"):
        levels.stream_vectors(levels.encode(torch.randn(2, 5, 8)))
