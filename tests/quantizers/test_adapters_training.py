"""Converted quantizers train on as vector-quantize-pytorch would, where both have the same rules."""

import sys

import pytest
import torch
import vector_quantize_pytorch as peer
from torch import nn
from torch.testing import assert_close

from quantizers import BSQ, FSQ, IBQ, LFQ, VQ, Gaussian, Product, Projected, Residual, SimVQ
from quantizers.adapters import (
    Foreign,
    from_vector_quantize_pytorch,
    load_vector_quantize_pytorch,
    to_vector_quantize_pytorch,
    vector_quantize_pytorch_state,
)

TABLE = {"dim": 8, "codebook_size": 32}
LEARNABLE = TABLE | {"learnable_codebook": True, "ema_update": False}

# What its loss is compared with: losses of levels and groups are means here.
LOSSES = {
    "ema": ("VectorQuantize", TABLE, 1.0),
    "cosine": ("VectorQuantize", TABLE | {"use_cosine_sim": True, "commitment_weight": 0.3}, 1.0),
    "straight": ("VectorQuantize", TABLE | {"rotation_trick": False}, 1.0),
    "heads": ("VectorQuantize", TABLE | {"heads": 2, "codebook_dim": 4}, 1.0),
    "separate": ("VectorQuantize", TABLE | {"heads": 2, "codebook_dim": 3, "separate_codebook_per_head": True}, 1.0),
    # one term there, moved by both; two terms here, each moving one
    "learnable": ("VectorQuantize", LEARNABLE, 2.0),
    "simvq": ("SimVQ", TABLE | {"commitment_weight": 0.5}, 1.0),
    "simvq_straight": ("SimVQ", TABLE | {"rotation_trick": False, "input_to_quantize_commit_loss_weight": 1.0}, 1.0),
    "fsq": ("FSQ", {"levels": [8, 5, 5]}, 1.0),
    "fsq_clamp": ("FSQ", {"levels": [4, 5, 5], "preserve_symmetry": True, "bound_hard_clamp": True}, 1.0),
    "fsq_books": ("FSQ", {"levels": [8, 5], "num_codebooks": 2, "dim": 7}, 1.0),
    "lfq": ("LFQ", {"dim": 6, "commitment_loss_weight": 0.25}, 1.0),
    "lfq_scale": ("LFQ", {"dim": 6, "codebook_scale": 0.5, "diversity_gamma": 2.0}, 1.0),
    "lfq_books": ("LFQ", {"codebook_size": 16, "num_codebooks": 3, "commitment_loss_weight": 1.0}, 1.0),
    "bsq": ("LFQ", {"dim": 6, "spherical": True, "commitment_loss_weight": 0.5}, 1.0),
    "bsq_books": ("LFQ", {"codebook_size": 16, "num_codebooks": 3, "dim": 9, "spherical": True}, 1.0),
    "latent": ("LatentQuantize", {"levels": [5, 5, 8], "dim": 3}, 1.0),
}


def pair(name, options):
    torch.manual_seed(0)
    module = getattr(peer, name)(**options)
    return module, from_vector_quantize_pytorch(module)


def outputs(module, z):
    """Vectors and the sum of losses."""
    first = type(module).__name__ == "LatentQuantize"
    vectors, _, *rest = module(z.transpose(1, 2) if first else z)
    return vectors.transpose(1, 2) if first else vectors, rest[0].sum() if rest else torch.zeros(())


@pytest.mark.parametrize("case", LOSSES)
def test_losses_gradients_and_updates(case):
    name, options, factor = LOSSES[case]
    module, quantizer = pair(name, options)
    assert not isinstance(quantizer, Foreign)
    assert quantizer.training
    weight = torch.randn(4, 64, quantizer.dim)
    for _ in range(3):
        z = (0.5 * torch.randn(4, 64, quantizer.in_dim)).requires_grad_()
        twin = z.detach().clone().requires_grad_()
        vectors, loss = outputs(module, z)
        out = quantizer(twin)
        # logarithms of its entropies are cut off at 1e-5
        rough = {"rtol": 2e-2, "atol": 2e-3} if name == "LFQ" else {"rtol": 1e-5, "atol": 1e-6}
        assert_close(out.loss, factor * loss, **rough)
        assert_close(out.z_BND, vectors, rtol=1e-5, atol=1e-5)
        (gradient,) = torch.autograd.grad((vectors * weight).sum(), z, retain_graph=True)
        (ours,) = torch.autograd.grad((out.z_BND * weight).sum(), twin, retain_graph=True)
        assert_close(ours, gradient, rtol=1e-4, atol=1e-5)
        # LatentQuantize moves its inputs by both terms, and never its values
        if name not in ("LFQ", "LatentQuantize") and loss.requires_grad:
            (gradient,) = torch.autograd.grad(loss, z, allow_unused=True)
            if gradient is not None:
                (ours,) = torch.autograd.grad(out.loss, twin)
                assert_close(ours, gradient, rtol=1e-4, atol=1e-6)
    if case not in ("learnable", "latent"):
        state = module.state_dict()
        for key, tensor in vector_quantize_pytorch_state(quantizer).items():
            # it smooths its counts by 1e-5 before it divides by them
            assert_close(tensor, state[key], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "options"), [
    ("ResidualVQ", TABLE | {"num_quantizers": 3}),
    ("ResidualVQ", TABLE | {"num_quantizers": 3, "use_cosine_sim": True}),
    ("GroupedResidualVQ", TABLE | {"num_quantizers": 2, "groups": 2}),
    ("ResidualSimVQ", TABLE | {"num_quantizers": 3}),
])  # fmt: skip
def test_losses_of_levels_are_averaged(name, options):
    module, quantizer = pair(name, options)
    z = torch.randn(4, 64, 8, requires_grad=True)
    vectors, _, losses = module(z)
    out = quantizer(z)
    assert_close(out.loss, losses.mean(), rtol=1e-5, atol=1e-6)
    assert_close(out.z_BND, vectors, rtol=1e-4, atol=1e-4)


