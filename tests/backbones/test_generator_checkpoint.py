"""Generators on disk."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from backbones import KINDS, Autoregressive, AutoregressiveConfig, Flow, FlowConfig, build, load, save
from tokenizers_mm.api import Generator, TokenSpec

DISCRETE = TokenSpec(image_size=(8, 8), grid=(2, 2), dim=4, codes=(5, 6))
CONTINUOUS = TokenSpec(image_size=(8, 8), grid=(2, 2), dim=4)


def generators():
    torch.manual_seed(0)
    config = AutoregressiveConfig(width=16, depth=1, heads=2)
    return {
        "ids": Autoregressive(config, DISCRETE),
        "codebook": Autoregressive(config, DISCRETE, torch.randn(11, 4)),
        "flow": Flow(FlowConfig(width=16, depth=1, heads=2, patch=2), CONTINUOUS),
    }


@pytest.mark.parametrize("name", ["ids", "codebook", "flow"])
def test_a_saved_generator_samples_the_same(tmp_path, name):
    generator = generators()[name]
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save(generator, tmp_path / "deep" / "model")
    loaded = load(tmp_path / "deep" / "model")
    assert type(loaded) is KINDS[generator.kind]
    assert isinstance(loaded, Generator)
    assert (loaded.config, loaded.spec, loaded.training) == (generator.config, generator.spec, False)
    for key, value in generator.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    samples = [g.eval().sample(["a red cat"] * 4, seed=1, guidance=2.0).data for g in (generator, loaded)]
    assert torch.equal(*samples)


def test_missing_unexpected_and_misshapen_weights_are_named(tmp_path):
    save(generators()["flow"], tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    changed = {k: v for k, v in state.items() if k != "head.bias"} | {"extra": torch.zeros(1)}
    changed["inputs.bias"] = torch.zeros(3)
    save_file(changed, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"missing \['head.bias'\], unexpected \['extra'\], other shape \['inputs.bias'\]"
    ):
        load(tmp_path)


def test_broken_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"not a saved generator \(FileNotFoundError"):
        load(tmp_path)
    save(generators()["flow"], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"kind": "gan"}))
    with pytest.raises(ValueError, match="kind='gan': expected one of autoregressive, flow"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="JSONDecodeError"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a saved generator"):
        load(tmp_path)


def test_unknown_options_are_named():
    with pytest.raises(ValueError, match=r"options of flow: .*'wdth'"):
        build("flow", {"wdth": 3}, CONTINUOUS)


def test_a_full_disk_leaves_the_saved_generator_as_it_was(tmp_path, small_disk):
    one, other = generators()["flow"], generators()["ids"]
    save(one, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with small_disk(1000), pytest.raises(Exception, match="File too large"):
        save(other, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
