import argparse
import collections
import datetime
import enum
import json
import os
import pathlib
import pickle
import struct
import sys
import threading
import types
import typing
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tokenizers_mm.weights import files
from tokenizers_mm.weights.errors import CheckpointError

STATE = {"encoder.conv_in.weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(4, dtype=torch.bfloat16)}


def one_line(path, read=files.read):
    """The refusal of a bad file, checked for form: one line that begins with the path."""
    with pytest.raises(CheckpointError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    assert message.startswith(str(path))
    assert message.count(";") >= 2, "found; expected; remedy"
    return message


def same(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) and left[key].dtype == right[key].dtype for key in left)


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def rezip(path, contents, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


# Formats


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt", "a"])
def test_safetensors_by_any_name(tmp_path, name):
    save_file(STATE, tmp_path / name, metadata={"format": "pt", "commit": "abc"})
    same(files.read(tmp_path / name), STATE)
    assert sorted(files.keys(tmp_path / name)) == sorted(STATE)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a"])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_pickles_by_any_name(tmp_path, name, zipped):
    whole = {
        "state_dict": STATE,
        "epoch": 3,
        "deep": {"er": {"w": torch.nn.Parameter(torch.zeros(2))}},
        7: torch.ones(1),
    }
    with (tmp_path / name).open("wb") as file:
        torch.save(whole, file, _use_new_zipfile_serialization=zipped)
    found = files.read(tmp_path / name)
    same(found["state_dict"], STATE)
    assert found["epoch"] == 3
    assert found.keys() == {"state_dict", "epoch", "deep"}
    assert not found["deep"]["er"]["w"].requires_grad
    assert files.keys(tmp_path / name) == [*(f"state_dict.{key}" for key in STATE), "deep.er.w"]


def test_a_compressed_archive_is_not_mapped_as_if_it_were_plain(tmp_path):
    torch.save(STATE, tmp_path / "a.pt")
    rezip(tmp_path / "b.pt", members(tmp_path / "a.pt"), zipfile.ZIP_DEFLATED)
    same(files.read(tmp_path / "b.pt"), STATE)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_reading_costs_the_pages_that_are_touched(tmp_path, suffix):
    if not sys.platform.startswith("linux"):
        pytest.skip("resident memory is read from /proc")
    big = {f"w{i}": torch.ones(1 << 20) for i in range(16)}  # 64 MiB
    path = tmp_path / f"a.{suffix}"
    save_file(big, path) if suffix == "safetensors" else torch.save(big, path)
    files.read(path)  # what torch imports on first use does not count

    def resident():
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    found = files.read(path)
    untouched = resident() - before
    assert untouched < 8 << 20
    assert sum(float(value.sum()) for value in found.values()) == 16 << 20
    assert resident() - before > 56 << 20


# Selection, shards, folders


def test_only_wanted_tensors_are_returned(tmp_path):
    torch.save({"model": STATE, "ema": STATE, "step": 1}, tmp_path / "a.pt")
    found = files.read(tmp_path / "a.pt", lambda key: key.startswith("ema.encoder"))
    assert found == {"model": {}, "ema": {"encoder.conv_in.weight": found["ema"]["encoder.conv_in.weight"]}, "step": 1}
    save_file(STATE, tmp_path / "a.safetensors")
    assert list(files.read(tmp_path / "a.safetensors", lambda key: key == "bias")) == ["bias"]
    assert files.read(tmp_path / "a.safetensors", lambda key: False) == {}


def sharded(folder, suffix="safetensors"):
    """A language model in two shards with a tokenizer in the second."""
    shards = {
        f"m-1.{suffix}": {"lm.a": torch.zeros(2)},
        f"m-2.{suffix}": {"lm.b": torch.ones(2), "vq.w": torch.ones(3)},
    }
    for name, state in shards.items():
        save_file(state, folder / name) if suffix == "safetensors" else torch.save(state, folder / name)
    names = {key: name for name, state in shards.items() for key in state}
    index = folder / ("model.safetensors.index.json" if suffix == "safetensors" else "pytorch_model.bin.index.json")
    index.write_text(json.dumps({"metadata": {"total_size": 28}, "weight_map": names}))
    return index, {key: value for state in shards.values() for key, value in state.items()}


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_joined_and_only_the_needed_ones_opened(tmp_path, suffix):
    index, whole = sharded(tmp_path, suffix)
    same(files.read(index), whole)
    same(files.read(tmp_path), whole)
    assert files.keys(index) == list(whole)
    (tmp_path / f"m-1.{suffix}").unlink()
    same(files.read(index, lambda key: key.startswith("vq.")), {"vq.w": torch.ones(3)})
    assert f"m-1.{suffix}" in one_line(index)


def test_a_shard_behind_a_link_in_the_folder_is_read(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    index, whole = sharded(tmp_path / "snapshot")
    for shard in index.parent.glob("*.safetensors"):
        target = shard.rename(tmp_path / "blobs" / shard.stem)
        shard.symlink_to(target)
    same(files.read(index), whole)


@pytest.mark.parametrize(
    "name", ["../out.safetensors", "/etc/out.safetensors", "sub/out.safetensors", "..\\o.pt", "", 3]
)
def test_a_shard_outside_the_folder_is_refused(tmp_path, name):
    save_file(STATE, tmp_path / "out.safetensors")
    inside = tmp_path / "inside"
    inside.mkdir()
    index = inside / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"bias": name}}))
    assert f"lists the shard {name!r}" in one_line(index)


