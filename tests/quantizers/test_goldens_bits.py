"""LFQ and BSQ reproduce the numbers of vector-quantize-pytorch's class."""

import hashlib
import runpy
from pathlib import Path

import pytest
import torch

from quantizers import BSQ, LFQ

LOADER = runpy.run_path(str(Path(__file__).parents[1] / "test_goldens.py"))


@pytest.mark.parametrize(("name", "kind"), [("q_lfq", LFQ), ("q_bsq", BSQ)])
def test_bits(name, kind):
    facts, arrays = LOADER["golden"](name)
    z = arrays["n256.input"]
    assert hashlib.sha256(z.numpy().tobytes()).hexdigest() == facts["cases"]["n256"]["input_sha256"]
    quantizer = kind(facts["facts"]["options"]["dim"]).eval()
    codes = quantizer.encode(z)
    assert torch.equal(codes[..., 0], arrays["n256.indices"].long())
    assert len(codes.unique()) == facts["distinct_codes"]["n256.indices"]
    LOADER["close"](quantizer.decode(codes), arrays["n256.quantized"], facts)
    LOADER["close"](quantizer(z).z_BND, arrays["n256.quantized"], facts)
    # the first channel's weight in the peer's index is the largest
    assert facts["integer_buffers"]["mask"] == [2**i for i in reversed(range(quantizer.dim))]
