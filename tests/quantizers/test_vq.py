"""The learned codebook: it learns, revives dead rows, follows its formula, and is the same over processes."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantizers import VQ
from quantizers.vq import orthogonality


def mixture(count, seed=0, centres=32, dim=8):
    """Points around well separated centres."""
    where = torch.randn(centres, dim, generator=torch.Generator().manual_seed(99)) * 3
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(centres, (count,), generator=generator)
    return (where[index] + 0.1 * torch.randn(count, dim, generator=generator))[None]


def learned(vq, batches=60, size=256):
    for seed in range(batches):
        vq(mixture(size, seed))
    return vq.eval()


def error_and_usage(vq, z):
    codes = vq.encode(z)
    return float((vq.decode(codes) - z).square().mean().detach()), len(codes.unique())


def test_it_learns_beyond_its_first_batch_and_far_beyond_random_rows():
    held_out = mixture(2000, seed=1000)
    vq, random_rows = VQ(128, 8), VQ(128, 8).eval()
    random_rows.codebook_KD.mul_(held_out.std((0, 1))).add_(held_out.mean((0, 1)))
    vq(mixture(256))
    first_error, _ = error_and_usage(vq, held_out)
    error, usage = error_and_usage(learned(vq), held_out)
    random_error, random_usage = error_and_usage(random_rows, held_out)
    assert error < 0.8 * first_error
    assert error < 0.01 * random_error
    assert random_usage < 60 < 115 < usage


def test_revival_is_what_keeps_rows_in_use():
    held_out = mixture(2000, seed=1000)
    usage = {}
    for revive in (0.0, 0.1):
        torch.manual_seed(0)
        vq = VQ(64, 8, decay=0.9, revive=revive)
        vq.codebook_KD.add_(4)  # far from the data: a collapsed start
        vq.count_K.fill_(4), vq.sum_KD.copy_(4 * vq.codebook_KD)
        usage[revive] = error_and_usage(learned(vq), held_out)[1]
    assert usage[0.0] <= 24
    assert usage[0.1] >= 48


def test_first_batch_initialises_every_row_from_data():
    vq = VQ(16, 8)
    z = mixture(256) + 100
    vq(z)
    assert float((vq.codebook_KD - 100).abs().max()) < 15
    assert len(vq.encode(z).unique()) >= 12


@pytest.mark.parametrize("count", [0.0, 3.0])
def test_one_step_is_the_closed_form(count):
    vq = VQ(5, 2, decay=0.9, revive=0)
    if count:
        vq.count_K.fill_(count)
        vq.sum_KD.copy_(count * vq.codebook_KD)
    before = vq.codebook_KD.clone()
    z = torch.randn(1, 7, 2)
    codes = vq(z).codes_BNS[0, :, 0]
    for k in range(5):
        mine = z[0, codes == k]
        new_count = 0.9 * count + 0.1 * len(mine)
        expected = (0.9 * count * before[k] + 0.1 * mine.sum(0)) / new_count if new_count else before[k]
        torch.testing.assert_close(vq.count_K[k], torch.tensor(new_count))
        torch.testing.assert_close(vq.codebook_KD[k], expected)


def test_loss_is_the_commitment_and_its_gradient_pulls_the_input():
    vq = VQ(8, 3, commitment=0.5).eval()
    z = torch.randn(2, 4, 3, requires_grad=True)
    out = vq(z)
    code = vq.decode(out.codes_BNS)
    torch.testing.assert_close(out.loss, 0.5 * (z - code).square().mean())
    (gradient,) = torch.autograd.grad(out.loss, z)
    torch.testing.assert_close(gradient, 0.5 * 2 * (z - code).detach() / z.numel())


def test_evaluation_leaves_the_codebook_alone():
    vq = learned(VQ(16, 8), batches=3)
    before = {name: value.clone() for name, value in vq.state_dict().items()}
    vq(mixture(64, seed=7))
    assert all(torch.equal(before[name], value) for name, value in vq.state_dict().items())


@pytest.mark.parametrize("z", [torch.ones(1, 1, 1), torch.ones(1, 1, 4), torch.ones(2, 8, 4)])
def test_degenerate_batches_stay_finite(z):
    vq = VQ(16, z.shape[-1])
    for _ in range(3):
        vq(z)
    assert all(bool(torch.isfinite(value).all()) for value in vq.state_dict().values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 1}, "size=1"),
        ({"dim": 0}, "dim=0"),
        ({"decay": 1.0}, r"decay=1.0.*\[0, 1\)"),
        ({"commitment": -1}, "commitment=-1"),
        ({"revive": -0.1}, "revive=-0.1"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VQ(**{"size": 8, "dim": 2} | options)


# ------------------------------------------------------------------------------------------- the other options


def on_a_sphere(count, seed=0, centres=24, dim=6):
    """Directions around well separated ones, with lengths that say nothing."""
    generator = torch.Generator().manual_seed(seed)
    where = torch.randn(centres, dim, generator=torch.Generator().manual_seed(7))
    index = torch.randint(centres, (count,), generator=generator)
    z = where[index] + 0.1 * torch.randn(count, dim, generator=generator)
    return (z * torch.rand(count, 1, generator=generator).mul(20).add(0.1))[None]


def test_cosine_does_not_care_about_length():
    vq = learned_on(on_a_sphere, VQ(48, 6, metric="cosine"))
    z = on_a_sphere(500, seed=1000)
    codes = vq.encode(z)
    assert torch.equal(codes, vq.encode(z * torch.rand(1, 500, 1).add(0.5)))
    rows = vq.decode(codes)
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(1, 500))
    angle = torch.nn.functional.cosine_similarity(z, rows, dim=-1)
    best = torch.nn.functional.cosine_similarity(z[0, :, None], vq.codebook_KD[None], dim=-1).max(1).values
    torch.testing.assert_close(angle[0], best, atol=1e-5, rtol=0)
    euclid = learned_on(on_a_sphere, VQ(48, 6))
    other = torch.nn.functional.cosine_similarity(z, euclid.decode(euclid.encode(z)), dim=-1)
    assert float(angle.mean()) > 0.98
    assert float(other.mean()) < float(angle.mean()) - 0.01


def learned_on(draw, vq, batches=60, size=256, rate=0.0):
    optimizer = torch.optim.SGD(vq.parameters(), rate) if rate else None
    for seed in range(batches):
        out = vq(draw(size, seed))
        if optimizer:
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
    return vq.eval()


def test_a_gradient_codebook_learns_by_its_loss():
    held_out = mixture(2000, seed=1000)
    vq, fixed = (learned_on(mixture, VQ(128, 8, codebook="gradient"), batches=200, rate=r) for r in (50.0, 0.0))
    (error, usage), (without, _) = error_and_usage(vq, held_out), error_and_usage(fixed, held_out)
    assert error < 0.8 * without
    assert usage > 110
    assert [name for name, _ in vq.named_parameters()] == ["codebook_KD"]
    assert "sum_KD" not in vq.state_dict()


def test_losses_of_a_gradient_codebook_are_the_two_terms():
    vq = VQ(8, 3, codebook="gradient", commitment=0.5).eval()
    z = torch.randn(2, 4, 3, requires_grad=True)
    out = vq(z)
    code = vq.decode(out.codes_BNS).detach()
    torch.testing.assert_close(out.loss, 1.5 * (z - code).square().mean())
    to_z, to_rows = torch.autograd.grad(out.loss, [z, vq.codebook_KD])
    torch.testing.assert_close(to_z, 0.5 * 2 * (z - code).detach() / z.numel())
    expected = torch.zeros(8, 3).index_add_(
        0, out.codes_BNS.flatten(), (2 * (code - z) / z.numel()).flatten(0, 1).detach()
    )
    torch.testing.assert_close(to_rows, expected)


def test_k_means_starts_better_than_samples():
    held_out = mixture(2000, seed=1000)
    errors = []
    for iterations in (0, 10):
        torch.manual_seed(0)
        vq = VQ(48, 8, kmeans=iterations, revive=0.0 if iterations else 0.1)
        vq(mixture(1024))
        errors.append(error_and_usage(vq.eval(), held_out)[0])
    assert errors[1] < 0.7 * errors[0]


def test_k_means_runs_once_also_after_loading():
    vq = VQ(16, 8, kmeans=5, revive=0.0, decay=0.99)
    vq(mixture(256))
    again = VQ(16, 8, kmeans=5, revive=0.0, decay=0.99)
    again.load_state_dict(vq.state_dict())
    before = again.codebook_KD.clone()
    for quantizer in (vq, again):
        quantizer(mixture(256, seed=1) + 50)
    assert torch.equal(vq.codebook_KD, again.codebook_KD)
    assert float((again.codebook_KD - before).abs().max()) < 10  # one step of the averages, not a new start at 50


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_lloyd_is_the_textbook_algorithm(metric):
    vq, z = VQ(4, 3, metric=metric, kmeans=3), torch.randn(60, 3)
    z = vq._normalised(z)
    start = z[:4].clone()
    rows, counts = vq._k_means(z, None, start)
    expected = start
    for _ in range(3):
        index = torch.cdist(z, expected).argmin(1)
        expected = vq._normalised(torch.stack([z[index == k].mean(0) for k in range(4)]))
    torch.testing.assert_close(rows, expected, atol=1e-5, rtol=0)
    assert counts.tolist() == torch.bincount(index, minlength=4).tolist()


def test_rotation_turns_and_scales_the_gradient():
    vq = VQ(8, 3, estimator="rotation").eval()
    z = torch.randn(1, 5, 3, requires_grad=True)
    out = vq(z)
    q = vq.decode(out.codes_BNS)
    torch.testing.assert_close(out.z_BND, q)
    jacobian = torch.autograd.functional.jacobian(lambda x: vq(x).z_BND[0, 0], z)[:, 0, 0]
    unit = torch.nn.functional.normalize
    scale = q[0, 0].norm() / z[0, 0].norm()
    torch.testing.assert_close(jacobian @ jacobian.T, scale.square() * torch.eye(3), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(jacobian @ z[0, 0] / scale, unit(q[0, 0], dim=0) * z[0, 0].norm(), atol=1e-4, rtol=1e-4)


def test_diveq_trains_the_codebook_without_a_loss():
    vq = VQ(64, 8, codebook="gradient", estimator="diveq", commitment=0.0)
    vq(mixture(256))
    start, _ = error_and_usage(vq.eval(), mixture(2000, seed=1000))
    optimizer = torch.optim.Adam(vq.train().parameters(), 0.02)
    for seed in range(200):
        z = mixture(256, seed)
        out = vq(z)
        assert float(out.loss.detach()) == 0
        optimizer.zero_grad()
        (out.z_BND - z).square().mean().backward()
        optimizer.step()
    error, _ = error_and_usage(vq.eval(), mixture(2000, seed=1000))
    assert error < 0.8 * start
    z = mixture(64)
    torch.testing.assert_close(vq(z).z_BND, vq.decode(vq.encode(z)))


def test_orthogonality_is_the_mean_squared_cosine_of_pairs():
    rows = torch.randn(20, 6)
    cosine = torch.nn.functional.normalize(rows.double(), dim=1)
    pairs = (cosine @ cosine.T - torch.eye(20)).square().sum() / 400
    torch.testing.assert_close(orthogonality(rows).double(), pairs, atol=1e-6, rtol=0)
    assert float(orthogonality(torch.eye(8))) == pytest.approx(0, abs=1e-6)
    vq = VQ(20, 6, codebook="gradient", orthogonal=10.0, commitment=0.0, revive=0.0)
    optimizer = torch.optim.SGD(vq.parameters(), 1.0)
    before = float(orthogonality(vq.codebook_KD.detach()))
    for seed in range(50):
        optimizer.zero_grad()
        vq(torch.randn(1, 64, 6, generator=torch.Generator().manual_seed(seed))).loss.backward()
        optimizer.step()
    assert float(orthogonality(vq.codebook_KD.detach())) < 0.9 * before


def test_stochastic_codes_in_training_only():
    vq, z = VQ(8, 2, temperature=4.0, revive=0.0), torch.randn(1, 500, 2)
    nearest_codes = vq.encode(z)
    assert 0.1 < float((vq(z).codes_BNS != nearest_codes).float().mean()) < 1
    vq.eval()
    assert torch.equal(vq(z).codes_BNS, vq.encode(z))


def test_a_mask_keeps_padding_out_of_the_codebook():
    z, mask = mixture(256), torch.zeros(1, 256, dtype=torch.bool)
    mask[0, :100] = True
    masked, alone = VQ(16, 8, kmeans=3), VQ(16, 8, kmeans=3)
    alone.load_state_dict(masked.state_dict())
    z[0, 100:] += 1000
    out = masked(z, mask)
    assert float(masked.codebook_KD.abs().max()) < 100
    assert int(masked.count_K.sum().round()) == pytest.approx(100, abs=1)
    assert bool((out.codes_BNS[0, 100:] == 0).all())
    masked(torch.full_like(z, torch.nan), torch.zeros_like(mask))  # nothing real in it: nothing happens
    assert bool(torch.isfinite(masked.codebook_KD).all())


def test_k_means_waits_for_the_first_real_vector():
    vq, z = VQ(16, 8, kmeans=5, revive=0.0), mixture(256)
    start = vq.codebook_KD.clone()
    vq(z, torch.zeros(1, 256, dtype=torch.bool))
    assert torch.equal(vq.codebook_KD, start)
    vq(z)
    assert error_and_usage(vq.eval(), z)[0] < 0.5 * float((z - z.mean((0, 1))).square().mean())


@pytest.mark.parametrize("options", [{"metric": "cosine"}, {"orthogonal": 1.0}, {"estimator": "diveq"}], ids=str)
def test_a_gradient_codebook_may_be_used_twice_before_the_backward_pass(options):
    """As in a shared residual level: reviving rows in the second call must leave the first one's gradient alone."""
    vq = VQ(16, 8, codebook="gradient", revive=0.5, **options)
    z = mixture(64).requires_grad_()
    first = vq(z)
    loss, rows = first.loss + first.z_BND.sum(), vq.codebook_KD.detach().clone()
    (alone,) = torch.autograd.grad(loss, vq.codebook_KD, retain_graph=True)
    vq.count_K.zero_()  # every row is dead now
    vq(mixture(64, seed=1) + 30)
    assert not torch.equal(vq.codebook_KD.detach(), rows)
    assert torch.equal(torch.autograd.grad(loss, vq.codebook_KD)[0], alone)


