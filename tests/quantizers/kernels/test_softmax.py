"""Straight-through rows and entropies equal their dense definition, values and gradients, in a few blocks of memory."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.profiler import ProfilerActivity, profile

from quantizers.kernels import nearest, soft_rows, softmax


def dense(z, codebook, index, temperature, mask):
    """The definition, with everything N x K."""
    score = z @ codebook.T
    soft = score.softmax(-1)
    hard = torch.nn.functional.one_hot(index, len(codebook)).to(z)
    weight = mask.to(z)[:, None] / mask.sum().clamp(min=1)
    log = (score / temperature).log_softmax(-1)
    mean = (weight * log.exp()).sum(0)
    entropy = -(weight * log.exp() * log).sum()
    return (hard + soft - soft.detach()) @ codebook, codebook[index], entropy, torch.special.entr(mean).sum()


def inputs(vectors, size, dim, dtype=torch.float64):
    z = (torch.randn(vectors, dim, dtype=dtype) / 2).requires_grad_()
    codebook = torch.randn(size, dim, dtype=dtype).requires_grad_()
    return z, codebook, nearest(z, codebook, metric="dot")


def gradients(outputs, weights, *leaves):
    total = sum((value * weight).sum() for value, weight in zip(outputs, weights, strict=True))
    return torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("block", [1, 3 * 8 * 37, softmax._BLOCK_BYTES])
@pytest.mark.parametrize(("vectors", "size", "dim"), [(1, 2, 1), (10, 37, 5), (65, 37, 3)])
@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_values_and_gradients_are_those_of_the_dense_formula(monkeypatch, block, vectors, size, dim, temperature):
    monkeypatch.setattr(softmax, "_BLOCK_BYTES", block)
    z, codebook, index = inputs(vectors, size, dim)
    mask = torch.arange(vectors) % 3 != 1
    ours = soft_rows(z, codebook, index, temperature=temperature, mask_N=mask)
    exact = dense(z, codebook, index, temperature, mask)
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)
    # each output alone, then all at once
    weights = [torch.randn_like(value) for value in exact]
    for chosen in (*torch.eye(4), torch.ones(4)):
        some = [weight * on for weight, on in zip(weights, chosen, strict=True)]
        mine = gradients(soft_rows(z, codebook, index, temperature=temperature, mask_N=mask), some, z, codebook)
        theirs = gradients(dense(z, codebook, index, temperature, mask), some, z, codebook)
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8)


def test_float32_is_as_exact_as_its_rounding():
    z, codebook, index = inputs(64, 300, 16)
    mask = torch.ones(64, dtype=torch.bool)
    low = [tensor.detach().float().requires_grad_() for tensor in (z, codebook)]
    weights = [torch.randn_like(value) for value in dense(z, codebook, index, 0.1, mask)]
    ours, exact = soft_rows(*low, index, temperature=0.1), dense(z, codebook, index, 0.1, mask)
    torch.testing.assert_close(ours.entropy.double(), exact[2], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.mean_entropy.double(), exact[3], atol=1e-6, rtol=1e-6)
    for a, b in zip(gradients(ours, weights, *low), gradients(exact, weights, z, codebook), strict=True):
        assert float((a - b).abs().max() / b.abs().max()) < 1e-5


def test_sharp_distributions_have_finite_gradients():
    """At this temperature nearly all probabilities underflow to zero, and the slope of x log x is infinite there."""
    z, codebook, index = inputs(8, 50, 4, torch.float32)
    out = soft_rows(100 * z, codebook, index, temperature=1e-3)
    assert float(out.entropy.detach()) < 1e-6
    for grad in torch.autograd.grad(out.entropy - out.mean_entropy, (z, codebook)):
        assert bool(grad.isfinite().all())


def test_without_a_temperature_there_are_no_entropies():
    z, codebook, index = inputs(10, 37, 5)
    out = soft_rows(z, codebook, index)
    assert float(out.entropy.detach()) == float(out.mean_entropy.detach()) == 0
    exact = dense(z, codebook, index, 1.0, torch.ones(10, dtype=torch.bool))
    grads = gradients(out[:2], [torch.ones_like(z)] * 2, z, codebook)
    for a, b in zip(grads, gradients(exact[:2], [torch.ones_like(z)] * 2, z, codebook), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("vectors", [0, 4])
def test_no_vector_or_none_that_counts_gives_zeros(vectors):
    z, codebook, index = inputs(vectors, 7, 3)
    out = soft_rows(z, codebook, index, temperature=0.1, mask_N=torch.zeros(vectors, dtype=torch.bool))
    assert out.soft_ND.shape == (vectors, 3)
    assert float(out.entropy.detach()) == float(out.mean_entropy.detach()) == 0
    for grad in torch.autograd.grad(out.entropy - out.mean_entropy, (z, codebook)):
        assert not bool(grad.any())


def test_registration_is_sound():
    z, codebook, index = inputs(6, 9, 3)
    for temperature in (0.0, 0.5):
        arguments = (z, codebook, index, torch.ones_like(z[:, 0]).detach(), temperature)
        torch.library.opcheck(torch.ops.quantizers.soft_rows.default, arguments)


def peak_of(function):
    """Most memory, in bytes, that a call held beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).cumsum(0)
    return int(held.max())


