"""Sources are refused before anything is read, in the words that loading them would use."""

import json

import pytest

from tokenizers_mm import AutoencoderConfig, build_autoencoder, load, save
from tokenizers_mm.checkpoints import CheckpointError
from tokenizers_mm.checkpoints.source import check_source, is_network
from tokenizers_mm.nets import ConvConfig
from tokenizers_mm.saving import download as hub

GENERATOR = json.dumps({"kind": "flow", "spec": {}, "options": {}})
# Files of a folder, by name; how its refusal goes on.
FOLDERS = {
    "empty": ({}, "no config.json"),
    "weights": ({"a.pt": ""}, "no config.json"),
    "damaged": ({"config.json": "{"}, "config.json: not JSON"),
    "list": ({"config.json": "[]"}, "config.json: expected a mapping"),
    "unfinished": ({"run.json": "{}"}, "a training run without a finished tokenizer/"),
    "generator": ({"config.json": GENERATOR}, "a generator (flow), not a tokenizer"),
    "run": ({"run.json": "{}", "generator/config.json": GENERATOR}, "a generator (flow), not a tokenizer"),
}


def refusal(function, *arguments, **options):
    with pytest.raises(CheckpointError) as error:
        function(*arguments, **options)
    return str(error.value)


def made(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(("files", "message"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_is_refused_in_the_words_of_load(tmp_path, files, message):
    text = refusal(check_source, made(tmp_path, files))
    assert text.startswith(str(tmp_path))
    assert message in text
    assert text == refusal(load, tmp_path)


@pytest.mark.parametrize("name", ["nowhere/at/all", "no where", "gone.safetensors", "lite0:b0"])
def test_a_name_is_refused_in_the_words_of_load(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert refusal(check_source, name) == refusal(load, name)
    assert name in refusal(load, name)


def test_a_repository_is_asked_for_and_refused_in_the_words_of_load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(check_source, "runs/vq") == refusal(load, "runs/vq")
    asked = []
    monkeypatch.setattr(hub, "check", lambda *given: asked.append(given))
    check_source("runs/vq", revision="v1")
    assert asked == [("runs/vq", "v1")]
    (tmp_path / "runs" / "vq").mkdir(parents=True)  # a local path is never one
    assert "no config.json" in refusal(check_source, "runs/vq")
    assert len(asked) == 1


def test_what_load_takes_is_let_through(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net, bottleneck = ConvConfig(channels=32, multipliers=(1,), blocks=1), {"kind": "fsq", "levels": [3, 3]}
    tokenizer = build_autoencoder(AutoencoderConfig(image_size=(8, 8), z_channels=2, net=net, bottleneck=bottleneck))
    save(tokenizer, tmp_path / "run" / "tokenizer")
    for source in (tmp_path / "run", tmp_path / "run" / "tokenizer"):
        check_source(source)
        load(source)
    check_source(tmp_path / "run" / "tokenizer" / "model.safetensors")
    check_source(made(tmp_path / "files", {"a.pt": ""}), file="a.pt")
    for name in ("lite0", "timm:vit_small", "open_clip:ViT-B-32/openai"):
        assert is_network(name)
        check_source(name)
    (tmp_path / "lite0").mkdir()
    assert not is_network("lite0")
    assert "no config.json" in refusal(check_source, "lite0")
