"""Addresses are refused wherever a folder is written, before a folder named after their scheme is made."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from recipes import cli
from recipes.compare.page import write_comparison
from recipes.programs.convert import convert_tokenizer
from recipes.programs.datasets import write_dataset
from recipes.programs.sample import save_strip
from recipes.programs.train import train_recipe
from recipes.schema.recipe import load_recipe
from tokenizers_mm import AutoencoderConfig, TokenSpec, build_autoencoder, save, to_diffusers
from tokenizers_mm.data.images import Preprocess
from tokenizers_mm.data.sets.shapes import Shapes, write_folder
from tokenizers_mm.data.sources import ImageArrays
from tokenizers_mm.nets.conv import ConvConfig
from tokenizers_mm.runtime.paths import local_path
from tokenizers_mm.store.dataset import StoreWriter
from tokenizers_mm.store.encode import encode_folder
from tokenizers_mm.training.config import TrainConfig
from tokenizers_mm.training.loop import train

ADDRESSES = ["s3://bucket/x", "gs://bucket", "hf://datasets/a/b", "https://host/x", "S3://b", "abfss+v2.1://x", "s3://"]


@pytest.mark.parametrize("address", [*ADDRESSES, *map(Path, ADDRESSES)], ids=repr)
def test_an_address_is_no_path(address):
    with pytest.raises(ValueError, match=r"--out=.*is an address.*(copy|mounted)") as caught:
        local_path(address, "--out")
    assert str(address) in str(caught.value)


@pytest.mark.parametrize(
    "address", ["file:///data/x", "file://localhost/data/x", Path("file:///data/x"), "file:/data/x"]
)
def test_a_file_address_has_a_plain_path(address):
    with pytest.raises(ValueError, match=r"out=file:.*write /data/x$"):
        local_path(address)


@pytest.mark.parametrize(
    "path", ["runs/a", "/data/s3/x", "a:b", "c:/x", "12:30/x", "/mnt/s3://x", "a b://c", "", "~/x", "x/s3://y"]
)
def test_other_paths_stay_what_they_are(path):
    assert local_path(path) == local_path(Path(path)) == Path(path)


def _tokenizer():
    return build_autoencoder(load_recipe("shapes_fsq").model).eval()


def _train(out):
    objective = torch.nn.Linear(1, 1)
    return train(objective, ImageArrays(np.zeros((1, 8, 8, 3), np.uint8)), TrainConfig(steps=1, batch_size=1), out)


def _encode(out):
    Image.new("RGB", (8, 8)).save("a.png")
    return encode_folder(_tokenizer(), ".", out)


DIFFUSERS = AutoencoderConfig(
    image_size=(16, 16),
    net=ConvConfig(channels=8, groups=4, multipliers=(1, 2), blocks=1),
    bottleneck={"kind": "gaussian", "dim": 4},
)
WRITERS = {
    "compare": lambda out: write_comparison(None, out),
    "convert": lambda out: convert_tokenizer("nowhere", out, assign=[]),
    "data": lambda out: write_dataset("shapes", out, count=1),
    "encode": _encode,
    "recipe": lambda out: train_recipe(load_recipe("shapes_fsq"), out),
    "sample": lambda out: save_strip(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), out / "x.png"),
    "save": lambda out: save(_tokenizer(), out),
    "save_pretrained": lambda out: _tokenizer().save_pretrained(str(out)),
    "shapes": lambda out: write_folder(Shapes(1, 0), out),
    "store": lambda out: StoreWriter(out, TokenSpec(image_size=(8, 8), grid=(1, 1), dim=1), "f", Preprocess(8)),
    "to_diffusers": lambda out: to_diffusers(build_autoencoder(DIFFUSERS), out),
    "train": _train,
}


@pytest.mark.parametrize("name", WRITERS)
def test_whatever_writes_refuses_an_address_and_makes_no_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"s3:/bucket/x.*is an address"):
        WRITERS[name](Path("s3://bucket/x"))
    assert not Path("s3:").exists()


COMMANDS = [
    "train shapes_fsq --out {}",
    "encode nowhere nowhere --out {}",
    "data shapes --out {}",
    "convert nowhere --out {}",
    "compare nowhere --images photos --out {}",
    "demo --out {}",
    "sample nowhere nowhere x --out {}",
    "eval nowhere photos --json {}",
]


@pytest.mark.parametrize("command", COMMANDS, ids=[command.split()[0] for command in COMMANDS])
def test_commands_refuse_an_address_before_they_read_anything(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, command.format("s3://bucket/x").split())
    assert isinstance(result.exception, ValueError)
    assert "s3:/bucket/x: s3:// is an address" in str(result.exception)
    assert list(tmp_path.iterdir()) == []
