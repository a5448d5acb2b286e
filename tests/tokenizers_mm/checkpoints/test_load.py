"""`load` on files, folders and names: what it finds, what it says, and what it refuses."""

import json
import linecache
import os
import warnings

import pytest
import torch
from safetensors.torch import save_file

from tokenizers_mm import Autoencoder, AutoencoderConfig, build_autoencoder, fingerprint, load, save
from tokenizers_mm.checkpoints import CheckpointError, known_families
from tokenizers_mm.nets import ConvConfig

NET = ConvConfig(channels=32, multipliers=(1, 2, 2, 4), attention_levels=(3,))
IMAGE = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
KL = {"kind": "gaussian", "dim": 5}
VQ = {"kind": "vq", "size": 16, "dim": 6, "codebook": "gradient"}


def model_of(bottleneck=KL, net=NET, z_channels=5, **options):
    """A tokenizer with the structure of the lineage, untrained."""
    config = AutoencoderConfig(image_size=(64, 64), net=net, bottleneck=bottleneck, z_channels=z_channels, **options)
    return build_autoencoder(config).eval()


def public(model):
    """Its weights under the public names of latent diffusion."""
    names = {"bottleneck.codebook_KD": "quantize.embedding.weight"}
    ours = ("latent_mean_D", "latent_std_D", "bottleneck.count_K")
    return {names.get(key, key): value for key, value in model.state_dict().items() if key not in ours}


