"""SimVQ reproduces the numbers of vector-quantize-pytorch's class, with weights made by the goldens' fill rule."""

import runpy
from pathlib import Path

import torch

from quantizers import SimVQ

LOADER = runpy.run_path(str(Path(__file__).parents[1] / "test_goldens.py"))


@torch.no_grad()
def test_simvq():
    facts, arrays = LOADER["golden"]("q_simvq")
    options = facts["facts"]["options"]
    simvq = SimVQ(size=options["codebook_size"], dim=options["dim"]).eval()
    state = {key: LOADER["fill"](key, shape) for key, shape, _ in facts["keys"]}
    names = {"frozen_codebook": "frozen_KD", "code_transform.weight": "transform.weight"}
    simvq.load_state_dict({names[key]: value for key, value in state.items()})
    z = arrays["n256.input"]
    assert float(arrays["n256.margin"].min()) > facts["tolerance"]["margin"]
    LOADER["close"](simvq.rows(), arrays["n256.codebook"], facts)
    codes = simvq.encode(z)
    assert torch.equal(codes[..., 0], arrays["n256.indices"].long())
    assert len(codes.unique()) == facts["distinct_codes"]["n256.indices"]
    LOADER["close"](simvq.decode(codes), arrays["n256.quantized"], facts)
    LOADER["close"](simvq(z).z_BND, arrays["n256.quantized"], facts)
