"""Residual and multi-scale quantizers reproduce the numbers of public code (VAR, vector-quantize-pytorch)."""

import runpy
from pathlib import Path

import pytest
import torch

from quantizers import FSQ, VQ, MultiScale, Residual

LOADER = runpy.run_path(str(Path(__file__).parents[1] / "test_goldens.py"))


def test_residual_vq():
    facts, arrays = LOADER["golden"]("q_residual_vq")
    f = facts["facts"]["options"]
    residual = Residual(VQ(f["codebook_size"], f["dim"]), f["num_quantizers"]).eval()
    for number, level in enumerate(residual.levels):
        key = f"layers.{number}._codebook.embed"
        level.codebook_KD.copy_(LOADER["fill"](key, (1, f["codebook_size"], f["dim"]), facts["fill_gain"][key])[0])
    z = arrays["n256.input"]
    codes = residual.encode(z)
    assert torch.equal(codes, arrays["n256.indices"].long())
    LOADER["close"](residual.decode(codes), arrays["n256.quantized"], facts)
    LOADER["close"](residual(z).z_BND, arrays["n256.quantized"], facts)


def test_residual_fsq():
    facts, arrays = LOADER["golden"]("q_residual_fsq")
    levels = facts["facts"]["options"]["levels"]
    inner = FSQ(levels, form="symmetric", activation="clamp")
    bound = [1 + 1 / (level - 1) for level in levels]
    residual = Residual(inner, facts["facts"]["options"]["num_quantizers"], shrink=levels, soft_clamp=bound).eval()
    z = arrays["n256.input"]
    codes = residual.encode(z)
    assert torch.equal(codes, arrays["n256.indices"].long())
    LOADER["close"](residual.decode(codes), arrays["n256.quantized"], facts)
    LOADER["close"](residual(z).z_BND, arrays["n256.quantized"], facts)


def quantizer_of_var(facts, scales):
    """The quantizer of the golden VAR tokenizer, with the weights of its fill rule."""
    f = facts["facts"]
    inner = VQ(f["codebook_size"], f["codebook_dim"], codebook="gradient")
    quantizer = MultiScale(inner, scales, phi=f["phi"]["count"], phi_ratio=f["phi"]["ratio"]).eval()
    places = {"embedding.weight": "quantizer.codebook_KD"}
    for number in range(f["phi"]["count"]):
        for name in ("weight", "bias"):
            places[f"quant_resi.qresi_ls.{number}.{name}"] = f"convolutions.{number}.{name}"
    shapes = {key.removeprefix("quantize."): shape for key, shape, _ in facts["keys"] if key.startswith("quantize.")}
    assert set(shapes) - set(places) == {"ema_vocab_hit_SV"}
    state = {ours: LOADER["fill"](f"quantize.{theirs}", shapes[theirs]) for theirs, ours in places.items()}
    missing, unknown = quantizer.load_state_dict(state, strict=False)
    assert (missing, unknown) == (["quantizer.count_K"], [])
    return quantizer


@pytest.mark.parametrize("case", ["square", "rect"])
def test_multi_scale_of_var(case):
    facts, arrays = LOADER["golden"]("var_msvq")
    square = quantizer_of_var(facts, facts["cases"]["square"]["scales"])
    scales = facts["cases"][case]["scales"]
    quantizer = square.with_scales(scales)
    z = arrays[f"{case}.prequant"].flatten(2).transpose(1, 2)
    codes = quantizer.encode(z)
    expected = [arrays[f"{case}.indices.{k}"].flatten(1) for k in range(len(scales))]
    assert torch.equal(codes[..., 0], torch.cat(expected, 1).long())
    with torch.no_grad():
        vectors, out, fed = quantizer.decode(codes), quantizer(z), quantizer.next_scale_inputs(codes)
    LOADER["close"](vectors.transpose(1, 2), arrays[f"{case}.quantized"].flatten(2), facts)
    assert torch.equal(out.codes_BNS, codes)
    assert torch.equal(out.z_BND, vectors)
    if case == "square":
        LOADER["close"](fed, arrays["square.next_scale_inputs"], facts)


@pytest.mark.parametrize("case", ["square", "rect"])
def test_running_sums_of_var(case):
    facts, arrays = LOADER["golden"]("var_msvq")
    scales = facts["cases"][case]["scales"]
    quantizer = quantizer_of_var(facts, scales)
    z = arrays[f"{case}.prequant"].flatten(2).transpose(1, 2)
    with torch.no_grad():
        sums = quantizer.running_sums(quantizer.encode(z))
    assert len(sums) == len(scales)
    for number, sum_BND in enumerate(sums):
        LOADER["close"](sum_BND.mean(1), arrays[f"{case}.fhat_mean_per_channel.{number}"], facts)
