"""A plain class as tokenizer goes through every command and call, and everything goes to the device asked for."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import backbones
from recipes import cli
from recipes.compare.entries import entry_of
from recipes.compare.measure import Settings, compare_tokenizers
from recipes.joint.effective_bits import EffectiveBitsConfig, effective_bits
from recipes.programs import evaluate
from recipes.programs.evaluate import Extras, evaluate_images
from recipes.programs.sample import TOKENIZER_FILE, open_pair, sample_images
from tokenizers_mm import Tiled
from tokenizers_mm.api import Tokens
from tokenizers_mm.saving.fingerprints import fingerprint_of
from tokenizers_mm.store.dataset import TokenDataset
from tokenizers_mm.store.encode import encode_folder
from tokenizers_mm.towers.tower import EncodeOnly

POOL = "plain_tokenizers:Pool"
SHORT = ["train.steps=2", "train.log_every=1", "train.tracker=none", "model.width=16", "model.depth=1"]


def tmm(*arguments, status=0):
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments], env={"COLUMNS": "300"})
    assert result.exit_code == status, (result.output, result.exception)
    return result.stdout


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """Twelve images of two classes."""
    root = tmp_path_factory.mktemp("tones")
    for number in range(12):
        path = root / ("light" if number % 2 else "dark") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 60, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels + np.uint8(190 * (number % 2))).save(path)
    return root


def test_every_command_takes_a_plain_class(plain, tmp_path):
    images = tmp_path / "shapes"
    tmm("data", "shapes", "--out", images, "--count", 12)
    table = tmm("eval", POOL, images, "--limit", 5, "--device", "cpu", "--json", tmp_path / "eval.json")
    assert POOL in table
    figures = {one["name"]: one["value"] for one in json.loads((tmp_path / "eval.json").read_text())["measurements"]}
    assert figures["Rate per image"] == 64 * 6
    assert 5 < figures["PSNR"] < 40
    assert "12 images = 12 encoded" in tmm("encode", POOL, images, "--out", tmp_path / "tokens", "--device", "cpu")
    store = TokenDataset(tmp_path / "tokens")
    assert (store.spec, store.fingerprint) == (plain.Pool().spec, fingerprint_of(plain.Pool()))
    assert "whole" in tmm("verify", tmp_path / "tokens")
    settings = [part for one in (*SHORT, f"tokens={tmp_path / 'tokens'}") for part in ("--set", one)]
    tmm("train", "shapes_ar", "--out", tmp_path / "ar", *settings)
    captions = ["small red circle top left", "large blue cross middle centre"]
    tmm("sample", tmp_path / "ar", POOL, *captions, "--out", tmp_path / "strip.png", "--device", "cpu")
    assert Image.open(tmp_path / "strip.png").size == (2 * 128, 128)
    files = sorted(images.rglob("*.png"))
    out = tmm("caption", tmp_path / "ar", POOL, *files[:3], "--max-length", 4, "--json", tmp_path / "captions.jsonl")
    lines = (tmp_path / "captions.jsonl").read_text().splitlines()
    assert [line.split("\t")[0] for line in out.splitlines()] == [str(path) for path in files[:3]]
    assert [json.loads(line)["file"] for line in lines] == [str(path) for path in files[:3]]
    more = ["--no-speed", "--limit", 4, "--pictures", 2, "--probe", "none", "--device", "cpu"]
    tmm("compare", POOL, "plain_tokenizers:Choices.coarse", "--images", images, "--out", tmp_path / "page", *more)
    record = json.loads((tmp_path / "page" / "compare.json").read_text())
    assert [one["name"] for one in record["tokenizers"]] == [POOL, "plain_tokenizers:Choices.coarse"]
    assert [one["downsampling"] for one in record["tokenizers"]] == [4, 8]


def test_a_generator_remembers_a_plain_tokenizer(plain, tmp_path):
    generator = backbones.build("autoregressive", {"width": 8, "depth": 1, "heads": 2}, plain.pool.spec)
    backbones.save(generator, tmp_path / "g")
    (tmp_path / "g" / TOKENIZER_FILE).write_text(fingerprint_of(plain.pool))
    expected = sample_images(generator, plain.pool, ["a"], seed=1)
    assert torch.equal(sample_images(tmp_path / "g", POOL, ["a"], seed=1), expected)
    other = plain.Pool()
    other.version = 2
    with pytest.raises(
        ValueError, match=f"g learned the tokens of tokenizer {fingerprint_of(plain.pool)}, but the tok"
    ):
        sample_images(tmp_path / "g", other, ["a"])
    with pytest.raises(ValueError, match=r"draws tokens of .* but plain_tokenizers:Means decodes"):
        sample_images(tmp_path / "g", "plain_tokenizers:Means", ["a"])


def test_what_a_tokenizer_remembers_of_its_work_is_not_its_identity(plain, tones, tmp_path):
    class Caching(plain.Pool):
        mode, table = "train", None

        def eval(self):
            self.mode = "eval"

        def embed(self, tokens):
            self.table = super().embed(tokens)
            return self.table

    encode_folder(Caching(), tones, tmp_path / "tokens", size=32)
    store = TokenDataset(tmp_path / "tokens")
    generator = backbones.build("autoregressive", {"width": 8, "depth": 1, "heads": 2}, store.spec)
    backbones.save(generator, tmp_path / "g")
    (tmp_path / "g" / TOKENIZER_FILE).write_text(store.fingerprint)
    used = Caching()
    assert sample_images(tmp_path / "g", used, ["a"]).shape == (1, 3, 32, 32)
    with pytest.raises(ValueError, match="or give its class a `fingerprint`"):  # it is another one now
        sample_images(tmp_path / "g", used, ["a"])


def test_figures_of_a_plain_class(plain, tones):
    extras = Extras(probe=str(tones), speed=True)
    result = evaluate_images(plain.pool, str(tones), size=32, extras=extras)
    assert result["Linear probe"].value == 100
    assert evaluate_images("plain_tokenizers:pool", str(tones), size=32)["PSNR"] == result["PSNR"]
    assert evaluate_images(plain.Means(), str(tones), size=32)["PSNR"].value > result["PSNR"].value
    tiled = evaluate_images(Tiled(plain.pool, 16, 0), str(tones), size=32)
    assert tiled["PSNR"].value == result["PSNR"].value
    with pytest.raises(ValueError, match="size=33 is not a multiple of 4"):
        evaluate_images(plain.pool, str(tones), size=33)
    batches = [torch.rand(4, 3, 32, 32) * 2 - 1 for _ in range(2)]
    bits = effective_bits(plain.pool, batches[:1], batches[1:], EffectiveBitsConfig(width=8, heads=1, steps=2))
    assert (bits.capacity, bits.positions) == (6, 64)


def test_objects_are_compared(plain, tones):
    settings = Settings(images=str(tones), speed=False, pictures=2, limit=4)
    pools = [plain.Pool(), plain.Means()]
    result = compare_tokenizers(pools, settings)
    assert [one.entry.name for one in result.tokenizers] == ["Pool", "Means"]
    assert [one.entry.what for one in result.tokenizers] == ["Pool", "Means"]
    assert [len(one.pictures) for one in result.tokenizers] == [2, 2]
    assert result.tokenizers[0].evaluation["PSNR"] == evaluate_images(plain.pool, str(tones), limit=4)["PSNR"]
    with pytest.raises(ValueError, match=r"Pool.*object,.*speed=True measures"):
        compare_tokenizers(pools, replace(settings, speed=True))
    with pytest.raises(ValueError, match="tokenizer 'Pool' is given twice"):
        compare_tokenizers([plain.Pool(), plain.pool], settings)


def test_what_is_told_of_a_plain_class(plain):
    tokenizer = plain.Pool()
    tokenizer.net, tokenizer.table = torch.nn.Linear(3, 2), torch.zeros(5)
    told = entry_of(tokenizer, "mine")
    assert (told.source, told.what, told.weights, told.encode_only, told.licence) == ("Pool", "Pool", 13, False, "")

    def refuse(tokens):
        raise EncodeOnly("no decoder")

    tokenizer.decode = refuse
    tokenizer.fingerprint = "mine"
    assert entry_of(tokenizer, "mine").encode_only


# ----------------------------------------------------------------------------------------------------------- devices


class Moving:
    """Continuous; remembers where it was sent and where its images were."""

    def __init__(self, of):
        self.spec, self.embed, self.decode = of.spec, of.embed, of.decode
        self.sent, self.seen = [], []

    def to(self, device):
        self.sent.append(device.type)

    def encode(self, image_BCHW):
        self.seen.append(image_BCHW.device.type)
        return Tokens(latents_BND=torch.zeros(len(image_BCHW), 64, 3), grid=(8, 8))


def test_tokenizer_and_images_of_encode_go_to_the_device(plain, tones, tmp_path):
    for device in ("cpu", "meta"):  # the one device beside the CPU that every machine has
        tokenizer = Moving(plain.Means())
        tokenizer.fingerprint = "moving"
        encode_folder(tokenizer, tones, tmp_path / device, size=32, device=torch.device(device))
        assert (tokenizer.sent, set(tokenizer.seen)) == ([device], {device})


def test_generator_and_tokenizer_go_to_the_device():
    codec = backbones_tokenizer()
    generator = backbones.build("flow", {"width": 8, "depth": 1, "heads": 2}, codec.spec)
    model, moved = open_pair(generator, codec, torch.device("meta"))
    for part in (model, moved):
        assert {parameter.device.type for parameter in part.parameters()} == {"meta"}
        assert not part.training


def backbones_tokenizer():
    from recipes.schema.recipe import load_recipe
    from tokenizers_mm import build_autoencoder

    return build_autoencoder(load_recipe("shapes_vae").model).train()


@pytest.mark.parametrize("command", ["eval", "encode", "sample", "caption", "compare"])
def test_every_command_chooses_its_device_first(plain, command, tones, tmp_path):
    (tmp_path / "config.json").write_text("{}")  # what is not there at all is told before torch is imported
    arguments = {
        "eval": ["json:thing", tones],
        "encode": ["json:thing", tones, "--out", tmp_path / "out"],
        "sample": [tmp_path, "json:thing", "a", "--out", tmp_path / "x.png"],
        "caption": [tmp_path, "json:thing", tones],
        "compare": ["json:thing", "--images", tones, "--out", tmp_path / "out"],
    }
    result = CliRunner().invoke(cli.app, [command, *map(str, arguments[command]), "--device", "cuda:99"])
    assert str(result.exception).startswith("device 'cuda:99': expected auto, cpu, cuda or cuda:N; this machine has")
    result = CliRunner().invoke(cli.app, [command, *map(str, arguments[command]), "--device", "cpu"])
    assert "device" not in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_what_is_computed_elsewhere_is_told(monkeypatch, plain, tones, capsys):
    asked = []

    def spy(tokenizer, images, *, device, **_):
        asked.append(device)
        raise ValueError("that is all")

    monkeypatch.setattr(evaluate, "evaluate", spy)
    monkeypatch.setattr("tokenizers_mm.runtime.choose_device", lambda name: torch.device("meta"))
    monkeypatch.setattr("recipes.programs.evaluate.choose_device", lambda device: device)
    monkeypatch.setattr(plain, "pool", Moving(plain.Means()))
    result = CliRunner().invoke(cli.app, ["eval", "plain_tokenizers:pool", str(tones)])
    assert result.stderr == "on meta\n"
    assert (asked, plain.pool.sent) == ([torch.device("meta")], ["meta"])