@pytest.fixture
def file(tmp_path):
    """A KL autoencoder's file, and the tokenizer it came from."""
    model = model_of()
    save_file(public(model), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors", model


def quietly(*arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return load(*arguments, **options)


# ------------------------------------------------------------------------------------------------- what it finds


def test_a_file_gives_the_tokenizer_it_came_from(file):
    path, model = file
    again = quietly(path)
    assert not again.training
    assert again.config.net == model.config.net
    assert torch.equal(again.encode(IMAGE).data, model.encode(IMAGE).data)
    assert torch.equal(again.decode(again.encode(IMAGE)), model.decode(model.encode(IMAGE)))
    assert again.provenance.source == path.name


def test_file_names_say_nothing(file, tmp_path):
    path, _ = file
    other = tmp_path / "vq_ds16_c2i.pt"  # a name of another family, and of another format
    other.write_bytes(path.read_bytes())
    assert quietly(other).provenance.family == quietly(path).provenance.family == "ldm_kl"


@pytest.mark.parametrize(
    ("prefix", "wrapper"),
    [("module.", ()), ("_orig_mod.", ("trainer", "model")), ("first_stage_model.", ("state_dict",)), ("a.b.vae.", ())],
)
def test_wrappers_and_prefixes(tmp_path, prefix, wrapper):
    model = model_of()
    tree = {prefix + key: value for key, value in public(model).items()} | {"text_model.weight": torch.ones(3)}
    for name in reversed(wrapper):
        tree = {name: tree, "epoch": 3, "optimizer": {"state": {"0": {"step": torch.ones(())}}}}
    torch.save(tree, tmp_path / "file.ckpt")
    again = quietly(tmp_path / "file.ckpt")
    assert torch.equal(again.encode(IMAGE).data, model.encode(IMAGE).data)
    assert again.provenance.ignored == ("text_model.* (1)",)


def test_moving_averages_are_a_choice(tmp_path):
    plain, averaged = model_of(), model_of()
    torch.save({"model": public(plain), "ema": public(averaged)}, tmp_path / "both.pt")
    for ema, model in ((None, averaged), (True, averaged), (False, plain)):
        assert torch.equal(quietly(tmp_path / "both.pt", ema=ema).encode(IMAGE).data, model.encode(IMAGE).data)


def test_losses_and_teachers_are_left_aside_and_listed(tmp_path):
    extra = {
        "loss.discriminator.main.0.weight": torch.ones(2),
        "loss.logvar": torch.ones(()),
        "colorize": torch.ones(1),
    }
    save_file(public(model_of()) | extra, tmp_path / "trained.safetensors")
    assert quietly(tmp_path / "trained.safetensors").provenance.ignored == ("colorize (1)", "loss.* (2)")


def test_a_rival_with_another_scale_is_named(tmp_path):
    net = ConvConfig(channels=32, multipliers=(1, 2, 4, 4))
    save_file(public(model_of({"kind": "gaussian", "dim": 4}, net, 4)), tmp_path / "vae.safetensors")
    with pytest.warns(UserWarning, match=r"taken for sd \(scale 0.18215\); .* sdxl \(scale 0.13025\), .*: say family="):
        model = load(tmp_path / "vae.safetensors")
    assert model.latent_std_D.tolist() == pytest.approx([1 / 0.18215] * 4)
    with pytest.warns(UserWarning, match="OpenRAIL") as said:
        chosen = load(tmp_path / "vae.safetensors", family="sdxl")
    assert len(said) == 1
    assert chosen.latent_std_D.tolist() == pytest.approx([1 / 0.13025] * 4)
    assert chosen.provenance.family == "sdxl"
    mean = model.posterior(IMAGE)[0]
    assert torch.allclose(model.encode(IMAGE).data, mean * 0.18215, rtol=1e-6)


def test_how_codes_are_chosen_is_asked_where_only_averages_tell(tmp_path):
    """IBQ of another depth than the published ones looks like a VQGAN with Lightning's averages."""
    state = public(model_of(VQ, ConvConfig(channels=32, multipliers=(1, 2), attention_levels=(1,))))
    averages = {f"model_ema.{key.replace('.', '')}": value.clone() for key, value in state.items()}
    save_file(state, tmp_path / "plain.safetensors")
    save_file(state | averages, tmp_path / "averaged.safetensors")
    with pytest.warns(
        UserWarning, match=r"taken for ibq \(codes by inner product\).* taming_vqgan \(codes by distance"
    ):
        assert load(tmp_path / "averaged.safetensors").bottleneck.kind == "ibq"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(tmp_path / "plain.safetensors").bottleneck.kind == "vq"
        assert load(tmp_path / "averaged.safetensors", family="taming_vqgan").bottleneck.kind == "vq"


@pytest.mark.parametrize("place", ["file", "folder", "folder and file"])
def test_warnings_point_at_the_line_that_calls_load(tmp_path, place):
    state = public(model_of({"kind": "gaussian", "dim": 4}, ConvConfig(channels=32, multipliers=(1, 2, 4, 4)), 4))
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x"}))
    source = tmp_path / "model.safetensors" if place == "file" else tmp_path
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        load(source, file="model.safetensors" if place == "folder and file" else None)
    lines = {linecache.getline(warning.filename, warning.lineno).strip() for warning in said}
    assert lines == {'load(source, file="model.safetensors" if place == "folder and file" else None)'}
    assert len(said) == 2
    assert "say family= to choose" in str(said[0].message)
    assert "OpenRAIL" in str(said[1].message)


def test_a_licence_that_restricts_use_is_shown(tmp_path):
    net = ConvConfig(channels=32, multipliers=(1, 1, 2, 2, 4))
    save_file(public(model_of(VQ, net)), tmp_path / "vqgan.safetensors")
    with pytest.warns(UserWarning, match="Chameleon.*licence of the weights: .*no commercial"):
        assert load(tmp_path / "vqgan.safetensors").provenance.family == "chameleon"
    assert {row.name for row in known_families() if row.restricted} == {"sd", "sdxl", "sd3", "chameleon", "janus"}


def test_options_that_no_shape_shows(tmp_path):
    net = ConvConfig(channels=24, multipliers=(1, 2), groups=8, activation="relu")
    model = model_of(VQ, net)
    save_file(public(model), tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match=r"odd.safetensors, .*: config.net.*: expected a multiple of groups=32"):
        load(tmp_path / "odd.safetensors")
    again = quietly(tmp_path / "odd.safetensors", config={"net": {"groups": 8, "activation": "relu"}})
    assert torch.equal(again.encode(IMAGE).data, model.encode(IMAGE).data)
    with pytest.raises(CheckpointError, match=r"config.net.*.grops = 8: unknown key \(did you mean groups\?\)"):
        quietly(tmp_path / "odd.safetensors", config={"net": {"grops": 8}})


def test_weights_of_the_nets_in_half_precision(file):
    model = quietly(file[0], dtype=torch.bfloat16)
    assert {p.dtype for p in model.encoder.parameters()} == {torch.bfloat16}
    assert model.latent_std_D.dtype == torch.float32
    tokens = model.encode(IMAGE)
    assert tokens.data.dtype == model.decode(tokens).dtype == torch.float32
    error = (tokens.data - file[1].encode(IMAGE).data).abs().max() / tokens.data.abs().max()
    assert 0 < error < 0.05


def test_half_precision_files_become_float32(tmp_path):
    model = model_of()
    torch.save({key: value.bfloat16() for key, value in public(model).items()}, tmp_path / "half.pt")
    assert {p.dtype for p in quietly(tmp_path / "half.pt").parameters()} == {torch.float32}


def test_a_public_codebook_goes_on_training_where_it_was(tmp_path):
    model = model_of(VQ)
    save_file(public(model), tmp_path / "vq.safetensors")
    tuned = quietly(tmp_path / "vq.safetensors").train()
    before = tuned.bottleneck.codebook_KD.detach().clone()
    tuned(IMAGE)
    assert torch.equal(tuned.bottleneck.codebook_KD, before)  # an untouched codebook would start from this batch
    fresh = model_of(VQ).train()
    before = fresh.bottleneck.codebook_KD.detach().clone()
    fresh(IMAGE)
    assert not torch.equal(fresh.bottleneck.codebook_KD, before)


# ----------------------------------------------------------------------------------------- statistics of latents


@pytest.mark.parametrize("kind", ["mean and std", "mean and var", "bias and scale"])
def test_statistics_in_a_file_of_their_own(file, tmp_path, kind):
    mean, std = torch.randn(1, 5, 1, 1), torch.rand(1, 5, 1, 1) + 0.5
    saved = {
        "mean and std": {"mean": mean, "std": std},
        "mean and var": {"mean": mean, "var": std**2 - 1e-5},
        "bias and scale": {"latents_bias": mean, "latents_scale": 1 / std},
    }[kind]
    torch.save(saved, tmp_path / "stats.pt")
    path, model = file
    tokens = quietly(path, stats=tmp_path / "stats.pt").encode(IMAGE)
    wanted = (model.posterior(IMAGE)[0] - mean.flatten()) / std.flatten()
    assert torch.allclose(tokens.data, wanted, atol=1e-5)


def test_statistics_per_position(file, tmp_path):
    mean, var = torch.randn(5, 4, 4), torch.rand(5, 4, 4) + 0.5
    save_file({"mean": mean, "var": var}, tmp_path / "stat.safetensors")
    path, model = file
    normalised = quietly(path, stats=tmp_path / "stat.safetensors")
    image = IMAGE[:, :, :, :32]
    latent_BDhw = model.posterior(image)[0].transpose(1, 2).unflatten(2, (4, 4))
    wanted = (latent_BDhw - mean) / (var + 1e-5).sqrt()
    tokens = normalised.encode(image)
    assert torch.allclose(tokens.data.transpose(1, 2).unflatten(2, (4, 4)), wanted, atol=1e-5)
    assert torch.allclose(normalised.decode(tokens), model.decode(model.encode(image)), atol=1e-4)
    with pytest.raises(ValueError, match=r"grid=\(4, 6\): latent statistics are per position, of a grid of \(4, 4\)"):
        normalised.encode(IMAGE)
    save(normalised, tmp_path / "saved")
    assert torch.equal(load(tmp_path / "saved").encode(image).data, tokens.data)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"mu": torch.ones(5)}, r"stats.pt: holds mu; expected mean and std \(VA-VAE\)"),
        ({"mean": torch.ones(7), "std": torch.ones(7)}, r"stats.pt: shapes \(7,\) and \(7,\); expected 5 channels"),
        ({"mean": torch.ones(5), "std": torch.zeros(5)}, r"stats.pt: statistics must be finite, and deviations pos"),
        ({"mean": torch.ones(5, 2, 3), "std": torch.ones(5, 2, 3)}, r"stats.pt: 6 positions are no square"),
    ],
)
def test_statistics_that_do_not_fit(file, tmp_path, saved, message):
    torch.save(saved, tmp_path / "stats.pt")
    with pytest.raises(CheckpointError, match=message):
        quietly(file[0], stats=tmp_path / "stats.pt")