def test_a_codebook_loaded_without_history_survives_training_and_can_still_move():
    rows = 50 + torch.randn(1, 64, 4)  # far from the data: nothing is ever near most rows
    z = rows[0, :8].repeat(1, 64, 1) + 0.1 * torch.randn(1, 512, 4)
    fresh = {"_codebook.embed": rows}
    begun = fresh | {"_codebook.cluster_size": torch.ones(1, 64), "_codebook.embed_avg": rows}
    for state in (fresh, begun):
        vq = VQ(64, 4, revive=0.1)
        load_vector_quantize_pytorch(vq, state)
        for _ in range(5):
            vq(z)
        assert_close(vq.codebook_KD[8:], rows[0, 8:], rtol=1e-5, atol=1e-4)
        assert not torch.allclose(vq.codebook_KD[:8], rows[0, :8], rtol=0, atol=1e-5)
    # negative control: without the counts those rows are taken for dead
    vq = VQ(64, 4, revive=0.1)
    vq.codebook_KD.copy_(rows[0])
    vq(z)
    assert not torch.allclose(vq.codebook_KD[8:], rows[0, 8:], rtol=1e-3, atol=1e-2)


def test_averages_are_carried_over():
    module = peer.VectorQuantize(dim=4, codebook_size=16)
    for _ in range(5):
        module(torch.randn(2, 100, 4))
    quantizer = from_vector_quantize_pytorch(module)
    assert torch.equal(quantizer.count_K, module._codebook.cluster_size[0])
    assert torch.equal(quantizer.sum_KD, module._codebook.embed_avg[0])
    without = {key: value for key, value in module.state_dict().items() if not key.endswith("embed_avg")}
    load_vector_quantize_pytorch(quantizer, without)
    assert_close(quantizer.sum_KD, quantizer.codebook_KD * quantizer.count_K[:, None])


def test_dead_codes_are_a_share_of_the_mean_count():
    module = peer.VectorQuantize(dim=4, codebook_size=16, threshold_ema_dead_code=2)
    for _ in range(30):
        module(torch.randn(8, 100, 4))
    quantizer = from_vector_quantize_pytorch(module)
    mean = float(module._codebook.cluster_size.mean())
    assert quantizer.revive == pytest.approx(2 / mean)
    assert to_vector_quantize_pytorch(quantizer)._codebook.threshold_ema_dead_code == pytest.approx(2)
    assert from_vector_quantize_pytorch(peer.VectorQuantize(dim=4, codebook_size=16)).revive == 0
    groups = peer.GroupedResidualVQ(dim=8, groups=2, codebook_size=4, num_quantizers=3, threshold_ema_dead_code=2)
    for _ in range(3):
        groups(torch.randn(8, 100, 8))
    quantizer = from_vector_quantize_pytorch(groups)
    assert isinstance(quantizer.inner, Residual)  # one for both groups
    back = to_vector_quantize_pytorch(quantizer)
    thresholds = {vq._codebook.threshold_ema_dead_code for rvq in back.rvqs for vq in rvq.layers}
    assert all(threshold == pytest.approx(2, rel=0.05) for threshold in thresholds)


def test_constants_stay_constants():
    for learn in (True, False):
        module = peer.LatentQuantize([5, 4], dim=2, optimize_values=learn)
        assert from_vector_quantize_pytorch(module).value_DL.requires_grad == learn
    trained = from_vector_quantize_pytorch(peer.LatentQuantize([5, 4], dim=2))
    codes = torch.arange(20).view(1, 20, 1)
    before = trained.decode(codes)
    trained.value_DL.data.add_(1.0)
    load_vector_quantize_pytorch(trained, {})
    assert torch.equal(trained.decode(codes), before)


