"""Entropies of bit codes against their definition, a softmax over all codes in float64; bounds on their memory."""

import pytest
import torch
import vector_quantize_pytorch as vqp
from safetensors.torch import load_file, save_file
from torch.profiler import ProfilerActivity, profile

from quantizers.kernels import bit_entropy, entropy


def definition(logits, group=None, weight=None):
    """Both entropies, each group's distribution being softmax_c(logits . c / 2) over all codes c in {-1, 1}^group."""
    weight = torch.ones(len(logits)) if weight is None else weight
    weight = (weight / weight.sum()).double()[:, None]
    sample = codebook = 0
    for part in logits.double().split(group or logits.shape[1], dim=1):
        codes = torch.cartesian_prod(*[torch.tensor([-1.0, 1], dtype=torch.float64)] * part.shape[1])
        probability = (part / 2 @ codes.view(-1, part.shape[1]).T).softmax(-1)
        sample = sample + (weight * torch.special.entr(probability)).sum()
        codebook = codebook + torch.special.entr((weight * probability).sum(0)).sum()
    return sample, codebook


def assert_same(ours, expected, logits):
    """Values and gradients within 1e-6, relative to the largest gradient."""
    for a, b in zip(ours, expected, strict=True):
        assert (a.shape, a.dtype) == ((), torch.float32)
        torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=1e-30)
        gradient, wanted = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (a, b))
        assert float((gradient - wanted).abs().max()) <= 1e-6 * float(wanted.abs().max())
        assert float(wanted.abs().max()) > 0 or len(logits) == 1


@pytest.mark.parametrize("spread", [0.01, 1.0, 10.0, 30.0])
@pytest.mark.parametrize(
    ("count", "dim", "group"), [(300, 12, None), (4096, 10, None), (77, 9, 3), (500, 12, 4), (50, 5, 1), (33, 1, None)]
)
def test_values_and_gradients_are_those_of_the_definition(count, dim, group, spread):
    logits = (torch.randn(count, dim) * spread).requires_grad_()
    assert_same(bit_entropy(logits, group=group), definition(logits, group), logits)


def test_blocks_change_nothing(monkeypatch):
    logits = (torch.randn(100, 8) * 2).requires_grad_()
    monkeypatch.setattr(entropy, "_BLOCK_BYTES", 1)
    assert len(list(entropy._blocks(logits, 8))) == 7
    assert_same(bit_entropy(logits), definition(logits), logits)
    assert_same(bit_entropy(logits, group=2), definition(logits, 2), logits)


@pytest.mark.parametrize("group", [None, 3])
def test_masked_vectors_do_not_count(group):
    logits, mask = (torch.randn(200, 6) * 3).requires_grad_(), torch.rand(200) < 0.3
    assert_same(bit_entropy(logits, group=group, weight_N=mask), definition(logits, group, mask), logits)
    ours = torch.stack(bit_entropy(logits, group=group, weight_N=mask))
    torch.testing.assert_close(ours, torch.stack(bit_entropy(logits[mask], group=group)))
    (gradient,) = torch.autograd.grad(ours.sum(), logits)
    assert bool((gradient[~mask] == 0).all())


def test_weights_need_not_be_zero_or_one():
    logits, weight = (torch.randn(50, 6) * 3).requires_grad_(), torch.rand(50)
    assert_same(bit_entropy(logits, weight_N=weight), definition(logits, None, weight), logits)


def test_groups_are_an_upper_bound_that_dependent_bits_do_not_reach():
    independent = torch.cartesian_prod(*[torch.tensor([-50.0, 50])] * 4)
    dependent = torch.cat([independent, independent], 1)
    log2 = torch.tensor(2.0).log()
    torch.testing.assert_close(bit_entropy(dependent)[1], 4 * log2)
    torch.testing.assert_close(bit_entropy(dependent, group=4)[1], 8 * log2)
    torch.testing.assert_close(bit_entropy(independent)[1], bit_entropy(independent, group=2)[1])


@pytest.mark.parametrize("size", [0.0, 1e-20, 20.0, 60.0, 85.0])
def test_tails_keep_their_digits(size):
    """H = log(1 + e^-a) + a e^-a / (1 + e^-a), far below the rounding of 1; float64 has room for the series."""
    a = torch.tensor(size, dtype=torch.float64)
    exact = torch.log1p(torch.exp(-a)) + a * torch.exp(-a) / (1 + torch.exp(-a))
    for sign in (1, -1):
        logits = torch.full((3, 2), sign * size, requires_grad=True)
        sample = bit_entropy(logits)[0]
        torch.testing.assert_close(sample.double(), 2 * exact, rtol=1e-6, atol=0)
        (gradient,) = torch.autograd.grad(sample, logits)
        wanted = -sign * a * torch.exp(-a) / (1 + torch.exp(-a)) ** 2 / 3
        torch.testing.assert_close(gradient.double(), wanted.expand(3, 2), rtol=1e-6, atol=0)


def test_saturated_bits_are_finite():
    logits = torch.tensor([[1e4, -1e4, 300.0], [1e4, 1e4, -1e30]], requires_grad=True)
    sample, codebook = bit_entropy(logits)
    assert float(sample.detach()) == 0
    torch.testing.assert_close(codebook, torch.tensor(2.0).log())
    (gradient,) = torch.autograd.grad(sample + codebook, logits)
    assert bool(gradient.isfinite().all())


def test_no_vectors_no_entropy():
    for logits, weight in ((torch.zeros(0, 4), None), (torch.randn(5, 4), torch.zeros(5))):
        logits.requires_grad_()
        values = torch.stack(bit_entropy(logits, weight_N=weight))
        assert values.tolist() == [0, 0]
        (gradient,) = torch.autograd.grad(values.sum(), logits)
        assert torch.equal(gradient, torch.zeros_like(logits))


