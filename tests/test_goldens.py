"""Our modules reproduce the numbers of public code, at reduced width, with weights made by a fill rule.

goldens/*.json says how a model is built and how its weights and inputs are drawn; the safetensors beside it hold what
the public class gave. Layout of a golden: codes (B, h, w), vectors channel first; stand-alone quantizers (1, N, ...).
"""

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from quantizers import FSQ, VQ
from tokenizers_mm import AutoencoderConfig, build_autoencoder
from tokenizers_mm.nets.conv import ConvConfig

FOLDER = Path(__file__).parent / "goldens"


def golden(name):
    return json.loads((FOLDER / f"{name}.json").read_text()), load_file(FOLDER / f"{name}.safetensors")


def fill(key, shape, gain=1.0):
    """Fill rule `crc32-1`: the weights of a golden, drawn from a seed that its key gives."""
    rng = np.random.RandomState(zlib.crc32(key.encode()) & 0xFFFFFFFF)
    if len(shape) >= 2:
        values = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    elif key.endswith("weight"):
        values = 1 + 0.1 * rng.standard_normal(shape)
    else:
        values = 0.05 * rng.standard_normal(shape)
    return torch.from_numpy((values * gain).astype(np.float32))


def close(ours, reference, facts):
    assert ours.shape == reference.shape
    error = float((ours - reference).abs().max() / reference.abs().max())
    assert error <= facts["tolerance"]["rel"], f"relative error {error:.1e}"


def autoencoder_of(facts, bottleneck, **extra):
    """The model that `facts` describes, with the weights of its fill rule."""
    f = facts["facts"]
    net = ConvConfig(
        channels=f["base_channels"],
        multipliers=tuple(f["channel_multipliers"]),
        blocks=f["res_blocks_encoder"][0],
        decoder_blocks=f["res_blocks_decoder"][0],
        attention_levels=tuple(f["attention_levels_encoder"]),
    )
    config = AutoencoderConfig(image_size=(64, 64), bottleneck=bottleneck, net=net, z_channels=f["z_channels"])
    model = build_autoencoder(config).eval()
    state = {key: fill(key, shape) for key, shape, _ in facts["keys"]}
    if "quantize.embedding.weight" in state:
        state["bottleneck.codebook_KD"] = state.pop("quantize.embedding.weight")
    # Nothing but our own statistics may be absent from a public checkpoint, and nothing in it may be unknown to us.
    assert set(model.state_dict()) - set(state) == set(extra)
    model.load_state_dict(state | extra)
    return model


def image_of(case):
    image = np.random.RandomState(case["seed"]).uniform(-1, 1, case["shape"]).astype(np.float32)
    return torch.from_numpy(image)


@pytest.mark.parametrize("name", ["q_fsq_8555", "q_fsq_333"])
def test_fsq(name):
    facts, arrays = golden(name)
    fsq = FSQ(**facts["facts"]["options"]).eval()
    codes = fsq.encode(arrays["n256.input"])
    assert torch.equal(codes[..., 0], arrays["n256.indices"].long())
    assert torch.equal(fsq.decode(codes), arrays["n256.quantized"])
    digits = codes // fsq.basis_D % fsq.level_D
    assert torch.equal(digits, arrays["n256.level_indices"].long())
    close(fsq(arrays["n256.input"]).z_BND, arrays["n256.quantized"], facts)


def test_vq():
    facts, arrays = golden("q_vq_euclid")
    vq = VQ(size=facts["facts"]["options"]["codebook_size"], dim=facts["facts"]["options"]["dim"]).eval()
    vq.codebook_KD.copy_(fill("_codebook.embed", (1, 64, 16), facts["fill_gain"]["_codebook.embed"])[0])
    assert float(arrays["n256.margin"].min()) > facts["tolerance"]["margin"]
    codes = vq.encode(arrays["n256.input"])
    assert torch.equal(codes[..., 0], arrays["n256.indices"].long())
    assert torch.equal(vq.decode(codes), arrays["n256.quantized"])
    assert torch.equal(vq(arrays["n256.input"]).codes_BNS, codes)


@pytest.mark.parametrize("case", ["square", "rect"])
def test_kl_autoencoder_of_latent_diffusion(case):
    facts, arrays = golden("ldm_kl_f8")
    latent = facts["facts"]["latent_channels"]
    model = autoencoder_of(
        facts, {"kind": "gaussian", "dim": latent}, latent_mean_D=torch.zeros(latent), latent_std_D=torch.ones(latent)
    )
    image = image_of(facts["cases"][case])
    with torch.no_grad():
        close(model.encoder(image), arrays[f"{case}.encoder_out"], facts)
        moments = model.quant_conv(model.encoder(image))
    close(moments, arrays[f"{case}.moments"], facts)
    mean, logvar = model.posterior(image)
    close((0.5 * logvar).exp().transpose(1, 2).reshape(arrays[f"{case}.std"].shape), arrays[f"{case}.std"], facts)
    tokens = model.encode(image)
    assert torch.equal(tokens.latents_BND, mean)
    latent_BDhw = tokens.latents_BND.transpose(1, 2).unflatten(2, tokens.grid)
    close(latent_BDhw, arrays[f"{case}.latent"], facts)
    close(model.decode(tokens), arrays[f"{case}.recon"], facts)
    with torch.no_grad():
        close(model(image)[0], arrays[f"{case}.recon"], facts)


@pytest.mark.parametrize("case", ["square", "rect"])
def test_vqgan_of_taming_transformers(case):
    facts, arrays = golden("taming_vqgan_f16")
    size, dim = facts["facts"]["codebook_size"], facts["facts"]["codebook_dim"]
    statistics = {"bottleneck.sum_KD": torch.zeros(size, dim), "bottleneck.count_K": torch.zeros(size)}
    model = autoencoder_of(facts, {"kind": "vq", "size": size, "dim": dim}, **statistics)
    image = image_of(facts["cases"][case])
    with torch.no_grad():
        close(model.encoder(image), arrays[f"{case}.encoder_out"], facts)
        close(model.quant_conv(model.encoder(image)), arrays[f"{case}.prequant"], facts)
    tokens = model.encode(image)
    assert float(arrays[f"{case}.margin"].min()) > facts["tolerance"]["margin"]
    assert torch.equal(tokens.codes_BNS.view_as(arrays[f"{case}.indices"]), arrays[f"{case}.indices"].long())
    quantized_BDhw = model.embed(tokens).transpose(1, 2).unflatten(2, tokens.grid)
    close(quantized_BDhw, arrays[f"{case}.quantized"], facts)
    close(model.decode(tokens), arrays[f"{case}.recon"], facts)


def test_inputs_are_those_of_the_goldens():
    for name in ("ldm_kl_f8", "taming_vqgan_f16"):
        for case in golden(name)[0]["cases"].values():
            assert hashlib.sha256(image_of(case).numpy().tobytes()).hexdigest() == case["input_sha256"]