# ------------------------------------------------------------------------------------------------- what it refuses


def test_other_networks_are_not_taken_for_tokenizers(tmp_path):
    save_file({"bert.embeddings.word_embeddings.weight": torch.ones(4, 4)}, tmp_path / "bert.safetensors")
    with pytest.raises(CheckpointError, match=r"bert.safetensors: no image tokenizer found: none of its 1 keys \(bert"):
        load(tmp_path / "bert.safetensors")


def test_an_unknown_naming_scheme_is_compared_with_the_nearest(tmp_path):
    state = {key.replace(".norm1.", ".first_norm."): value for key, value in public(model_of()).items()}
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match=r"not recognised; nearest are the names of \w+, which have encoder.*nor"):
        load(tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (("latent_tokens", "encoder.positional_embedding"), "TiTok"),
        (("vision_decoder.norm.weight", "quant_embed.c_fc.weight"), "QLIP"),
        (("quant_proj.proj.weight", "encoder.patch_embed.backbone.stem.conv1.weight"), "UniTok"),
        (("decoder_embed.weight", "decoder_pred.weight"), "RAE"),
        (("encoder.module_dict.a.weight", "decoder.module_dict.b.weight", "vae.vae.encoder.conv_in.weight"), "FlexTok"),
    ],
)
def test_known_tokenizers_without_a_body_are_refused_by_name(tmp_path, keys, name):
    save_file({key: torch.ones(2) for key in keys}, tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError, match=rf"file.safetensors.*: this is {name}.*, whose body this version does"):
        load(tmp_path / "file.safetensors")