# -------------------------------------------------------------------------------------------- several processes

CASES = {
    "plain": {"revive": 0.0},
    "revived": {"revive": 0.5},
    "kmeans": {"kmeans": 4},
    "cosine": {"kmeans": 2, "metric": "cosine"},
    "gradient": {"codebook": "gradient"},
}
EACH_PROCESS = """
import json, os, sys, torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from quantizers import VQ

torch.set_num_threads(1)
folder, cases = sys.argv[1], json.loads(sys.argv[2])
dist.init_process_group("gloo")
rank = dist.get_rank()
for name, options in cases.items():
    torch.manual_seed(0)
    vq = VQ(32, 8, decay=0.9, **options)
    for z, mask in zip(*load_file(f"{folder}/batches.safetensors").values()):
        if rank:
            torch.rand(7)  # the other process's random numbers are others
        count = z.shape[1] if name == "plain" else 40 + 24 * rank  # unequal batches
        vq(z[rank : rank + 1, :count], mask[rank : rank + 1, :count])
    save_file(vq.state_dict(), f"{folder}/{name}-{rank}.safetensors")
dist.destroy_process_group()
"""


def test_two_processes_equal_one_on_the_joined_batch(tmp_path, run_two_processes):
    """Statistics, k-means and revival, with masks and with unequal batches."""
    z = torch.stack([mixture(128, seed).view(2, 64, 8) for seed in range(4)])
    mask = torch.rand(4, 2, 64) < 0.8
    save_file({"z": z, "mask": mask}, tmp_path / "batches.safetensors")
    run_two_processes(EACH_PROCESS, tmp_path, json.dumps(CASES))
    for name, options in CASES.items():
        first, second = (load_file(tmp_path / f"{name}-{rank}.safetensors") for rank in (0, 1))
        assert all(torch.equal(first[key], second[key]) for key in first)
        torch.manual_seed(0)
        alone = VQ(32, 8, decay=0.9, **options)
        for batch, real in zip(z, mask, strict=True):
            parts = [(batch[0], real[0]), (batch[1], real[1])]
            if name != "plain":
                parts = [(a[:count], b[:count]) for (a, b), count in zip(parts, (40, 64), strict=True)]
            alone(torch.cat([a for a, _ in parts])[None], torch.cat([b for _, b in parts])[None])
        for key, value in alone.state_dict().items():
            torch.testing.assert_close(first[key], value, atol=1e-5, rtol=1e-5, msg=f"{name} {key}")
