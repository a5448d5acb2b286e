"""The console script: help for everything, the whole way through, and one line for every mistake."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from recipes import cli
from recipes.demo.run import demo_jobs
from recipes.schema.files import FOR_YOUR_IMAGES, packaged_recipes, read_recipe
from recipes.schema.recipe import load_recipe
from tokenizers_mm import TowerConfig, build_tower, save
from tokenizers_mm.data.unreadable import ALLOWED_SHARE
from tokenizers_mm.store.dataset import TokenDataset

COMMANDS = typer.main.get_command(cli.app).commands
TINY = ["train.steps=3", "train.log_every=1", "train.tracker=none", "train.picture_every=0"]


def tmm(*arguments, status=0):
    """Output of a command that must end with this status."""
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments], env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"})
    assert result.exit_code == status, (result.output, result.exception)
    return result.output


def settings(*assignments):
    return [part for assignment in assignments for part in ("--set", assignment)]


def test_every_command_is_known():
    assert set(COMMANDS) == {
        "recipes", "train", "eval", "encode", "convert", "families", "verify", "sample", "caption", "data",
        "demo", "compare",
    }  # fmt: skip
    listing = tmm("--help")
    assert all(f" {name} " in listing for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_argument(name):
    text, command = tmm(name, "--help"), COMMANDS[name]
    assert command.help.splitlines()[0] in text
    for parameter in command.params:
        # Options are written in full, arguments by their name.
        assert (parameter.opts[-1] if parameter.opts[0].startswith("-") else parameter.name) in text
        assert parameter.help, f"{name}: {parameter.name} has no help"
        assert parameter.help in text


def test_recipes_are_listed_with_their_first_line():
    *lines, empty, last = tmm("recipes").splitlines()
    assert [line.split()[0] for line in lines] == list(packaged_recipes())
    for line, path in zip(lines, packaged_recipes().values(), strict=True):
        assert path.read_text().splitlines()[0].removeprefix("# ") in line
    assert not empty
    assert last.startswith("For your own images: folder_vq (codes) or folder_vae (latents)")


def test_recipes_for_your_own_images_read_a_folder_and_are_named_where_one_trains():
    folders = [name for name in packaged_recipes() if read_recipe(name)[1].get("data", {}).get("path") == "images"]
    assert sorted(FOR_YOUR_IMAGES) == sorted(folders)
    assert all(name in tmm("train", "--help") for name in FOR_YOUR_IMAGES)


def test_a_recipe_is_printed_as_it_is_read(tmp_path):
    for name in ("folder_vq", "imagenet/vae"):
        text = tmm("recipes", name)
        assert text == packaged_recipes()[name].read_text()
        (tmp_path / "mine.yaml").write_text(text)
        assert load_recipe(str(tmp_path / "mine.yaml")) == load_recipe(name)


def test_versions():
    assert tmm("--version") == f"tokenizers-mm {version('tokenizers-mm')}, torch {version('torch')}\n"


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """data -> train -> encode -> train -> sample, by commands alone; the output of each by name."""
    root = tmp_path_factory.mktemp("chain")
    out = {"data": tmm("data", "shapes", "--out", root / "shapes", "--count", 12)}
    for name in ("fsq", "vae"):
        flags = settings(*TINY, "data.count=12")
        out[f"train {name}"] = tmm("train", f"shapes_{name}", "--out", root / name, *flags)
        out[f"encode {name}"] = tmm("encode", root / name, root / "shapes", "--out", root / f"tokens_{name}")
        out[f"verify {name}"] = tmm("verify", root / f"tokens_{name}")
    for name, tokens in (("ar", "fsq"), ("flow", "vae")):
        flags = settings(*TINY, "model.width=16", "model.depth=1", f"tokens={root / f'tokens_{tokens}'}")
        out[f"train {name}"] = tmm("train", f"shapes_{name}", "--out", root / name, *flags)
    return root, out


def test_the_whole_chain(chain, tmp_path):
    root, out = chain
    assert out["data"] == f"wrote 12 images to {root / 'shapes'}\n"
    assert out["train fsq"].endswith(f"saved {root / 'fsq' / 'tokenizer'}\n")
    assert out["train ar"].endswith(f"saved {root / 'ar' / 'generator'}\n")
    for name in ("fsq", "vae"):
        assert out[f"encode {name}"].splitlines()[-3:] == [
            "12 images = 12 encoded + 0 quarantined + 0 already there",
            "captions: 12 of 12 images, from captions.jsonl",
            "labels: 12 of 12 images, from captions.jsonl",
        ]
        kept = ", quantizer fsq kept" if name == "fsq" else ""
        assert out[f"verify {name}"] == f"1 shards, 12 of 12 images encoded, 0 quarantined{kept}: whole\n"
    for generator, tokenizer in (("ar", "fsq"), ("flow", "vae")):
        png = tmp_path / "new" / f"{generator}.png"
        captions = ["small red circle top left", "large blue cross middle centre"]
        assert tmm("sample", root / generator, root / tokenizer, *captions, "--out", png) == f"wrote {png}\n"
        assert Image.open(png).size == (2 * 128, 128)


def test_eval_prints_a_table_and_writes_json(chain, tmp_path):
    root, _ = chain
    file = tmp_path / "new" / "figures.json"
    table = tmm("eval", root / "fsq", root / "shapes", "--limit", 5, "--json", file)
    figures = {figure["name"]: figure for figure in json.loads(file.read_text())["measurements"]}
    assert "5 images: shapes" in table
    assert f"{figures['PSNR']['value']:.4g}" in table
    assert all(name in table for name in figures)
    # The tokenizer folder inside the run folder is the same tokenizer.
    assert tmm("eval", root / "fsq" / "tokenizer", root / "shapes", "--limit", 5, "--json", tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == file.read_text()


def test_a_tower_encodes_at_its_own_size(chain, tmp_path):
    save(build_tower(TowerConfig(name="timm:test_vit", image_size=48, input_size=32), random_init=True), tmp_path / "t")
    out = tmm("encode", tmp_path / "t", chain[0] / "shapes", "--out", tmp_path / "store")
    assert "12 images = 12 encoded + 0 quarantined + 0 already there\n" in out
    spec = TokenDataset(tmp_path / "store").spec
    assert (spec.image_size, spec.grid, spec.dim) == ((48, 48), (2, 2), 64)


def test_a_second_encode_encodes_nothing(chain):
    root, _ = chain
    before = {path: path.read_bytes() for path in (root / "tokens_fsq").iterdir() if path.name != ".lock"}
    again = tmm("encode", root / "fsq", root / "shapes", "--out", root / "tokens_fsq")
    assert "12 images = 0 encoded + 0 quarantined + 12 already there\n" in again
    assert before == {path: path.read_bytes() for path in (root / "tokens_fsq").iterdir() if path.name != ".lock"}


@pytest.fixture
def odd(tmp_path):
    """Images of four sizes with captions beside two of them, and a text that belongs to none."""
    for number in range(8):
        path = tmp_path / "odd" / ("a" if number % 2 else "b") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32 + 8 * (number % 4), 32), (30 * number, 0, 0)).save(path)
    (tmp_path / "odd" / "a" / "1.txt").write_text("one")
    (tmp_path / "odd" / "a" / "3.txt").write_text("three")
    (tmp_path / "odd" / "README.txt").write_text("hello")
    return tmp_path / "odd"


def test_too_many_quarantined_have_a_status_and_a_remedy(chain, odd, tmp_path):
    encode = ["encode", chain[0] / "fsq", odd, "--out", tmp_path / "store"]
    for counts in ("2 encoded + 6 quarantined + 0 already there", "0 encoded + 0 quarantined + 8 already there (6 of"):
        out = tmm(*encode, status=3)
        assert counts in out
        assert "6 of 8 images (75.0%) are quarantined" in out
        assert "--size N" in out
    verified = tmm("verify", tmp_path / "store", status=3)
    assert (
        verified.splitlines()[0]
        == "1 shards, 2 of 8 images encoded, 6 quarantined, quantizer fsq kept: whole, but too many are quarantined"
    )
    assert "6 x preprocess: (32, 56) pixels" in verified
    assert "--size N" in verified
    # Allowed, it is a whole store; damaged, that is what counts.
    assert tmm("verify", tmp_path / "store", "--max-quarantined", 0.8).endswith(": whole\n")
    assert "quarantined," not in tmm(*encode, "--max-quarantined", 0.8)
    (tmp_path / "store" / "00000.parquet").unlink()
    assert "problems" in tmm("verify", tmp_path / "store", status=1)
    # The remedy helps.
    sized = tmm("encode", chain[0] / "fsq", odd, "--out", tmp_path / "sized", "--size", 32)
    assert "8 images = 8 encoded + 0 quarantined" in sized
    assert tmm("verify", tmp_path / "sized").endswith(": whole\n")


def test_captions_of_an_encoding_are_told_and_chosen(chain, odd, tmp_path):
    def encode(name, *flags):
        with pytest.warns(UserWarning, match=r"README\.txt") if not flags else nullcontext():
            return tmm("encode", chain[0] / "fsq", odd, "--out", tmp_path / name, "--size", 32, *flags)

    assert "captions: 2 of 8 images, from .txt files beside them\n" in encode("auto")
    assert "labels: 8 of 8 images, from names of sub-folders: 2 classes\n" in encode("folders", "--captions", "folders")
    assert "captions" not in encode("none", "--captions", "none")
    (tmp_path / "more.csv").write_text("file,label\na/1.png,dog\nb/0.png,cat")
    assert "labels: 2 of 8 images, from more.csv: 2 classes\n" in encode("file", "--captions", tmp_path / "more.csv")
    assert TokenDataset(tmp_path / "file").labels_I.tolist() == [1, -1, -1, -1, 0, -1, -1, -1]
    assert TokenDataset(tmp_path / "none").captions == ()
    for name in ("a", "b"):
        for path in (odd / name).glob("*.txt"):
            path.unlink()
    with pytest.warns(UserWarning, match=r"README\.txt"):
        hint = tmm("encode", chain[0] / "fsq", odd, "--out", tmp_path / "hint", "--size", 32)
    assert "--captions folders" in hint


def test_help_says_what_captions_look_like_and_what_the_status_means():
    text = " ".join(tmm("encode", "--help").split())
    assert '{"file": "a/b.png", "caption": "a red cat", "label": 3}' in text
    assert "Exit status 3" in text
    assert "Exit status 3" in tmm("verify", "--help")


def test_eval_leaves_out_what_it_cannot_read_and_says_so(chain, odd, tmp_path):
    (odd / "a" / "9.png").write_text("no image")
    with pytest.warns(UserWarning, match=r"9\.png: header.*left out"):
        table = tmm("eval", chain[0] / "fsq", odd, "--size", 32, "--json", tmp_path / "f.json")
    assert "8 images: odd" in table
    assert "1 more left out" in table
    assert json.loads((tmp_path / "f.json").read_text())["images"] == {"measured": 8, "left_out": 1}


def test_shares_are_those_of_the_library():
    shares = [
        one
        for command in COMMANDS.values()
        for one in command.params
        if isinstance(one.default, float) and one.name.startswith("max_")
    ]
    assert [one.name for one in shares].count("max_quarantined") == 2
    assert {one.default for one in shares} == {ALLOWED_SHARE}


def test_verify_of_a_damaged_store_fails(chain, tmp_path):
    root, _ = chain
    (tmp_path / "store").mkdir()
    for path in (root / "tokens_fsq").iterdir():
        (tmp_path / "store" / path.name).write_bytes(path.read_bytes())
    shard = tmp_path / "store" / "00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    output = tmm("verify", tmp_path / "store", status=1)
    assert f"{shard}: does not match the SHA-256" in output.splitlines()[0]
    assert output.splitlines()[-1].endswith("problems")


def test_train_resumes(chain):
    root, _ = chain
    recipe = ["shapes_fsq", "--out", root / "fsq", *settings(*TINY, "data.count=12")]
    weights = (root / "fsq" / "tokenizer" / "model.safetensors").read_bytes()
    assert tmm("train", *recipe, "--resume").endswith(f"saved {root / 'fsq' / 'tokenizer'}\n")
    assert (root / "fsq" / "tokenizer" / "model.safetensors").read_bytes() == weights


def test_long_paths_stay_on_one_line(tmp_path):
    folder = tmp_path / ("long [bold] " * 12)
    result = CliRunner().invoke(cli.app, ["data", "shapes", "--out", str(folder), "--count", "1"])
    assert result.output == f"wrote 1 images to {folder}\n"


@pytest.mark.parametrize("quick", [False, True])
def test_the_demo_runs_commands_that_exist(tmp_path, quick):
    jobs, done = demo_jobs(tmp_path, quick=quick), set()
    for job in jobs:
        name, *arguments = job.arguments
        options = COMMANDS[name].make_context(name, arguments).params
        assert set(job.needs) <= done, f"{job.name} stands before what it needs"
        if name == "train":
            recipe = load_recipe(options["recipe"], options["assign"])
            assert (recipe.train.steps, options["out"] / "history.jsonl") == (job.steps, job.history)
            assert job.steps <= 20 or not quick
        done.add(job.name)
    assert len(done) == len(jobs)


# -------------------------------------------------------------------------------------------------------- mistakes


# Command, then how its line begins; r is the chain's folder, n an empty one.
MISTAKES = [
    ("encode r/fsq n --out n/t", "n: found an empty folder, no images; put .jpg, .jpeg, .png, .webp files there"),
    ("encode n r/shapes --out n/t", "n: no config.json, so this is neither a tokenizer of ours "),
    ("encode r/vae r/shapes --out r/tokens_fsq", "r/tokens_fsq: the store has tokenizer fingerprint "),
    ("sample r/ar r/vae caption --out n/x.png", "r/ar/generator draws tokens of "),
    ("sample r/fsq r/fsq caption --out n/x.png", "r/fsq: not a saved generator"),
    ("caption r/flow r/vae r/shapes", "r/flow writes no captions: it draws images only; use an autoregressive one"),
    ("caption r/ar r/fsq n", "n: found an empty folder, no images"),
    ("eval no.module:Codec r/shapes", "no.module:Codec: there is no module 'no' in the current folder "),
    ("eval nowhere:X r/shapes", "nowhere:X: there is no module 'nowhere' in the current folder "),  # and no picture
    ("encode r/fsq r/shapes --out n/t --device cuda:99", "device 'cuda:99': expected auto, cpu, cuda or cuda:N; "),
    ("eval r/fsq n/nowhere", "n/nowhere: does not exist; give a folder of images"),
    ("train shapes --out n/r", "recipe 'shapes': no such file, and not a packaged one; did you mean shapes_"),
    ("recipes foldr_vq", "recipe 'foldr_vq': no such file, and not a packaged one; did you mean folder_vq"),
    ("train shapes_fsq --out r/fsq", "r/fsq holds a run already: resume it, or choose another folder"),
    ("train shapes_ar --out n/r --set tokens=n", "n: is not a token store (it has no manifest.json)"),
    ("train shapes_flow --out n/r --set tokens=r/tokens_fsq", "spec is discrete: a flow needs continuous latents"),
    ("verify r/shapes", "r/shapes: is not a token store (it has no manifest.json)"),
    ("verify r/tokens_fsq --max-quarantined 2", "max_quarantined=2.0: expected a share"),
    ("encode nowhere nowhere --out n/t --max-quarantined -1", "--max-quarantined=-1.0: expected a share"),
    (
        "encode r/fsq r/shapes --out n/t --captions folders",
        "r/shapes: captions='folders', but no image stands in a sub",
    ),
    ("encode r/fsq r/shapes --out n/t --captions n/c.csv", "n/c.csv: cannot be read"),
    ("eval r/fsq r/shapes --max-unreadable 2", "max_unreadable=2.0: expected a share"),
    ("data shapes --out r/shapes", "r/shapes is not empty: choose another folder"),
    ("data shapes --out r/shapes/captions.jsonl", "[Errno 20] Not a directory: 'r/shapes/captions.jsonl'"),
    ("data cats --out n/c", "data set 'cats': expected one of emoji, fashion-mnist, photos, shapes, words"),
]


@pytest.mark.parametrize(("command", "message"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_a_mistake_is_one_line_on_stderr(command, message, chain, tmp_path, monkeypatch, capsys):
    (tmp_path / "r").symlink_to(chain[0])
    (tmp_path / "n").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tmm", *command.split()])
    monkeypatch.setattr(sys, "path", list(sys.path))  # names of objects add the current folder
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    assert end.value.code == 1
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert "Traceback" not in out + err


def test_a_stopped_demo_says_what_is_left(monkeypatch, tmp_path):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("recipes.demo.run_demo", stopped)
    assert str(tmp_path / "d" / "logs") in tmm("demo", "--out", tmp_path / "d", status=130)


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch, tmp_path):
    def broken(*_, **__):
        raise KeyError("ours")

    monkeypatch.setattr("recipes.programs.write_dataset", broken)
    monkeypatch.setattr(sys, "argv", ["tmm", "data", "shapes", "--out", str(tmp_path / "x")])
    with pytest.raises(KeyError, match="ours"):
        cli.main()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "shapes_fsq"], "Missing option '--out'"),
        (["trane"], "No such command 'trane'"),
        (["eval", "a", "b", "--limit", "0"], "should be greater than or equal to 1"),
        (["data", "shapes", "--out", "x", "--cuont", "3"], "No such option: --cuont"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_usage_has_status_2(arguments, message):
    assert message in tmm(*arguments, status=2)


def test_as_a_program(tmp_path):
    command = [sys.executable, "-m", "recipes.cli", "train", "shapes_fsq", "--out", "r", "--set", "train.steps=none"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "COLUMNS": "40"})
    file = Path(packaged_recipes()["shapes_fsq"])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {file}.train.steps = 'none': input should be a valid integer")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
