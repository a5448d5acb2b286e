"""`tmm convert` and `tmm families`: a public file in, a folder of ours or of diffusers out."""

import json
import sys
import warnings

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from recipes import cli
from tokenizers_mm import AutoencoderConfig, build_autoencoder, load
from tokenizers_mm.checkpoints import known_families
from tokenizers_mm.nets import ConvConfig

IMAGE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def tmm(*arguments, status=0):
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments], env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"})
    assert (result.exit_code == 0) == (status == 0), (result.output, result.exception)
    return result.output if status == 0 else str(result.exception)


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """An SD-shaped file under its public names, with what training leaves beside it."""
    net = ConvConfig(channels=32, multipliers=(1, 2, 4, 4))
    config = AutoencoderConfig(image_size=(32, 32), net=net, bottleneck={"kind": "gaussian", "dim": 4}, z_channels=4)
    model = build_autoencoder(config).eval()
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("latent_")}
    path = tmp_path_factory.mktemp("public") / "vae.safetensors"
    save_file(state | {"loss.logvar": torch.zeros(())}, path)
    return path, model


def test_to_a_folder_of_ours(public, tmp_path):
    path, model = public
    said = tmm("convert", path, "--out", tmp_path / "ours")
    assert "ldm_kl from vae.safetensors" in said
    assert "licence of the code: MIT; of the weights: not stated" in said
    assert "not needed: loss.* (1)" in said
    assert "4 channels" in said
    again = load(tmp_path / "ours")
    assert torch.equal(again.encode(IMAGE).data, model.encode(IMAGE).data)
    assert again.provenance.family == "ldm_kl"
    assert "ldm_kl" in (tmp_path / "ours" / "README.md").read_text()


def test_to_diffusers(public, tmp_path):
    path, model = public
    tmm("convert", path, "--family", "sd", "--to", "diffusers", "--out", tmp_path / "theirs")
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["scaling_factor"] == pytest.approx(0.18215)
    vae, info = diffusers.AutoencoderKL.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert info["missing_keys"] == info["unexpected_keys"] == []
    with torch.no_grad():
        theirs = vae.encode(IMAGE).latent_dist.mode()
    ours = model.encode(IMAGE).data.transpose(1, 2).unflatten(2, (4, 4))
    assert torch.allclose(theirs, ours, atol=1e-5)
    tmm("convert", tmp_path / "theirs", "--out", tmp_path / "back")
    assert load(tmp_path / "back").provenance.family == "sd"


def test_options_and_their_mistakes(public, tmp_path):
    path, _ = public
    tmm("convert", path, "--out", tmp_path / "set", "--set", "image_size=[64, 64]")
    assert load(tmp_path / "set").spec.image_size == (64, 64)
    for arguments, message in [
        (["--to", "onnx"], "--to onnx: expected one of tokenizers-mm, diffusers"),
        (["--family", "llamagen"], "not recognised as llamagen"),
        (["--set", "net.grops=8"], "unknown key (did you mean groups?)"),
        (["--revision", "main"], "is for hub repositories"),
    ]:
        assert message in tmm("convert", path, "--out", tmp_path / "never", *arguments, status=1)
    assert not (tmp_path / "never").exists()


def test_a_public_file_can_be_measured_and_used_to_encode(public, tmp_path):
    path, _ = public
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((40, 32, 3), np.uint8)).save(tmp_path / "images" / "a.png")
    assert "PSNR" in tmm("eval", path, tmp_path / "images")
    assert "1 encoded" in tmm("encode", path, tmp_path / "images", "--out", tmp_path / "tokens")


def test_a_warning_is_one_line_on_stderr(public, tmp_path, monkeypatch, capfd):
    path, _ = public
    state = {key: value for key, value in load_file(path).items() if not key.startswith("loss.")}
    save_file(state, tmp_path / "bare.safetensors")
    command = ["tmm", "convert", str(tmp_path / "bare.safetensors"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    with warnings.catch_warnings():  # as a fresh process has them; `main` shows them in its own way
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", UserWarning)
        with pytest.raises(SystemExit) as done:
            cli.main()
    assert not done.value.code
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["warning", "warning"]
    assert "say family= to choose" in lines[0]
    assert "OpenRAIL" in lines[1]


def test_families_are_listed():
    listing, licences = tmm("families"), tmm("families", "--licences")
    assert all(row.name in listing for row in known_families())
    assert "Chameleon Research License" in licences
    assert "https://arxiv.org/abs/2012.09841" in licences


def test_an_object_of_ours_is_written_and_no_other(plain, tmp_path):
    said = tmm("convert", "plain_tokenizers:autoencoder", "--out", tmp_path / "ours")
    assert "becomes 64 positions" in said
    assert load(tmp_path / "ours").spec == plain.autoencoder().spec
    for arguments, message in (
        (["plain_tokenizers:Pool"], "Pool: cannot be saved, its class lacks kind, provenance, options"),
        (["plain_tokenizers:Pool", "--to", "diffusers"], "Pool: cannot be saved"),
        (["plain_tokenizers:autoencoder", "--family", "sd"], "--family sd: plain_tokenizers:autoencoder is made alr"),
        (["plain_tokenizers:autoencoder", "--set", "dtype=x"], "dtype=x: plain_tokenizers:autoencoder is made already"),
    ):
        assert tmm("convert", *arguments, "--out", tmp_path / "no", status=1).startswith(message)
    assert not (tmp_path / "no").exists()
