"""The learned codebook: it learns, revives dead rows, follows its formula, and is the same over processes."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantizers import VQ


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
    return float((vq.decode(codes) - z).square().mean()), len(codes.unique())


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


TWO_PROCESSES = """
import sys, torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from quantizers import VQ

torch.set_num_threads(1)
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
for revive in (0.0, 0.5):
    torch.manual_seed(0)
    vq = VQ(32, 8, decay=0.9, revive=revive)
    torch.manual_seed(rank)
    for z in load_file(f"{folder}/batches.safetensors")["z"]:
        vq(z.chunk(2)[rank])
    save_file(vq.state_dict(), f"{folder}/{revive}-{rank}.safetensors")
dist.destroy_process_group()
"""


def test_two_processes_equal_one_on_the_joined_batch(tmp_path):
    z = torch.stack([mixture(128, seed).view(2, 64, 8) for seed in range(4)])
    save_file({"z": z}, tmp_path / "batches.safetensors")
    command = [sys.executable, "-c", TWO_PROCESSES]
    running = [subprocess.Popen([*command, str(rank), str(tmp_path)]) for rank in (0, 1)]
    assert [process.wait(60) for process in running] == [0, 0]
    # With revival each process draws its own candidates, yet all hold the same codebook.
    for revive in ("0.0", "0.5"):
        first, second = (load_file(tmp_path / f"{revive}-{rank}.safetensors") for rank in (0, 1))
        assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(0)
    alone = VQ(32, 8, decay=0.9, revive=0.0)
    for batch in z:
        alone(batch)
    joined = load_file(tmp_path / "0.0-0.safetensors")
    assert torch.equal(joined["count_K"], alone.count_K)
    torch.testing.assert_close(joined["sum_KD"], alone.sum_KD, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(joined["codebook_KD"], alone.codebook_KD, atol=1e-5, rtol=1e-6)