def test_a_shard_without_its_tensor_and_an_index_of_itself_are_refused(tmp_path):
    index, _ = sharded(tmp_path)
    save_file({"lm.b": torch.ones(2)}, tmp_path / "m-2.safetensors")
    with pytest.raises(CheckpointError, match=r"m-2\.safetensors: lacks 'vq\.w'"):
        files.read(index)
    (tmp_path / "m-2.safetensors").write_text(index.read_text())
    with pytest.raises(CheckpointError, match="itself JSON"):
        files.read(index)


@pytest.mark.parametrize(
    "names",  # the first is chosen
    [
        ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors", "x.safetensors"],
        ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"],
        ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"],
        ["model.safetensors.index.json", "m-1.safetensors", "m-2.safetensors", "pytorch_model.bin.index.json"],
        ["pytorch_model.bin.index.json", "m-1.bin", "m-2.bin"],
        ["ae.safetensors", "ae.ckpt", "config.json"],
        ["pytorch_model.bin", "training_args.bin", "optimizer.pt"],
        ["last.ckpt", "config.json", ".last.ckpt"],
        ["diffusion_pytorch_model.fp16.safetensors", "config.json"],
        ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors"],
    ],
)
def test_find_chooses(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
    assert files.find(tmp_path) == tmp_path / names[0]


@pytest.mark.parametrize("names", [["a.safetensors", "b.safetensors"], ["a.pt", "b.ckpt"], ["a.bf16.pt", "a.fp16.pt"]])
def test_find_lists_what_it_cannot_choose_from(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
    assert ", ".join(names) in one_line(tmp_path)


def test_a_folder_without_weights_points_at_its_sub_folders(tmp_path):
    (tmp_path / "config.json").touch()
    assert "holds no weights" in one_line(tmp_path)
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "model.safetensors").touch()
    assert "its sub-folders vae do" in one_line(tmp_path)


# Objects beside the tensors


class _Plain:
    pass


def fake_class(monkeypatch, full_name, *bases, body=None):
    """A class that only exists, importable under its name, while the test writes its file."""
    module, _, name = full_name.rpartition(".")
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        parent = ".".join(parts[:end])
        if parent not in sys.modules:
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    made = enum.Enum(name, {"A": "a"}) if enum.Enum in bases else type(name, bases, dict(body or {}))
    made.__module__ = module
    setattr(sys.modules[module], name, made)
    return made


def omegaconf_like(monkeypatch, content):
    """The object graph of a DictConfig: nodes with metadata that hold types, and parents that hold their children."""
    base = fake_class(monkeypatch, "omegaconf.base.ContainerMetadata")
    node, listing, mapping = (
        fake_class(monkeypatch, f"omegaconf.{name}")
        for name in ("nodes.AnyNode", "listconfig.ListConfig", "dictconfig.DictConfig")
    )

    def build(value, parent):
        made = (mapping if isinstance(value, dict) else listing if isinstance(value, list) else node)()
        made._metadata = base()
        made._metadata.__dict__.update(
            ref_type=typing.Any, object_type=dict, key_type=typing.Dict[str, typing.Any], element_type=int,  # noqa: UP006
            resolver_cache=collections.defaultdict(dict, {"oc": {}}), optional=True, flags={}, key=None,
        )  # fmt: skip
        made._parent = parent
        if isinstance(value, dict):
            made._content = {key: build(inner, made) for key, inner in value.items()}
        else:
            made._content = [build(inner, made) for inner in value] if isinstance(value, list) else value
        return made

    return build(content, None)


@pytest.fixture
def lightning(tmp_path, monkeypatch):
    """A training checkpoint as Lightning, omegaconf and argparse leave it; their modules are gone when it is read."""
    with monkeypatch.context() as patch:
        callback = fake_class(patch, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")
        attributes = fake_class(patch, "pytorch_lightning.utilities.parsing.AttributeDict", dict)
        state = fake_class(patch, "pytorch_lightning.trainer.states.TrainerFn", enum.Enum)
        slotted = fake_class(patch, "lightning.pytorch.loops.Progress", body={"__slots__": ("ready",)})()
        slotted.ready = 4
        hyper = attributes(lr=1e-4, nested=attributes(a=1))
        hyper.note = "an attribute beside the items"
        whole = {
            "state_dict": collections.OrderedDict(STATE),
            "callbacks": {
                callback: {"best_model_path": pathlib.PurePosixPath("/x/last.ckpt"), "score": np.float64(0.5)}
            },
            "hyper_parameters": hyper,
            "config": omegaconf_like(patch, {"model": {"ch_mult": [1, 2, 4], "target": "taming.VQModel"}}),
            "args": argparse.Namespace(width=128, out=pathlib.Path("out"), queue=collections.deque([1, 2], maxlen=4)),
            "states": {state.A: slotted},
            "rest": [
                np.arange(3),
                datetime.timedelta(1),
                frozenset([1]),
                callback,
                slice(1, 2),
                b"bytes",
                2**70,
                {1, 2},
            ],
        }

        def write(path, **options):
            torch.save(whole, path, **options)

        for options, name in (({}, "a.ckpt"), ({"_use_new_zipfile_serialization": False}, "b.ckpt")):
            write(tmp_path / name, **options)
    assert not {"pytorch_lightning", "lightning", "omegaconf"} & sys.modules.keys()
    return tmp_path


@pytest.mark.parametrize("name", ["a.ckpt", "b.ckpt"])
def test_training_checkpoints_are_read_with_stand_ins(lightning, name):
    allowed_before = set(torch.serialization.get_safe_globals())
    with pytest.raises(pickle.UnpicklingError):
        torch.load(lightning / name, weights_only=True)
    found = files.read(lightning / name)
    same(found["state_dict"], STATE)
    assert found["callbacks"] == {}  # its key is a class
    assert found["hyper_parameters"] == {"lr": 1e-4, "nested": {"a": 1}}
    assert found["args"].state["width"] == 128
    assert found["args"].state["queue"] == [1, 2]
    content = found["config"].state["_content"]["model"].state["_content"]
    assert [node.state["_content"] for node in content["ch_mult"].state["_content"]] == [1, 2, 4]
    assert repr(found["config"]) == "<stand-in for omegaconf.dictconfig.DictConfig>"
    assert not {"pytorch_lightning", "lightning", "omegaconf"} & sys.modules.keys()
    assert set(torch.serialization.get_safe_globals()) == allowed_before
    assert files.keys(lightning / name) == [f"state_dict.{key}" for key in STATE]


def test_threads_read_at_once(lightning):
    failures = []

    def work():
        try:
            for _ in range(5):
                same(files.read(lightning / "a.ckpt")["state_dict"], STATE)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_class_that_the_program_told_torch_to_trust_stays_itself(tmp_path):
    torch.save({"w": torch.ones(1), "args": argparse.Namespace(a=1)}, tmp_path / "a.pt")
    with torch.serialization.safe_globals([argparse.Namespace]):
        assert files.read(tmp_path / "a.pt")["args"] == argparse.Namespace(a=1)
    assert files.read(tmp_path / "a.pt")["args"].state == {"a": 1}


# Hostile pickles


class Call:
    def __init__(self, function, *args):
        self.made = function, args

    def __reduce__(self):
        return self.made


def calls(marker):
    """Objects whose unpickling makes the file `marker`, and how the refusal names each."""
    return {
        "system": (Call(os.system, f"touch {marker}"), "'posix.system'"),
        "eval": (Call(eval, f"open({str(marker)!r}, 'w')"), "'builtins.eval'"),
        "getattr": (Call(getattr, Call(__import__, "os"), "system"), "'builtins.__import__', 'builtins.getattr'"),
        "exec in a class of ours": (Call(exec, f"open({str(marker)!r}, 'w')"), "'builtins.exec'"),
        "subprocess": (Call(__import__("subprocess").check_call, ["touch", str(marker)]), "'subprocess.check_call'"),
    }


WRITERS = {
    "zip": {},
    "legacy": {"_use_new_zipfile_serialization": False},
    "protocol 4": {"pickle_protocol": 4},
    "legacy protocol 4": {"_use_new_zipfile_serialization": False, "pickle_protocol": 4},
}


@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors"])
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("call", ["system", "eval", "getattr", "exec in a class of ours", "subprocess"])
def test_a_pickle_that_calls_code_is_refused_by_name_and_nothing_runs(tmp_path, call, writer, name):
    marker = tmp_path / "ran"
    value, named = calls(marker)[call]
    if call != "getattr":  # the payload works where pickles are trusted
        pickle.loads(pickle.dumps(value))
        assert marker.exists()
        marker.unlink()
    for place in ({"w": torch.ones(1), "x": value}, {"state_dict": {"w": torch.ones(1), "deep": [{"x": (value,)}]}}):
        with (tmp_path / name).open("wb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(place, file, **WRITERS[writer])
        message = one_line(tmp_path / name)
        if writer != "legacy protocol 4":  # whose first bytes are not torch's
            assert named in message
            assert "safetensors" in message
        assert not marker.exists()


@pytest.mark.parametrize(
    "smuggled", ["pytorch_lightning.os system", "omegaconf os.system", "typing.os system", "lightning.x.posix system"]
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_name_under_an_allowed_root_is_inert_whatever_it_says(tmp_path, smuggled, zipped, monkeypatch):
    marker = tmp_path / "ran"
    # even where a real module answers to that name
    fake_class(monkeypatch, "pytorch_lightning.os.Anything")
    monkeypatch.setattr(sys.modules["pytorch_lightning.os"], "system", os.system, raising=False)
    path = tmp_path / "a.ckpt"
    torch.save(
        {"w": torch.ones(1), "x": Call(os.system, f"touch {marker}")}, path, _use_new_zipfile_serialization=zipped
    )
    old, new = b"posix\nsystem\n", smuggled.replace(" ", "\n").encode() + b"\n"
    if zipped:
        rezip(path, {name: content.replace(old, new) for name, content in members(path).items()})
    else:
        path.write_bytes(path.read_bytes().replace(old, new))
    found = files.read(path)
    assert found["x"].args == (f"touch {marker}",)
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["torch.hub load", "torch.jit load", "torch.nn.modules.conv Conv2d", "argparse.os system"]
)
def test_unknown_names_inside_torch_and_beside_allowed_ones_are_refused(tmp_path, name):
    path = tmp_path / "a.ckpt"
    torch.save({"w": torch.ones(1), "x": Call(os.system, "true")}, path)
    new = name.replace(" ", "\n").encode() + b"\n"
    rezip(path, {member: content.replace(b"posix\nsystem\n", new) for member, content in members(path).items()})
    assert repr(name.replace(" ", ".")) in one_line(path)


def test_a_second_pickle_that_only_torch_finds_is_still_torchs_to_refuse(tmp_path, monkeypatch):
    """The names are listed by our own reading of the zip; were it fooled, torch still refuses, and names the call."""
    marker = tmp_path / "ran"
    torch.save({"w": torch.ones(1), "x": Call(os.system, f"touch {marker}")}, tmp_path / "a.pt")
    monkeypatch.setattr(files.safe_pickles, "_streams", lambda path: iter(()))
    assert "'posix.system'" in one_line(tmp_path / "a.pt")
    assert not marker.exists()


def test_a_pickle_that_contains_itself_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MOST", 10_000)  # of 1e6, which take seconds
    loop = {"w": torch.ones(1)}
    loop["again"] = loop
    torch.save(loop, tmp_path / "a.pt")
    assert "contain themselves" in one_line(tmp_path / "a.pt")
    wide = {"w": torch.ones(1)}
    for _ in range(14):
        wide = {str(i): wide for i in range(10)}
    torch.save(wide, tmp_path / "b.pt")
    assert "contain themselves" in one_line(tmp_path / "b.pt")


# Files that are no weights, or no longer


def safetensors_bytes(tmp_path):
    save_file(STATE, tmp_path / "whole")
    return (tmp_path / "whole").read_bytes()


TEXTS = {
    b"": "empty (0 bytes)",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1345\n": "git lfs pull",
    b"<!DOCTYPE html><html><body>404</body></html>": "an HTML page",
    b"\n  <html>\n": "an HTML page",
    b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>": "an XML page",
    b"\x1f\x8b\x08\x00abcdefgh": "a gzip archive",
    b'{"weight_map": ': "no JSON",
    b'{"model_type": "vae"}': "without a weight_map",
    b"[" * 100_000: "no known format",
    b'{"a":' * 100_000: "no JSON",
    b"Repository not found\n": "no known format",
    b"\x00" * 100: "no known format",
    b"PK\x05\x06" + b"\x00" * 18: "no known format",
    pickle.dumps({"w": 1}): "a python pickle that torch.save did not write",
    pickle.dumps({"w": 1}, 0): "no known format",
}


@pytest.mark.parametrize(("content", "found"), TEXTS.items(), ids=[f"text{i}" for i in range(len(TEXTS))])
@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt"])
def test_files_that_hold_something_else(tmp_path, content, found, name):
    (tmp_path / name).write_bytes(content)
    assert found in one_line(tmp_path / name)


@pytest.mark.parametrize("length", [1, 4, 7, 8, 9, 40, -1, -9])
def test_truncated_safetensors(tmp_path, length):
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes(tmp_path)[:length])
    for reader in (files.read, files.keys):
        message = one_line(tmp_path / "a.safetensors", reader)
        assert ("broken safetensors" in message) == (length not in (1, 4, 7, 8))


@pytest.mark.parametrize("change", [b'"dtype"', b'"shape"', b"F32", b"data_offsets", b"{", b"[2,3]"])
def test_corrupt_safetensors_header(tmp_path, change):
    whole = safetensors_bytes(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(whole.replace(change, b"9" * len(change), 1))
    one_line(tmp_path / "a.safetensors")


def test_safetensors_with_a_header_beyond_the_limit(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b'{"a": 1}' * 10)
    assert "no known format" in one_line(tmp_path / "a.safetensors")


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_torch_files(tmp_path, keep, zipped):
    torch.save({"w": torch.ones(1000)}, tmp_path / "whole", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "whole").read_bytes()
    (tmp_path / "a.pt").write_bytes(content[: int(keep * len(content))])
    message = one_line(tmp_path / "a.pt")
    assert not zipped or "cut short" in message


def test_a_zip_without_the_bytes_that_its_pickle_names(tmp_path):
    torch.save({"w": torch.ones(1000)}, tmp_path / "whole")
    contents = {k: v for k, v in members(tmp_path / "whole").items() if "/data/" not in k}
    rezip(tmp_path / "a.pt", contents)
    assert "broken" in one_line(tmp_path / "a.pt")


def test_zips_that_torch_save_did_not_write(tmp_path):
    rezip(tmp_path / "model.ckpt", {"model.ckpt": b"x", "readme": b"y"})
    assert "a zip archive of model.ckpt, readme" in one_line(tmp_path / "model.ckpt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "a.jit")
    message = one_line(tmp_path / "a.jit")
    assert "a TorchScript archive" in message
    assert "torch.jit.load" in message


@pytest.mark.parametrize("whole", [torch.ones(2), [torch.ones(2)], {"epoch": 3, "state_dict": {}}])
def test_pickles_without_a_dictionary_of_tensors(tmp_path, whole):
    torch.save(whole, tmp_path / "a.pt")
    assert "expected" in one_line(tmp_path / "a.pt")


def test_a_whole_pickled_module_names_its_classes(tmp_path):
    torch.save(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3)), tmp_path / "a.pt")
    message = one_line(tmp_path / "a.pt")
    assert "'torch.nn.modules" in message


def test_paths_that_are_no_files(tmp_path):
    assert "no such file" in one_line(tmp_path / "missing.safetensors")
    assert "no such file" in one_line(tmp_path / "missing.safetensors", files.keys)
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "gone")
    assert "a link to a missing file" in one_line(tmp_path / "link.safetensors")
    os.mkfifo(tmp_path / "pipe.pt")
    assert "not a regular file" in one_line(tmp_path / "pipe.pt")
    (tmp_path / "file").write_bytes(b"x")
    one_line(tmp_path / "file" / "a.pt")


def test_unreadable_files(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(STATE, path)
    files.read(path)  # whatever is imported on first use
    path.chmod(0)
    root = os.geteuid() == 0  # who may read everything
    if root:
        os.seteuid(65534)
    try:
        for reader in (files.read, files.keys):
            message = one_line(path, reader)
            assert "Permission denied" in message
            assert "chmod u+r" in message
    finally:
        if root:
            os.seteuid(0)