def edited(path, change):
    from safetensors.torch import load_file

    state = load_file(path)
    change(state)
    save_file(state, path)


DAMAGES = {
    "missing": (lambda s: s.pop("decoder.up.2.block.1.conv2.weight"), r"missing keys: decoder.up.2.block.1.conv2.weig"),
    "extra": (lambda s: s.update(surprise=torch.ones(1)), r"unexpected keys: surprise"),
    "shape": (
        lambda s: s.update({"encoder.down.1.block.1.norm1.bias": torch.ones(9)}),
        r"wrong shapes: encoder.down.1.block.1.norm1.bias \(9,\) \(expected \(64,\)\)",
    ),
    "half": (
        lambda s: [s.pop(k) for k in list(s) if k.startswith("decoder.")],
        r"not recognised; nearest are the names of ldm, which have decoder.up.0",
    ),
    "integers": (
        lambda s: s.update({"decoder.conv_in.bias": torch.ones(128, dtype=torch.int8)}),
        r"decoder.conv_in.bias is torch.int8: expected floats",
    ),
    "levels": (
        lambda s: [s.pop(k) for k in list(s) if k.startswith("encoder.down.3.")],
        r"3 levels in the encoder, 4 in the decoder",
    ),
    "mixture": (
        lambda s: s.update({"post_quant_conv.weight": torch.ones(5, 7, 1, 1)}),
        r"10 channels go into the bottleneck, 7 channels wide, and 7 into the decoder",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_files_that_contradict_themselves(file, damage):
    change, message = DAMAGES[damage]
    edited(file[0], change)
    with pytest.raises(CheckpointError, match=message) as error:
        quietly(file[0])
    assert str(file[0]) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_wrong_family_is_refused_with_the_difference(file):
    with pytest.raises(CheckpointError, match=r"not recognised as llamagen.* names are those of ldm, not of llamagen"):
        load(file[0], family="llamagen")
    with pytest.raises(CheckpointError, match=r"not recognised as sd; .*bottleneck.dim is 5, not 4"):
        load(file[0], family="sd")
    with pytest.raises(CheckpointError, match=r"family='sdd' is unknown; expected one of bagel"):
        load(file[0], family="sdd")


def test_no_such_path(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing.pt: no such file or folder, and no hub repository's name"):
        load(tmp_path / "nothing.pt")
    with pytest.raises(CheckpointError, match=r"revision='main' is for hub repositories, and this is a local path"):
        load(tmp_path, revision="main")


FOREIGN = {
    "file": ({"vae.safetensors": b"x"}, "vae.safetensors", "a file,"),
    "diffusers": ({"config.json": {"_class_name": "AutoencoderKL"}}, "", r"a diffusers folder \(AutoencoderKL\),"),
    "pipeline": ({"vae/config.json": {"_class_name": "AutoencoderKL"}}, "", "a diffusers pipeline, with vae/,"),
    "another library": ({"config.json": {"model_type": "bert"}}, "", "a folder of another library,"),
    "weights": ({"ae.safetensors": b"x"}, "", r"a folder without config\.json \(ae\.safetensors\),"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_others_wrote_is_for_load_alone(tmp_path, name):
    contents, inner, found = FOREIGN[name]
    for path, content in contents.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(CheckpointError, match=rf"^{tmp_path / inner}: {found} .* read it with tokenizers_mm\.load$"):
        Autoencoder.from_pretrained(tmp_path / inner)


def test_a_network_is_for_load_alone():
    with pytest.raises(CheckpointError, match=r"^timm:vit_small: the name of a pretrained network, .*mm\.load$"):
        Autoencoder.from_pretrained("timm:vit_small")


@pytest.mark.parametrize("name", ["family", "file", "ema", "stats", "config", "family_"])
def test_options_of_load_are_none_of_from_pretrained(tmp_path, name):
    save(model_of(), tmp_path)
    with pytest.raises(ValueError, match=rf"^{name}: not taken here; .*tokenizers_mm\.load"):
        Autoencoder.from_pretrained(tmp_path, **{name: None})
    assert torch.equal(Autoencoder.from_pretrained(tmp_path).latent_std_D, torch.ones(5))


def test_a_hub_name_without_network(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"some-owner/some-vae \(revision main\).*HF_HUB_OFFLINE"):
        load("some-owner/some-vae")


def test_a_folder_without_a_config(tmp_path):
    model = model_of()
    save_file(public(model), tmp_path / "ae.safetensors")
    with pytest.raises(CheckpointError, match=r"no config.json.* it holds ae.safetensors; give the weights file"):
        load(tmp_path)
    assert torch.equal(quietly(tmp_path, file="ae.safetensors").encode(IMAGE).data, model.encode(IMAGE).data)
    with pytest.raises(CheckpointError, match=r"b.safetensors: no such file; the folder holds ae.safetensors"):
        load(tmp_path, file="b.safetensors")
    with pytest.raises(CheckpointError, match=r"file='../ae.safetensors' leaves the folder"):
        load(tmp_path, file="../ae.safetensors")


def test_our_own_folders_say_everything_themselves(tmp_path):
    save(model_of(), tmp_path / "ours")
    for options in ({"family": "sd"}, {"config": {"image_size": (32, 32)}}):
        with pytest.raises(CheckpointError, match=r"ours: a tokenizer of ours, whose config\.json says all"):
            load(tmp_path / "ours", **options)


def test_a_run_folder_gives_its_tokenizer(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints" / "step_0000500").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"run: a training run without a finished .*--out \S*run --resume"):
        load(run)
    model = model_of()
    save(model, run / "tokenizer")
    assert fingerprint(load(run)) == fingerprint(model)
    assert fingerprint(Autoencoder.from_pretrained(run)) == fingerprint(model)
    with pytest.raises(CheckpointError, match=r"run: a tokenizer of ours, whose config\.json says all"):
        load(run, family="sd")
    with pytest.raises(CheckpointError, match=r"run/a\.pt: no such file; the folder holds checkpoints, run\.json"):
        load(run, file="a.pt")


def test_run_folders_of_something_else(tmp_path):
    (tmp_path / "fused" / "semantic").mkdir(parents=True)
    (tmp_path / "fused" / "semantic" / "run.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"fused: a training run without a finished tokenizer/"):
        load(tmp_path / "fused")
    generator = tmp_path / "drawing" / "generator"
    generator.mkdir(parents=True)
    (tmp_path / "drawing" / "run.json").write_text("{}")
    (generator / "config.json").write_text(json.dumps({"kind": "flow", "spec": {}, "options": {}}))
    for folder in (generator.parent, generator):
        with pytest.raises(CheckpointError, match=r"generator: a generator \(flow\), not a tokenizer; backbones\.load"):
            load(folder)
    # A text tokenizer of another library in a folder of that name is none of ours.
    (tmp_path / "pipeline" / "tokenizer").mkdir(parents=True)
    (tmp_path / "pipeline" / "tokenizer" / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(CheckpointError, match=r"pipeline: no config\.json"):
        load(tmp_path / "pipeline")


def test_a_config_of_another_library_leaves_it_to_the_weights(tmp_path):
    model = model_of()
    save_file(public(model), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "SomeVQGAN", "model_type": "x"}))
    assert torch.equal(quietly(tmp_path).encode(IMAGE).data, model.encode(IMAGE).data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"w.safetensors: (is )?empty"),
        (b"\x08\x00\x00\x00\x00\x00\x00\x00{}      " + b"\x00" * 8, r"w.safetensors"),
        (b"version https://git-lfs.github.com/spec/v1\n", r"w.safetensors: .*Git LFS pointer.*git lfs pull"),
    ],
)
def test_broken_files(tmp_path, content, message):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "w.safetensors")


class Malice:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    torch.save({"state_dict": public(model_of()) | {"x": Malice(tmp_path / "it_ran")}}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match=r"evil.ckpt: .*posix.system"):
        load(tmp_path / "evil.ckpt")
    assert not (tmp_path / "it_ran").exists()
    torch.load(tmp_path / "evil.ckpt", weights_only=False)  # it would have
    assert (tmp_path / "it_ran").exists()


# --------------------------------------------------------------------------------------------- sizes, and memory

# Full width of families of published size: options of the net, z_channels, channels that leave the encoder, millions.
FULL = {
    "llamagen": ({"multipliers": (1, 1, 2, 2, 4), "attention_levels": (4,)}, 256, 256, 71.7),
    "llamagen VQ-8": ({"multipliers": (1, 2, 2, 4), "attention_levels": (3,)}, 256, 256, 70.0),
    "taming_vqgan": ({"multipliers": (1, 1, 2, 2, 4), "attention_levels": (4,)}, 256, 256, 71.7),
    "sd": ({}, 4, 8, 83.7),
    "flux1": ({}, 16, 32, 83.8),
    "va_vae": ({"multipliers": (1, 1, 2, 2, 4), "attention_levels": (4,)}, 32, 64, 69.8),
    "mar_kl16": (
        {"multipliers": (1, 1, 2, 2, 4), "attention_levels": (4,), "decoder_attention_levels": ()}, 16, 32, 66.5,
    ),
    "var": ({"channels": 160, "multipliers": (1, 1, 2, 2, 4), "attention_levels": (4,)}, 32, 32, 108.8),
    "chameleon": ({"multipliers": (1, 1, 2, 2, 4)}, 256, 256, 66.5),
    "open_magvit2": (
        {
            "multipliers": (1, 1, 2, 2, 4), "blocks": 4, "decoder_blocks": 4, "middle_blocks": 4, "bias": False,
            "middle_attention": False, "downsample": "centre", "upsample": "depth", "encoder_out": 1,
            "modulation": True,
        },
        18, 18, 115.1,
    ),
    "ibq": ({"multipliers": (1, 1, 2, 2, 4), "blocks": 4, "attention_levels": (4,)}, 256, 256, 106.7),
    "showo": (
        {
            "multipliers": (1, 2, 2, 4, 4), "decoder_multipliers": (1, 1, 2, 2, 4), "blocks": (4, 3, 4, 3, 4),
            "decoder_blocks": (4, 4, 3, 4, 3),
        },
        13, 13, 95.4,
    ),
    "maskgit_vq": (
        {
            "multipliers": (1, 1, 2, 2, 4), "decoder_blocks": 2, "middle_attention": False, "bias": False,
            "downsample": "average", "encoder_out": 1, "block_input_skip": False,
        },
        256, 256, 54.3,
    ),
    "infinity": ({"multipliers": (1, 2, 4, 4, 4), "middle_attention": False}, 32, 32, 110.1),
}  # fmt: skip


@pytest.mark.parametrize("name", FULL)
def test_full_width_has_the_published_number_of_parameters(name):
    from tokenizers_mm.nets import build_nets

    options, z_channels, encoder_out, millions = FULL[name]
    with torch.device("meta"):
        nets = build_nets(ConvConfig(**options), encoder_out, z_channels)
    assert round(sum(p.numel() for net in nets for p in net.parameters()) / 1e6, 1) == millions
    assert {row.parameters for row in known_families() if row.name == name} <= {millions}


MEMORY = """
import sys, warnings
from pathlib import Path
import torch
from tokenizers_mm import load
warnings.simplefilter("ignore")
torch.set_num_threads(1)

def kilobytes(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

torch.ones(1000, 1000) @ torch.ones(1000, 1000)
before = kilobytes("VmRSS")
model = load(sys.argv[1])
loaded = kilobytes("VmRSS")
total = sum(float(p.sum()) for p in model.parameters())
kept = (before, loaded, kilobytes("VmRSS"), kilobytes("VmHWM"))
Path(sys.argv[2]).write_text(" ".join(str(1024 * value) for value in kept))
"""


def test_loading_takes_no_second_copy(tmp_path, start_process):
    """A file of 335 MB: what is resident after loading, and after every weight was read."""
    with torch.device("meta"):
        shapes = model_of({"kind": "gaussian", "dim": 4}, ConvConfig(), 4)
    save_file({k: torch.zeros(v.shape) for k, v in public(shapes).items()}, tmp_path / "vae.safetensors")
    size = (tmp_path / "vae.safetensors").stat().st_size
    assert size > 300e6
    process = start_process(MEMORY, tmp_path / "vae.safetensors", tmp_path / "kept")
    process.join(120)
    assert process.exitcode == 0
    before, loaded, read, peak = map(int, (tmp_path / "kept").read_text().split())
    assert loaded - before < 0.2 * size
    assert read - before > 0.9 * size  # or nothing was measured
    assert max(read, peak) - before < 1.2 * size


# ------------------------------------------------------------------------------ bodies of their own, as bare files


def randomised(vae):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in [*vae.parameters(), *vae.buffers()]:
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator)
                value.add_(0.05 * noise if value.ndim > 1 else 0.05 * noise.abs())
    return vae.eval()


def dc_ae():
    from diffusers import AutoencoderDC

    return randomised(
        AutoencoderDC(
            latent_channels=8,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(32, 64),
            decoder_block_out_channels=(32, 64),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), ()),
            decoder_qkv_multiscales=((), ()),
            downsample_block_type="pixel_unshuffle",
            upsample_block_type="pixel_shuffle",
            decoder_norm_types=("batch_norm", "rms_norm"),
            decoder_act_fns=("relu", "silu"),
            scaling_factor=0.25,
        )
    )


