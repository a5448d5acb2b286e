"""What public code gave, at reduced width and with weights made by a fill rule, is what we give from the same file.

goldens/*.json says which keys a file has and how weights and inputs are drawn; the safetensors beside it hold what the
public class gave. Layout of a golden: codes (B, h, w), vectors channel first; stand-alone quantizers (1, N, ...).
"""

import hashlib
import json
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from quantizers import FSQ, VQ, MultiScale
from tokenizers_mm import load

FOLDER = Path(__file__).parent / "goldens"


def golden(name):
    return json.loads((FOLDER / f"{name}.json").read_text()), load_file(FOLDER / f"{name}.safetensors")


def fill(key, shape, gain=1.0, post=None):
    """Fill rule `crc32-1`: the weights of a golden, drawn from a seed that its key gives."""
    rng = np.random.RandomState(zlib.crc32(key.encode()) & 0xFFFFFFFF)
    if len(shape) >= 2:
        values = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    elif key.endswith("running_var"):
        values = 0.5 + rng.rand(*shape)
    elif key.endswith("weight"):
        values = 1 + 0.1 * rng.standard_normal(shape)
    else:
        values = 0.05 * rng.standard_normal(shape)
    values = np.asarray(values) * gain
    if post == "l2norm_last_dim":
        values = values / np.linalg.norm(values, axis=-1, keepdims=True)
    elif post == "squared_plus_half":
        values = values * values + 0.5
    return torch.from_numpy(values.astype(np.float32))


def close(ours, reference, facts):
    assert ours.shape == reference.shape
    error = float((ours.detach() - reference).abs().max() / reference.abs().max())
    assert error <= facts["tolerance"]["rel"], f"relative error {error:.1e}"


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


# ------------------------------------------------------------------------------------------------ whole tokenizers

TOKENIZERS = sorted(path.stem for path in FOLDER.glob("*.json") if not path.stem.startswith("q_"))
# What shapes cannot show, and a caller has to say.
OPTIONS = {"var_znorm": {"config": {"bottleneck": {"inner": {"metric": "angle"}}}}}


# Families that a file cannot tell apart share keys, shapes and numbers; the table's first one is taken.
FAMILY = {
    "chameleon": "chameleon",
    "diffusers_flux2": "flux2",
    "diffusers_flux2_small_decoder": "flux2",
    "diffusers_kl_flux": "flux1",
    "diffusers_kl_old_attention": "sd",
    "diffusers_kl_sd": "sd",
    "diffusers_kl_sd3": "sd3",
    "diffusers_kl_stats": "ldm_kl",
    "diffusers_vqmodel": "diffusers_vq",
    "emu3_vq": "emu3",
    "flux2_bfl": "flux2",
    "flux_ae_bfl": "flux1",
    "ibq": "ibq",
    "infinity_vae": "infinity",
    "infinity_vae_f8": "infinity",
    "infinity_vae_plain": "infinity",
    "janus_vq16": "janus",
    "ldm_kl_f32": "ldm_kl",
    "ldm_kl_f4": "ldm_kl",
    "ldm_kl_f8": "ldm_kl",
    "ldm_vq_f4_noattn": "ldm_vq",
    "ldm_vq_f8": "taming_vqgan",
    "llamagen_vq16": "llamagen",
    "llamagen_vq8_ema": "llamagen",
    "mar_kl16": "mar_kl16",
    "maskgit_vq": "maskgit_vq",
    "open_magvit2": "open_magvit2",
    "open_magvit2_f8": "open_magvit2",
    "repa_e_f8d4": "sd",
    "sd_full_checkpoint": "sd",
    "sdxl_single_file": "sdxl",
    "showo_magvitv2": "showo",
    "taming_gumbel_f8": "taming_gumbel",
    "taming_vqgan_f16": "taming_vqgan",
    "va_vae": "va_vae",
    "va_vae_stats": "va_vae",
    "vae_prefixed_kl": "flux1",
    "var_msvq": "var",
    "var_phi_nonshared": "var",
    "var_phi_partial3": "var",
    "var_phi_shared": "var",
    "var_znorm": "var",
}


def tensors_of(facts):
    """The tensors of the file, keys in full."""
    given = facts.get("integer_buffers", {}) | facts.get("zero_dim_values", {})
    state = {}
    for key, shape, dtype in facts["keys"]:
        source = facts.get("aliases", {}).get(key, key)
        gain, post = facts.get("fill_gain", {}).get(source, 1.0), facts.get("fill_post", {}).get(source)
        state[key] = torch.tensor(given[key]) if key in given else fill(source, shape, gain, post)
        assert list(state[key].shape) == shape or dtype != "float32"
    return state | {key: torch.randn(shape) for key, shape in facts["ignorable_examples"]}


def write(facts, folder):
    """The file as its authors would have written it; with wrong weights under the wrappers that are not to be read."""
    tensors = tensors_of(facts)
    if "config" in facts:
        (folder / "config.json").write_text(json.dumps(facts["config"]))
        save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
        return folder
    if not facts["wrapper"]:
        save_file(tensors, folder / "weights.safetensors")
        return folder / "weights.safetensors"
    tree = tensors
    for wrapper in reversed(facts["wrapper"]):
        tree = {wrapper: tree}
    decoys = {name: {k: torch.zeros_like(v) for k, v in tensors.items()} for name in facts.get("decoy_wrappers") or []}
    torch.save({**decoys, **tree}, folder / "weights.ckpt")
    return folder / "weights.ckpt"


