"""What starting a command imports: mistakes are told without torch, and nothing is imported that is not used.

Only a process of its own shows that. Each of the two here runs many commands, and says after each which of the slow
packages it has imported by then.
"""

import json
import os
import subprocess
import sys

import pytest

# Packages that take 50 ms or more to import, some of them longer than torch.
SLOW = {
    "accelerate", "diffusers", "huggingface_hub", "lpips", "matplotlib", "open_clip", "scipy", "skimage", "sklearn",
    "tensorboard", "timm", "torch", "torch._dynamo", "torchmetrics", "torchvision", "transformers",
}  # fmt: skip
RUN = """
import json, sys
from pathlib import Path

def loaded():
    return [name for name in slow if name in sys.modules]

def tmm(*arguments):
    from typer.testing import CliRunner
    from recipes import cli

    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    said = result.output + ("" if isinstance(result.exception, (SystemExit, type(None))) else str(result.exception))
    return result.exit_code, said, loaded()

commands, slow = map(json.loads, sys.argv[1:])
"""


def run(code, folder, commands=()):
    """What a new process prints as JSON that runs this code in this folder."""
    environment = {**os.environ, "COLUMNS": "300", "TERMINAL_WIDTH": "300"}
    given = [json.dumps(commands), json.dumps(sorted(SLOW))]
    done = subprocess.run(
        [sys.executable, "-c", RUN + code, *given], cwd=folder, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# Commands that answer at once, their exit status, and what they say.
AT_ONCE = [
    ("--help", 0, "Usage: "),
    ("train --help", 0, "A recipe file"),
    ("--version", 0, "tokenizers-mm "),
    ("recipes", 0, "folder_vq"),
    ("recipes folder_vq", 0, "kind: tokenizer"),
    ("families --licences", 0, "OpenRAIL"),
    ("data shapes --out shapes --count 2", 0, "wrote 2 images to shapes"),
    ("data cats --out cats", 1, "data set 'cats': expected one of "),
    ("trane", 2, "No such command 'trane'"),
    ("eval a b --limit 0", 2, "greater than or equal to 1"),
    ("eval a b --limti 1", 2, "No such option: --limti"),
    ("recipes foldr_vq", 1, "recipe 'foldr_vq': no such file"),
    ("train foldr_vq --out r", 1, "recipe 'foldr_vq': no such file"),
    ("train mine.yaml --out r", 1, "mine.yaml: cannot be read (No such file or directory)"),
    ("train broken.yaml --out r", 1, "broken.yaml: not valid YAML"),
    ("train kind.yaml --out r", 1, "kind.yaml.kind = tokeniser: expected one of tokenizer, fused, generator"),
    ("train shapes_fsq --out r --set steps", 1, "--set steps: expected path.to.key=value"),
    ("train folder_vq --out r --set data.path=gone", 1, "gone: does not exist; give a folder of images"),
    ("train folder_vq --out r --set data.path=shapes --from gone/at/all", 1, "gone/at/all: no such file or folder"),
    ("train shapes_ar --out r --set tokens=gone", 1, "gone: is not a token store"),
    ("train fused.yaml --out r", 1, "half/at/all: no such file or folder"),
    ("train features.yaml --out r", 1, "gone: is not a token store"),
    ("eval gone/at/all photos", 1, "gone/at/all: no such file or folder, and no hub repository"),
    ("eval gone photos", 1, "gone (revision main): cannot be downloaded (HF_HUB_OFFLINE is set), and there is no such"),
    ("eval gone:Codec photos", 1, "gone:Codec: there is no module 'gone'"),
    ("eval shapes photos", 1, "shapes: no config.json"),
    ("eval lite0 gone", 1, "gone: does not exist; give a folder of images"),
    ("eval lite0 photos:tset", 1, "images 'photos:tset': photos has the parts train, test"),
    ("eval lite0 photos --preset adn", 1, "preset='adn': expected one of default, adm"),
    ("eval lite0 photos --perceptual vgg", 1, "name='vgg': expected one of lpips-vgg"),
    ("eval lite0 photos --fd fid", 1, "name='fid': expected inception"),
    ("eval lite0 photos --teacher clip", 1, "name='clip': expected timm:MODEL"),
    ("eval lite0 photos --domain faces", 1, "domain 'faces': expected NAME=FOLDER"),
    ("eval lite0 photos --domain faces=gone", 1, "gone: does not exist; give a folder of images"),
    ("eval lite0 photos --probe gone", 1, "gone: does not exist; give a folder of images"),
    ("eval lite0 photos --max-unreadable 2", 1, "max_unreadable=2.0: expected a share"),
    ("encode gone/at/all shapes --out t", 1, "gone/at/all: no such file or folder"),
    ("encode lite0 gone --out t", 1, "gone: does not exist; give a folder of images"),
    ("verify gone", 1, "gone: is not a token store"),
    ("sample gone lite0 cat --out x.png", 1, "gone: not a saved generator (it has no config.json)"),
    ("caption gone lite0 shapes", 1, "gone: not a saved generator (it has no config.json)"),
    ("sample generator gone/at/all cat --out x.png", 1, "gone/at/all: no such file or folder"),
    ("convert gone/at/all --out c", 1, "gone/at/all: no such file or folder"),
    ("convert lite0 --out c --to diffuser", 1, "--to diffuser: expected one of tokenizers-mm, diffusers"),
    ("convert lite0 --out c --family sd9", 1, "lite0: family='sd9' is unknown; expected one of "),
    ("convert lite0 --out c --set dtype", 1, "--set dtype: expected path.to.key=value"),
    ("compare lite0 gone/at/all --images photos", 1, "gone/at/all: no such file or folder"),
    ("compare lite0 --images gone", 1, "gone: does not exist; give a folder of images"),
    ("compare lite0 --images photos --probe gone", 1, "gone: does not exist; give a folder of images"),
    ("compare lite0 --images photos --fd fid", 1, "name='fid': expected inception"),
]  # fmt: skip
# A wrong value is for the schema to find, which takes torch: this one shows that a command that imports it is caught.
WITH_TORCH = ("train shapes_fsq --out r --set train.steps=none", 1, "train.steps = 'none': input should be a valid")
FILES = {
    "broken.yaml": "kind: [",
    "kind.yaml": "kind: tokeniser",
    "fused.yaml": "{kind: fused, semantic: half/at/all, perceptual: lite0}",
    "features.yaml": "{kind: tokenizer, data: {kind: folder, path: shapes, size: 8, features: gone}}",
    "generator/config.json": "{}",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What each command of AT_ONCE says in a process that runs them all, and what it has imported by then."""
    folder = tmp_path_factory.mktemp("at_once")
    (folder / "generator").mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    code = "print(json.dumps([tmm(*command.split()) for command in commands]))"
    commands = [command for command, _, _ in [*AT_ONCE, WITH_TORCH]]
    return dict(zip(commands, run(code, folder, commands), strict=True))


@pytest.mark.parametrize(("command", "status", "said"), AT_ONCE, ids=[command for command, _, _ in AT_ONCE])
def test_it_is_answered_without_torch(answers, command, status, said):
    found, text, loaded = answers[command]
    assert said in text
    assert found == status
    assert not {*loaded} - {"huggingface_hub"}  # which names of repositories are asked of


def test_a_command_that_imports_torch_is_caught(answers):
    command, status, said = WITH_TORCH
    found, text, loaded = answers[command]
    assert (found, said in text, "torch" in loaded) == (status, True, True)


IMPORTS = """
def ours():
    return sorted(name for name in sys.modules if name.startswith("tokenizers_mm."))

import tokenizers_mm
report = [loaded(), ours()]
import backbones
report += [loaded(), ours(), "pydantic" in sys.modules]
from tokenizers_mm import *
report += [loaded(), "tokenizers_mm.nets.conv" in ours()]
print(json.dumps(report))
"""


def test_importing_the_packages_imports_no_more_than_they_are_made_of(tmp_path):
    face, generators, everything = (found := run(IMPORTS, tmp_path))[:2], found[2:5], found[5:]
    assert face == [[], ["tokenizers_mm.lazy"]]
    slow, ours, schema = generators
    assert (slow, schema) == (["torch"], False)
    blocks = [name for name in ours if name.startswith("tokenizers_mm.blocks")]
    assert "tokenizers_mm.blocks.transformer" in blocks
    assert sorted({*ours} - {*blocks}) == ["tokenizers_mm.api", "tokenizers_mm.geometry", "tokenizers_mm.lazy"]
    assert everything == [["torch"], True]


CHAIN = """
import torch
from backbones import Autoregressive, AutoregressiveConfig, save as save_generator
from tokenizers_mm import AutoencoderConfig, build_autoencoder, save

bottleneck = {"kind": "fsq", "levels": [3, 3]}
net = {"channels": 32, "multipliers": [1, 1], "blocks": 1}
from tokenizers_mm.config import parse
model = build_autoencoder(
    parse(AutoencoderConfig, {"image_size": [32, 32], "z_channels": 2, "net": net, "bottleneck": bottleneck}, "test")
)
save(model, "tokenizer")
save_generator(Autoregressive(AutoregressiveConfig(width=16, depth=1, heads=1), model.spec, None), "generator")
print(json.dumps([tmm(*command.split()) for command in commands]))
"""
TINY = (
    "--set train.steps=1 --set train.tracker=none --set data.count=4 --set train.picture_every=0 "
    "--set train.batch_size=4"
)
# In this order: none may have imported more than torch, but training, which comes last.
COMPUTING = [
    "data shapes --out shapes --count 4",
    "encode tokenizer shapes --out store",
    "verify store",
    "eval tokenizer shapes --limit 2",
    "convert tokenizer --out copy",
    "sample generator tokenizer cat --out cat.png",
    "caption generator tokenizer shapes",
    f"train shapes_fsq --out run {TINY}",
]


def test_commands_import_what_they_use(tmp_path):
    """An FSQ tokenizer of convolutions needs no other network. Training shows that imports are seen: it needs
    accelerate, and every optimizer of torch what compiles.
    """
    training = ["accelerate", "torch", "torch._dynamo"]
    for command, (status, text, loaded) in zip(COMPUTING, run(CHAIN, tmp_path, COMPUTING), strict=True):
        assert status == 0, text
        assert loaded == (training if command.startswith("train") else ["torch"]), command