def qwen():
    from diffusers import AutoencoderKLQwenImage

    return randomised(AutoencoderKLQwenImage(base_dim=16, z_dim=16, num_res_blocks=1))


@pytest.mark.parametrize(("make", "family"), [(dc_ae, "dc_ae"), (qwen, "qwen_image")])
def test_a_bare_file_and_a_folder_of_another_body(tmp_path, make, family):
    theirs, image = make(), IMAGE[:, :, :32, :32]
    with torch.no_grad():
        if family == "dc_ae":
            wanted_BDhw = theirs.encode(image).latent
        else:
            wanted_BDhw = theirs.encode(image[:, :, None]).latent_dist.mode()[:, :, 0]
    theirs.save_pretrained(tmp_path / "folder")
    save_file(theirs.state_dict(), tmp_path / "bare.safetensors")
    for name in ("folder", "bare.safetensors"):
        model = quietly(tmp_path / name)
        assert model.provenance.family == family
        z_BND = model.encode(image).data * model.latent_std_D + model.latent_mean_D
        error = (z_BND - wanted_BDhw.flatten(2).transpose(1, 2)).abs().max() / wanted_BDhw.abs().max()
        assert error < 2e-5
        assert any("time_conv" in pattern for pattern in model.provenance.ignored) == (family == "qwen_image")
    assert quietly(tmp_path / "folder").latent_std_D[0] == pytest.approx(4.0 if family == "dc_ae" else 2.8184)