def test_memory_is_the_gradient_and_a_few_blocks(monkeypatch):
    monkeypatch.setattr(softmax, "_BLOCK_BYTES", 2 * 2**20)
    vectors, size, dim = 1024, 8192, 8
    z, codebook, index = inputs(vectors, size, dim, torch.float32)

    def ours():
        out = soft_rows(z, codebook, index, temperature=0.1)
        (out.soft_ND.square().sum() + out.entropy - out.mean_entropy).backward()

    def plain():
        out = dense(z, codebook, index, 0.1, torch.ones(vectors, dtype=torch.bool))
        (out[0].square().sum() + out[2] - out[3]).backward()

    small = 4 * (4 * size * dim + 16 * vectors * dim)
    assert peak_of(ours) < 3 * softmax._BLOCK_BYTES + small < 4 * vectors * size / 3
    assert peak_of(plain) > 4 * 4 * vectors * size


TWO_PROCESSES = """
import sys, torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from quantizers.kernels import soft_rows

torch.set_num_threads(1)
folder = sys.argv[1]
dist.init_process_group("gloo")
rank = dist.get_rank()
data = load_file(f"{folder}/data.safetensors")
start, end = ((0, 5), (5, 16))[rank]  # unequal shares, and unequally masked
z, codebook = data["z"][start:end].requires_grad_(), data["codebook"].requires_grad_()
out = soft_rows(z, codebook, data["index"][start:end], temperature=0.5, mask_N=data["mask"][start:end])
(out.entropy - out.mean_entropy).backward()
tensors = {"z": z.grad, "codebook": codebook.grad, "entropy": out.entropy, "mean_entropy": out.mean_entropy}
save_file({name: tensor.detach() for name, tensor in tensors.items()}, f"{folder}/{rank}.safetensors")
dist.destroy_process_group()
"""


def test_two_processes_average_to_the_joined_batch(tmp_path, run_two_processes):
    z, codebook, index = inputs(16, 11, 4)
    mask = torch.arange(16) % 4 != 0
    data = {"z": z, "codebook": codebook, "index": index, "mask": mask}
    save_file({name: tensor.detach() for name, tensor in data.items()}, tmp_path / "data.safetensors")
    run_two_processes(TWO_PROCESSES, tmp_path)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    out = soft_rows(z, codebook, index, temperature=0.5, mask_N=mask)
    (out.entropy - out.mean_entropy).backward()
    # As DistributedDataParallel does: the mean over processes.
    torch.testing.assert_close((first["codebook"] + second["codebook"]) / 2, codebook.grad)
    torch.testing.assert_close(torch.cat([first["z"], second["z"]]) / 2, z.grad)
    torch.testing.assert_close((first["entropy"] + second["entropy"]) / 2, out.entropy.detach())
    for process in (first, second):
        torch.testing.assert_close(process["mean_entropy"], out.mean_entropy.detach())


def test_bad_arguments_are_refused_by_name():
    z, codebook, index = torch.zeros(4, 3), torch.zeros(5, 3), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"z_ND.*shape \(4, 3\), codebook_KD \(5, 2\)"):
        soft_rows(z, codebook[:, :2], index)
    with pytest.raises(ValueError, match=r"index_N has shape \(3,\).*\[4\]"):
        soft_rows(z, codebook, index[:3])
    with pytest.raises(ValueError, match=r"mask_N \(2,\).*\[4\]"):
        soft_rows(z, codebook, index, mask_N=torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"z_ND is torch.bfloat16"):
        soft_rows(z.bfloat16(), codebook, index)
    with pytest.raises(ValueError, match=r"temperature=-1"):
        soft_rows(z, codebook, index, temperature=-1)