def write_statistics(facts, folder):
    """The file with the statistics of the latents, where the family publishes one."""
    for name, about in facts.get("other_files", {}).items():
        post = about["fill_post"]
        torch.save(
            {k: fill(about["fill_key_prefix"] + k, s, post=post.get(k)) for k, s in about["keys"]}, folder / name
        )
        return {"stats": folder / name}
    return {}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Tokenizer of a golden, through the public `load`; the last one is kept."""
    kept = {}

    def of(name, **options):
        key = (name, *options)
        if key not in kept:
            kept.clear()
            facts, folder = golden(name)[0], tmp_path_factory.mktemp(name)
            path, stats = write(facts, folder), write_statistics(facts, folder)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # licences, and other families that fit
                kept[key] = load(path, **OPTIONS.get(name, {}), **stats, **options)
        return kept[key]

    return of


def image_of(facts, case):
    low, high = facts["facts"]["pixel_range"]
    image = np.random.RandomState(case["seed"]).uniform(low, high, case["shape"]).astype(np.float32)
    assert hashlib.sha256(image.tobytes()).hexdigest() == case["input_sha256"]
    return torch.from_numpy(image)


def raster(map_BDhw):
    return map_BDhw.flatten(2).transpose(1, 2)


def check(model, facts, arrays, case, image):
    """Compare everything the golden has. Code vectors and pixels only count where codes agree, and they have to."""
    compared = set()

    def same(name, ours):
        if name in arrays:
            close(ours, arrays[name], facts)
            compared.add(name)

    low = facts["facts"]["pixel_range"][0]
    image_pm = image if low == -1 else image * 2 - 1  # tokenizers take [-1, 1] whatever the net sees
    if "scales" in case:
        model = model.with_scales(case["scales"])
    with torch.no_grad():
        h_BChw = model.encoder(image)
        same("encoder_out", h_BChw)
        same("moments", model.quant_conv(h_BChw))
        same("prequant", model.quant_conv(h_BChw))
    tokens = model.encode(image_pm)
    if "latent" in arrays:
        mean, logvar = model.posterior(image_pm)
        close(mean, raster(arrays["latent"]), facts)
        same("std", (0.5 * logvar).exp().transpose(1, 2).reshape(arrays["latent"].shape))
        compared.add("latent")
        if "latent_normalized" in arrays:
            close(tokens.latents_BND, raster(arrays["latent_normalized"]), facts)
            compared.add("latent_normalized")
    else:
        compared |= check_codes(model, facts, arrays, case, tokens)
    recon = model.decode(tokens)
    same("recon", recon if low == -1 else (recon + 1) / 2)
    return compared


def check_codes(model, facts, arrays, case, tokens):
    name = "bits" if "bits.0" in arrays else "indices"
    count = len(case.get("scales", [0]))
    names = [f"{name}.{k}" for k in range(count)] if "scales" in case else [name]
    wanted = torch.cat([arrays[n].flatten(1) if name == "indices" else arrays[n].flatten(1, 2) for n in names], 1)
    margins = [arrays[n] for n in arrays if n.startswith("margin")]
    assert margins
    assert min(float(m.min()) for m in margins) > facts["tolerance"]["margin"]
    assert torch.equal(tokens.codes_BNS.reshape(wanted.shape), wanted.long())
    compared = set(names)
    if "quantized" in arrays:
        close(model.vectors(tokens)[0], raster(arrays["quantized"]), facts)
        compared.add("quantized")
    if "next_scale_inputs" in arrays:
        assert isinstance(model.bottleneck, MultiScale)
        close(model.bottleneck.next_scale_inputs(tokens.codes_BNS), arrays["next_scale_inputs"], facts)
        compared.add("next_scale_inputs")
    return compared


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_public_file_gives_what_its_own_class_gave(name, loaded):
    facts, arrays = golden(name)
    assert loaded(name).provenance.family == FAMILY[name]
    for case, about in facts["cases"].items():
        mine = {key.removeprefix(f"{case}."): value for key, value in arrays.items() if key.startswith(f"{case}.")}
        image = image_of(facts, about)
        compared = check(loaded(name), facts, mine, about, image)
        assert compared >= {"recon"} & set(mine)
        assert compared & {"latent", "indices", "indices.0", "bits.0"}
        raw = {key.removeprefix("raw_weights."): value for key, value in mine.items() if key.startswith("raw_weights.")}
        if raw:  # the weights without averaging are there as well, and are others
            margins = {key: value for key, value in mine.items() if key.startswith("margin")}
            assert "indices" in check(loaded(name, ema=False), facts, margins | raw, about, image)
            assert not torch.equal(raw["indices"], mine["indices"])


def test_wrong_weights_are_noticed(loaded):
    """Negative control: one tensor of the file changed by a hundredth, and the comparison fails."""
    facts, arrays = golden("ldm_kl_f8")
    model = loaded("ldm_kl_f8")
    weight = model.decoder.up[1].block[0].conv1.weight
    before = weight.detach().clone()
    weight.data.mul_(1.01)
    about = facts["cases"]["square"]
    mine = {key.removeprefix("square."): value for key, value in arrays.items() if key.startswith("square.")}
    with pytest.raises(AssertionError, match="relative error"):
        check(model, facts, mine, about, image_of(facts, about))
    weight.data.copy_(before)
