"""Usage and perplexity of codes: closed forms, masks, and over processes."""

import pytest
import torch

from quantizers import LFQ, CodeMeter


def test_uniform_skewed_and_constant_codes():
    meter = CodeMeter((8, 4, 2**40))
    codes = torch.stack([torch.arange(64) % 8, torch.tensor([0, 0, 0, 1]).repeat(16), torch.full((64,), 2**39)], -1)
    meter.update(codes[:32, None])
    meter.update(codes[None, 32:])
    assert meter.positions == 64
    assert meter.used == (8, 2, 1)
    assert meter.usage == (1.0, 0.5, 2**-40)
    assert meter.entropy == pytest.approx((3.0, 0.811278, 0.0), abs=1e-6)
    assert meter.perplexity == pytest.approx((8.0, 2**0.811278, 1.0), abs=1e-5)


def test_masked_positions_are_not_counted():
    codes, mask = torch.tensor([[[0], [1], [2], [3]]]), torch.tensor([[True, True, False, False]])
    meter = CodeMeter((4,))
    meter.update(codes, mask)
    assert (meter.positions, meter.used, meter.perplexity) == (2, (2,), (2.0,))


def test_bits_of_a_quantizer_are_the_ceiling():
    quantizer = LFQ(12, streams=2).eval()
    meter = CodeMeter(quantizer.codes)
    meter.update(quantizer.encode(torch.randn(4, 4096, 12)))
    assert quantizer.bits == 12
    assert 11.9 < sum(meter.entropy) <= quantizer.bits


def test_bad_input():
    with pytest.raises(ValueError, match="continuous bottleneck"):
        CodeMeter(())
    with pytest.raises(ValueError, match="no codes were counted"):
        CodeMeter((4,)).entropy  # noqa: B018
    with pytest.raises(ValueError, match=r"shape \(2, 3, 1\).*position, 2"):
        CodeMeter((4, 4)).update(torch.zeros(2, 3, 1, dtype=torch.int64))


EACH_PROCESS = """
import torch, torch.distributed as dist
from quantizers import CodeMeter
dist.init_process_group("gloo")
rank = dist.get_rank()
meter = CodeMeter((8,))
meter.update(torch.tensor([[0, 1 + rank]]).T[None])
meter.gather()
assert (meter.positions, meter.used) == (4, (3,)), (meter.positions, meter.used)
assert meter.entropy == (1.5,)
dist.destroy_process_group()
"""


def test_processes_add_up(run_two_processes):
    run_two_processes(EACH_PROCESS)
