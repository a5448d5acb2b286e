"""Scalar quantizers between two linear maps reproduce the numbers of vector-quantize-pytorch's classes."""

import runpy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from quantizers import FSQ, Latent

LOADER = runpy.run_path(str(Path(__file__).parents[1] / "test_goldens.py"))


@pytest.mark.parametrize(("name", "kind"), [("q_fsq_proj", FSQ), ("q_latent", Latent)])
def test_between_linear_maps(name, kind):
    facts, arrays = LOADER["golden"](name)
    maps = {key: LOADER["fill"](key, shape) for key, shape, _ in facts["keys"]}
    quantizer = kind(facts["facts"]["options"]["levels"]).eval()
    assert float(arrays["n256.margin"].min()) > facts["tolerance"]["margin"]
    z = F.linear(arrays["n256.input"], maps["project_in.weight"], maps["project_in.bias"])
    codes = quantizer.encode(z)
    assert torch.equal(codes[..., 0], arrays["n256.indices"].long())
    assert len(codes.unique()) == facts["distinct_codes"]["n256.indices"]
    if "n256.level_indices" in arrays:
        assert torch.equal(codes // quantizer.basis_D % quantizer.level_D, arrays["n256.level_indices"].long())
    for vectors in (quantizer.decode(codes).detach(), quantizer(z).z_BND):
        LOADER["close"](
            F.linear(vectors, maps["project_out.weight"], maps["project_out.bias"]), arrays["n256.quantized"], facts
        )