def test_a_subclass_runs_as_it_is():
    class Halved(peer.VectorQuantize):
        def forward(self, x):
            return super().forward(x / 2)

    module = Halved(dim=4, codebook_size=16).eval()
    quantizer = from_vector_quantize_pytorch(module)
    assert quantizer.reason == "Halved is a subclass of VectorQuantize"
    z = torch.randn(1, 50, 4)
    assert torch.equal(quantizer.encode(z)[..., 0], module(z)[1])


def test_other_modules_are_refused():
    with pytest.raises(ValueError, match=r"module.*torch.nn.modules.linear.Linear: expected.*vector_quantize"):
        from_vector_quantize_pytorch(nn.Linear(3, 3))
    conv = peer.Sequential(nn.Conv2d(3, 8, 3), peer.FSQ([5, 5], dim=8))
    with pytest.raises(ValueError, match=r"Sequential:.*modules.*quantizer"):
        from_vector_quantize_pytorch(conv)


def test_what_it_does_not_have_is_named():
    for quantizer, option in (
        (Gaussian(4), "gaussian"),
        (FSQ([8, 5], form="paper"), "form='paper'"),
        (FSQ([8, 5], activation="sigmoid"), "activation='sigmoid'"),
        (FSQ([2, 5]), r"levels=\(2, 5\)"),
        (LFQ(6, bit_order="lsb"), "bit_order='lsb'"),
        (LFQ(6, temperature=0.1), "temperature=0.1"),
        (VQ(16, 4, temperature=0.5), "metric='euclidean'"),
        (VQ(16, 4, codebook="gradient", metric="cosine"), "metric='cosine'"),
        (Residual(FSQ([5, 5]), 2), "form='tanh'"),
        (Residual(FSQ([5, 5], form="symmetric"), 2, shrink=2.0), "shrink=2.0"),
        (Residual(VQ(16, 4), 3, dropout=0.5), "dropout=0.5"),
        (Residual(IBQ(16, 4), 2), "residual of ibq"),
        (Product([VQ(16, 4), VQ(8, 4)]), "inner of product"),
        (Product(BSQ(6), 2, shared=True), "product of bsq, shared=True"),
        (Projected(VQ(16, 4), 8, bias=False), "bias=False"),
        (Projected(VQ(16, 4), 4), "in_dim=4"),
        (Projected(SimVQ(16, 4), 8), "projected simvq"),
    ):
        with pytest.raises(ValueError, match=option):
            to_vector_quantize_pytorch(quantizer)
    with pytest.raises(ValueError, match="has no module of this structure"):
        load_vector_quantize_pytorch(Gaussian(4), {})


def test_rows_and_codebooks_that_do_not_fit_are_refused():
    state = peer.VectorQuantize(dim=4, codebook_size=16, kmeans_init=True).state_dict()
    with pytest.raises(ValueError, match=r"_codebook.initted.*False:"):
        load_vector_quantize_pytorch(VQ(16, 4), state)
    state = peer.VectorQuantize(dim=4, codebook_size=16).state_dict()
    with pytest.raises(ValueError, match=r"_codebook.embed.*length.*1.*vectors"):
        load_vector_quantize_pytorch(VQ(16, 4, metric="cosine"), state)
    state = peer.ResidualVQ(dim=4, codebook_size=16, num_quantizers=2).state_dict()
    load_vector_quantize_pytorch(Residual(VQ(16, 4), 2), state)
    with pytest.raises(ValueError, match=r"layers.1._codebook.embed differs from layers.0._codebook.embed"):
        load_vector_quantize_pytorch(Residual(VQ(16, 4), 2, shared=True), state)
    with pytest.raises(ValueError, match=r"\[1, 2, 4\]: expected \[4, 2, 1\]"):
        load_vector_quantize_pytorch(LFQ(3), {"mask": torch.tensor([1, 2, 4])})
    latent = from_vector_quantize_pytorch(peer.LatentQuantize([5, 4], dim=2))
    with pytest.raises(ValueError, match=r"values_per_latent\.1 is missing"):
        load_vector_quantize_pytorch(latent, {"values_per_latent.0": torch.zeros(5)})


def test_only_building_its_modules_needs_the_package(monkeypatch):
    quantizer = VQ(16, 4)
    state = peer.VectorQuantize(dim=4, codebook_size=16).state_dict()
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    load_vector_quantize_pytorch(quantizer, state)
    assert torch.equal(vector_quantize_pytorch_state(quantizer)["_codebook.embed"], state["_codebook.embed"])
    with pytest.raises(ImportError, match="vector_quantize_pytorch is not installed: pip install"):
        to_vector_quantize_pytorch(quantizer)