def test_is_that_of_vector_quantize_pytorch_up_to_its_cut_logarithm():
    z = torch.randn(1, 200, 6) / 20
    theirs = vqp.LFQ(dim=6, codebook_size=64).train()
    _, parts = theirs(z, return_loss_breakdown=True)
    sample, codebook = bit_entropy(z[0] * 4 * 100)
    torch.testing.assert_close(sample, parts.per_sample_entropy, rtol=1e-3, atol=0)
    torch.testing.assert_close(codebook, parts.batch_entropy, rtol=1e-3, atol=0)


def peak_mib(function):
    """Most memory that a call held beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).cumsum(0)
    return int(held.max()) / 2**20


def step(function, count, bits):
    logits = torch.randn(count, bits, requires_grad=True)

    def run():
        sample, codebook = function(logits)
        (sample - codebook).backward()

    return run


def test_memory_does_not_hold_every_code_for_every_vector():
    every_code = 4 * 8192 * 2**18 / 2**20
    assert peak_mib(step(bit_entropy, 8192, 18)) < 32 < every_code / 200
    # the same measurement sees the definition's table
    assert peak_mib(step(definition, 2048, 12)) > 4 * 2048 * 2**12 / 2**20 > peak_mib(step(bit_entropy, 2048, 12))


def test_graph_is_one_node_however_many_blocks(monkeypatch):
    monkeypatch.setattr(entropy, "_BLOCK_BYTES", 1)
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    logits = (torch.randn(1000, 6) * 2).requires_grad_()
    compiled = torch.compile(lambda x: torch.stack(bit_entropy(x, group=3)), fullgraph=True, backend=keep)
    assert torch.equal(compiled(logits), torch.stack(bit_entropy(logits, group=3)))
    assert len(graphs) == 1
    assert sum("bit_entropy" in str(node.target) for node in graphs[0].graph.nodes) == 1

    compiled = torch.compile(lambda x: bit_entropy(x, group=3), fullgraph=True, backend="aot_eager")
    for ours, eager in zip(compiled(logits), bit_entropy(logits, group=3), strict=True):
        a, b = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (ours, eager))
        torch.testing.assert_close(a, b)
    torch.library.opcheck(entropy._bit_entropy, (logits, torch.rand(1000), 3))


def test_bad_arguments_are_named():
    cases = [
        (lambda: bit_entropy(torch.zeros(4)), r"logits_ND is torch.float32 of shape \(4,\)"),
        (lambda: bit_entropy(torch.zeros(4, 3, dtype=torch.int64)), "logits_ND is torch.int64"),
        (lambda: bit_entropy(torch.zeros(4, 21)), "group=None: the joint entropy of 21 bits has"),
        (lambda: bit_entropy(torch.zeros(4, 42), group=21), r"group=21: expected a divisor of 42 in 1\.\.20"),
        (lambda: bit_entropy(torch.zeros(4, 12), group=5), "group=5: expected a divisor of 12"),
        (lambda: bit_entropy(torch.zeros(4, 12), group=0), "group=0: expected a divisor of 12"),
        (lambda: bit_entropy(torch.zeros(4, 12), weight_N=torch.ones(3)), r"weight_N has shape \(3,\): expected \[4\]"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


EACH_PROCESS = """
import os, sys, torch
from safetensors.torch import load_file, save_file
from quantizers.kernels import bit_entropy

torch.distributed.init_process_group("gloo")
rank, folder = int(os.environ["RANK"]), sys.argv[1]
batch = load_file(f"{folder}/{rank}.safetensors")
logits = batch["logits"].requires_grad_()
result = {}
for name, weight in (("all", None), ("masked", batch["mask"])):
    sample, codebook = bit_entropy(logits, weight_N=weight)
    result[f"{name}.sample"], result[f"{name}.codebook"] = sample.detach(), codebook.detach()
    result[f"{name}.gradient"] = torch.autograd.grad(sample - 2 * codebook, logits)[0]
save_file(result, f"{folder}/result-{rank}.safetensors")
torch.distributed.destroy_process_group()
"""


def test_two_processes_have_the_gradient_of_the_joined_batch(tmp_path, run_two_processes):
    batches = [{"logits": torch.randn(count, 7) * 2, "mask": torch.rand(count) < 0.6} for count in (30, 50)]
    for rank, batch in enumerate(batches):
        save_file(batch, tmp_path / f"{rank}.safetensors")
    run_two_processes(EACH_PROCESS, tmp_path)
    results = [load_file(tmp_path / f"result-{rank}.safetensors") for rank in (0, 1)]
    logits, mask = (torch.cat([batch[name] for batch in batches]) for name in ("logits", "mask"))
    logits.requires_grad_()
    for name, weight in (("all", None), ("masked", mask)):
        sample, codebook = bit_entropy(logits, weight_N=weight)
        (gradient,) = torch.autograd.grad(sample - 2 * codebook, logits)
        for result in results:
            torch.testing.assert_close(result[f"{name}.codebook"], codebook.detach())
        mean = (results[0][f"{name}.sample"] + results[1][f"{name}.sample"]) / 2
        torch.testing.assert_close(mean, sample.detach())
        # parameters get the mean over processes of what their own vectors give
        joined = torch.cat([result[f"{name}.gradient"] for result in results]) / 2
        torch.testing.assert_close(joined, gradient)
        alone = bit_entropy(logits[:30], weight_N=None if weight is None else weight[:30])[1]
        assert abs(float(alone.detach() - codebook.detach())) > 0.01
