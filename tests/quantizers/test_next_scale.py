"""What a generator of scales is fed and asked for: running sums, next-scale inputs, bitwise self-correction."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from quantizers import BSQ, FSQ, LFQ, VQ, MultiScale, Projected

LOADER = runpy.run_path(str(Path(__file__).parents[1] / "test_goldens.py"))
SCALES = [(1, 1), (2, 1), (2, 3), (4, 6)]
L, N, FIRST = 1 + 2 + 6 + 24, 24, 1


def of_bits(inner=None):
    torch.manual_seed(0)
    return MultiScale(inner or BSQ(6), SCALES, phi=0, upscale="bilinear").eval()


def of_rows():
    torch.manual_seed(0)
    return MultiScale(VQ(32, 5, codebook="gradient"), SCALES, phi=2).eval()


def features(dim, batch=3, seed=1):
    return torch.randn(batch, N, dim, generator=torch.Generator().manual_seed(seed))


def by_scale(x_BLD, scales=SCALES):
    return torch.split(x_BLD, [h * w for h, w in scales], 1)


# ----------------------------------------------------------------------------------------------- next-scale inputs


@pytest.mark.parametrize("resize", ["area", "bilinear"])
@pytest.mark.parametrize("make", [of_rows, of_bits])
@torch.no_grad()
def test_step_by_step_equals_teacher_forcing(make, resize):
    quantizer = make()
    codes = quantizer.encode(features(quantizer.dim))
    whole = quantizer.next_scale_inputs(codes, resize)
    assert whole.shape == (3, L - FIRST, quantizer.dim)
    sum_BND, fed = None, []
    for scale, drawn in enumerate(by_scale(codes)):
        sum_BND = quantizer.add_scale(sum_BND, drawn, scale)
        assert torch.equal(sum_BND, quantizer.running_sums(codes)[scale])
        if scale + 1 < len(SCALES):
            fed.append(quantizer.scale_input(sum_BND, scale + 1, resize))
    assert torch.equal(torch.cat(fed, 1), whole)
    assert torch.equal(sum_BND, quantizer.decode(codes))


@torch.no_grad()
def test_each_way_to_resize_is_its_own():
    quantizer = of_bits()
    sum_BND = features(6)
    area, bilinear = (quantizer.scale_input(sum_BND, 1, how) for how in ("area", "bilinear"))
    cells = sum_BND.view(3, 2, 2, 6, 6).mean((2, 3))
    torch.testing.assert_close(area, cells)
    assert not torch.allclose(bilinear, area, atol=0.05)
    map_BDhw = sum_BND.transpose(1, 2).unflatten(2, (4, 6))
    expected = F.interpolate(map_BDhw, (2, 1), mode="bilinear", align_corners=False)
    torch.testing.assert_close(bilinear, expected.flatten(2).transpose(1, 2))
    assert torch.equal(quantizer.scale_input(sum_BND, 3), sum_BND)


def test_what_does_not_fit_a_scale_is_refused():
    quantizer = of_bits()
    codes = torch.zeros(2, 6, 1, dtype=torch.int64)
    for scale in (-1, 4):
        with pytest.raises(ValueError, match=rf"scale={scale}: multiscale has scales 0\.\.3"):
            quantizer.add_scale(None, codes, scale)
        with pytest.raises(ValueError, match=rf"scale={scale}:"):
            quantizer.scale_input(torch.zeros(2, N, 6), scale)
    with pytest.raises(ValueError, match=r"6 positions: scale=1.*\(2, 1\)"):
        quantizer.add_scale(None, codes, 1)
    with pytest.raises(ValueError, match=r"sum_BND.*shape \(2, 6, 6\): expected \[batch, 24, 6\]"):
        quantizer.add_scale(torch.zeros(2, 6, 6), codes, 2)
    with pytest.raises(ValueError, match=r"sum_BND has shape \(2, 6, 6\)"):
        quantizer.scale_input(torch.zeros(2, 6, 6), 2)
    with pytest.raises(ValueError, match="stream 0 lie in"):
        quantizer.add_scale(None, codes + 64, 2)


@torch.no_grad()
def test_inputs_are_float32_under_autocast():
    quantizer = of_rows()
    codes = quantizer.encode(features(5))
    exact = quantizer.next_scale_inputs(codes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.next_scale_inputs(codes), exact)
        first = quantizer.add_scale(None, by_scale(codes)[0], 0)
    assert torch.equal(first, quantizer.running_sums(codes)[0])


def golden(name):
    facts, arrays = LOADER["golden"](f"next_scale/{name}")
    return facts, arrays, facts["facts"]


@pytest.mark.parametrize("case", ["train", "greedy"])
@torch.no_grad()
def test_next_scale_inputs_of_var(case):
    golden_facts, arrays, facts = golden("var")
    phi, scales = facts["tokenizer"]["phi"], facts["scales"]
    shapes = {key.removeprefix("quantize."): shape for key, shape, _ in golden_facts["keys"]}
    size, dim = shapes["embedding.weight"]
    convolutions = len([key for key in shapes if key.endswith(".weight")]) - 1
    quantizer = MultiScale(VQ(size, dim, codebook="gradient"), scales, phi=convolutions, phi_ratio=phi["ratio"]).eval()
    for key, shape in shapes.items():
        place = key.replace("embedding.weight", "quantizer.codebook_KD").replace("quant_resi.qresi_ls", "convolutions")
        gain = golden_facts["fill_gain"].get(f"quantize.{key}", 1.0)
        quantizer.get_parameter(place).copy_(LOADER["fill"](f"quantize.{key}", shape, gain))
    codes = arrays[f"{case}.codes"][..., None]
    LOADER["close"](quantizer.next_scale_inputs(codes), arrays[f"{case}.next_scale_inputs"], golden_facts)
    f_hat = quantizer.decode(codes).transpose(1, 2).unflatten(2, (scales[-1], scales[-1]))
    LOADER["close"](f_hat, arrays[f"{case}.f_hat"], golden_facts)
    other = quantizer.next_scale_inputs(codes, "bilinear")  # control: Infinity's way
    assert float((other - arrays[f"{case}.next_scale_inputs"]).abs().max()) > 0.01


def infinity():
    golden_facts, arrays, facts = golden("infinity")
    quantizer = MultiScale(BSQ(facts["bits_per_position"]), facts["scales"], phi=0, upscale="bilinear").eval()
    return golden_facts, arrays, quantizer


@torch.no_grad()
def test_next_scale_inputs_of_infinity():
    facts, arrays, quantizer = infinity()
    codes = arrays["greedy.codes"][..., None]
    LOADER["close"](quantizer.next_scale_inputs(codes, "bilinear"), arrays["greedy.next_scale_inputs"], facts)
    summed = quantizer.decode(codes).transpose(1, 2).unflatten(2, quantizer.scales[-1])
    LOADER["close"](summed, arrays["greedy.summed_codes"], facts)
    other = quantizer.next_scale_inputs(codes)  # control: VAR's way
    assert float((other - arrays["greedy.next_scale_inputs"]).abs().max()) > 0.01


# ----------------------------------------------------------------------------------------- bitwise self-correction


@torch.no_grad()
def test_self_correction_of_infinity():
    facts, arrays, quantizer = infinity()
    case, features_BDhw = facts["cases"]["train"], arrays["train.features"]
    batch, bits = features_BDhw.shape[:2]
    flips = []
    for k, (h, w) in enumerate(quantizer.scales):
        strength = case["flip_strengths"][k] if k < len(case["flip_strengths"]) else 0.0
        uniform = np.random.RandomState(case["flip_seed"] + k).uniform(0, 1, (batch, 1, h, w, bits)).astype(np.float32)
        flips.append(torch.from_numpy(uniform < np.float32(strength)).reshape(batch, h * w, bits))
    z = features_BDhw.flatten(2).transpose(1, 2)
    targets, shown = quantizer.self_corrected(z, torch.cat(flips, 1))
    assert torch.equal(targets[..., 0], arrays["train.codes"])
    LOADER["close"](quantizer.next_scale_inputs(shown, "bilinear"), arrays["train.next_scale_inputs"], facts)
    assert not torch.equal(quantizer.encode(z), targets)  # control: without flips it is not reproduced


def slowly_corrected(z_BND, flip_BLD, dim, spherical):
    """Position by position and bit by bit: targets and shown codes of bits, most significant first."""
    value = dim**-0.5 if spherical else 1.0
    targets, shown = [], []
    for features_ND, flip_LD in zip(z_BND, flip_BLD, strict=True):
        summed = torch.zeros(1, dim, *SCALES[-1])
        whole = features_ND.T.reshape(1, dim, *SCALES[-1])
        image_targets, image_shown = [], []
        flips = iter(flip_LD.tolist())
        for h, w in SCALES:
            left = F.adaptive_avg_pool2d(whole - summed, (h, w))[0]
            added = torch.zeros(1, dim, h, w)
            for row in range(h):
                for column in range(w):
                    bits = [float(left[d, row, column]) > 0 for d in range(dim)]
                    turned = [bit != flip for bit, flip in zip(bits, next(flips), strict=True)]
                    image_targets.append(int("".join("01"[bit] for bit in bits), 2))
                    image_shown.append(int("".join("01"[bit] for bit in turned), 2))
                    added[0, :, row, column] = torch.tensor([value if bit else -value for bit in turned])
            summed = summed + F.interpolate(added, SCALES[-1], mode="bilinear", align_corners=False)
        targets.append(image_targets)
        shown.append(image_shown)
    return torch.tensor(targets)[..., None], torch.tensor(shown)[..., None]


@pytest.mark.parametrize("inner", [BSQ(6), LFQ(6)], ids=["bsq", "lfq"])
@pytest.mark.parametrize("probability", [0.0, 0.3, [0.5, 0.2, 0.0, 0.1], 1.0])
def test_self_correction_is_the_formula(inner, probability):
    quantizer, z = of_bits(inner), features(6)
    flips = quantizer.bit_flips(3, probability, torch.Generator().manual_seed(5))
    targets, shown = quantizer.self_corrected(z, flips)
    expected_targets, expected_shown = slowly_corrected(z, flips, 6, inner.kind == "bsq")
    assert torch.equal(targets, expected_targets)
    assert torch.equal(shown, expected_shown)
    codes = quantizer.encode(z)
    assert torch.equal(targets[:, :FIRST], codes[:, :FIRST])  # nothing was wrong before the first scale
    assert torch.equal(targets, codes) == torch.equal(shown, codes) == (probability == 0.0)


def test_later_scales_repair_what_was_flipped():
    """What is shown in the end is nearer the features when the targets were made again than when they were not."""
    quantizer, z = of_bits(LFQ(6, scale=0.4)), features(6, batch=64)
    flips = quantizer.bit_flips(64, [0.3, 0.3, 0.3, 0.0], torch.Generator().manual_seed(5))
    _, shown = quantizer.self_corrected(z, flips)
    blind = quantizer.quantizer.flip_bits(quantizer.encode(z), flips)  # control: flipped, and nothing made again
    errors = [float((quantizer.decode(codes) - z).square().mean()) for codes in (quantizer.encode(z), shown, blind)]
    assert errors[0] < errors[1] < errors[2] - 0.25 * (errors[2] - errors[0])


def test_without_features_the_decoded_vectors_serve():
    quantizer, none = of_bits(), torch.zeros(64, L, 6, dtype=torch.bool)
    codes = quantizer.encode(features(6, batch=64))
    decoded = quantizer.decode(codes)
    targets, _ = quantizer.self_corrected(decoded, none)
    same = quantizer.vectors(targets) == quantizer.vectors(codes)
    assert 0.9 < float(same.float().mean()) < 1  # bits near those of the codes: what was left of the features is lost
    assert torch.equal(targets, quantizer.encode(decoded))


def test_flips_have_the_probability_of_their_scale_and_come_from_the_generator():
    quantizer = of_bits()
    first, again = (quantizer.bit_flips(500, [0.1, 0.9, 0.0, 0.5], torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert (first.shape, first.dtype) == ((500, L, 6), torch.bool)
    shares = [float(part.float().mean()) for part in by_scale(first)]
    assert shares == pytest.approx([0.1, 0.9, 0.0, 0.5], abs=0.03)
    for probability in (-0.1, 1.5, [0.1], [0.1] * 5):
        with pytest.raises(ValueError, match=r"probability=.*or 4 of them"):
            quantizer.bit_flips(1, probability, torch.Generator())


@pytest.mark.parametrize(
    "quantizer", [LFQ(6, scale=0.7), LFQ(6, streams=2, bit_order="lsb"), BSQ(6), BSQ(8, streams=4)], ids=repr
)
def test_a_flipped_bit_is_a_vector_of_the_other_sign(quantizer):
    codes = quantizer.eval().encode(torch.randn(4, 9, quantizer.dim))
    flips = torch.rand(4, 9, quantizer.dim) < 0.4
    flipped, vectors = quantizer.flip_bits(codes, flips), quantizer.decode(codes)
    assert torch.equal(quantizer.decode(flipped), torch.where(flips, -vectors, vectors))
    assert torch.equal(quantizer.flip_bits(flipped, flips), codes)


def test_what_cannot_be_flipped_is_refused():
    for quantizer in (VQ(8, 6), FSQ([2, 2]), Projected(BSQ(4), 6)):
        with pytest.raises(ValueError, match=f"^{quantizer.kind} has no bits to flip"):
            quantizer.flip_bits(torch.zeros(1, 1, 1, dtype=torch.int64), torch.zeros(1, 1, 6, dtype=torch.bool))
    bits, z = of_bits(), features(6)
    for flips in (torch.zeros(3, L, 5, dtype=torch.bool), torch.zeros(3, N, 6, dtype=torch.bool), torch.zeros(3, L, 6)):
        with pytest.raises(ValueError, match=r"flip_BLD.*\(3, 33, 6\)"):
            bits.self_corrected(z, flips)
    with pytest.raises(ValueError, match="vq has no bits to flip"):
        of_rows().self_corrected(features(5), torch.zeros(3, L, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="z_BND has 1 NaN"):
        bits.self_corrected(
            z.index_put((torch.tensor(0),) * 3, torch.tensor(float("nan"))), bits.bit_flips(3, 0.0, torch.Generator())
        )
    with pytest.raises(ValueError, match=r"flip_BND.*shape \(1, 1, 5\)"):
        BSQ(6).flip_bits(torch.zeros(1, 1, 1, dtype=torch.int64), torch.zeros(1, 1, 5, dtype=torch.bool))
