import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokenizers_mm import Autoencoder, AutoencoderConfig, build_autoencoder, fingerprint, load, save
from tokenizers_mm.models import KINDS
from tokenizers_mm.nets.conv import ConvConfig
from tokenizers_mm.runtime.writing import WriteError
from tokenizers_mm.saving import folder as native
from tokenizers_mm.weights import CheckpointError, Provenance

NET = ConvConfig(channels=8, groups=4, multipliers=(1, 2), blocks=1, patch=2)
BOTTLENECKS = [{"kind": "gaussian", "dim": 3}, {"kind": "vq", "size": 8, "dim": 3}, {"kind": "fsq", "levels": [8, 5]}]
IMAGE = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1

PROVENANCE = Provenance("flux1", "somebody/flux | vae", "0" * 40, "Apache-2.0", "Apache-2.0", ("loss.* (3)",))


def model_of(bottleneck=BOTTLENECKS[0]):
    model = build_autoencoder(AutoencoderConfig(image_size=(16, 16), bottleneck=bottleneck, net=NET))
    model(IMAGE)
    model.eval().calibrate([IMAGE])
    return model


@pytest.fixture
def saved(tmp_path):
    save(model_of(), tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.mark.parametrize("bottleneck", BOTTLENECKS, ids=lambda b: b["kind"])
def test_round_trip(tmp_path, bottleneck):
    model = model_of(bottleneck)
    save(model, tmp_path / "new" / "tokenizer")
    again = load(tmp_path / "new" / "tokenizer")
    assert not again.training
    assert fingerprint(again) == fingerprint(model)
    assert again.spec == model.spec
    assert torch.equal(again.encode(IMAGE).data, model.encode(IMAGE).data)
    assert torch.equal(again.decode(again.encode(IMAGE)), model.decode(model.encode(IMAGE)))
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["tokenizer"]


def test_fingerprint_changes_with_one_bit_and_with_the_configuration():
    model = model_of()
    seen = {fingerprint(model)}
    for value in model.state_dict().values():
        before = value.clone()
        value.view(-1).view(torch.int32)[-1] ^= 1
        seen.add(fingerprint(model))
        value.copy_(before)
    assert len(seen) == 1 + len(model.state_dict())
    assert fingerprint(model) in seen
    model.config = replace(model.config, image_size=(32, 32))
    assert fingerprint(model) not in seen


FINGERPRINTS = {  # of version 0.1, when there was one kind of tokenizer; token stores name them
    "gaussian": "07ef05e4f4a69e25fac74c4c8c5fce5cfed9d886364ba656186b0c0b70ae3419",
    "fsq": "c1d7ca053b84a5193ec1e15d1354f91bdfa4792731fb085231c3f5cb9c4dd0d6",
}


@pytest.mark.parametrize("bottleneck", [BOTTLENECKS[0], BOTTLENECKS[2]], ids=lambda b: b["kind"])
def test_older_tokenizers_keep_their_fingerprints(bottleneck):
    model = build_autoencoder(AutoencoderConfig(image_size=(16, 16), bottleneck=bottleneck, net=NET))
    for value in model.state_dict().values():
        value.copy_(torch.arange(value.numel()).view(value.shape) % 7)
    assert fingerprint(model) == FINGERPRINTS[bottleneck["kind"]]


def test_fingerprint_of_low_precision_weights():
    assert fingerprint(model_of().bfloat16()) != fingerprint(model_of())


def test_saving_again_replaces(saved):
    other = model_of(BOTTLENECKS[1])
    save(other, saved)
    assert fingerprint(load(saved)) == fingerprint(other)


@pytest.mark.parametrize(
    "files",
    [
        {"notes.txt": "mine"},
        {"config.json": '{"model_type": "bert"}', "model.safetensors": "weights of another project"},
        {"config.json": "not JSON"},
    ],
    ids=["notes", "another project's model", "damaged"],
)
def test_foreign_folders_are_not_overwritten(tmp_path, files):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(CheckpointError, match=r"mine.* choose another folder"):
        save(model_of(), folder)
    assert {p.name: p.read_text() for p in folder.iterdir()} == files
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_file_beside_the_tokenizer_is_not_deleted(saved):
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"notes.txt.* choose another folder"):
        save(model_of(), saved)
    assert (saved / "notes.txt").read_text() == "mine"
    load(saved)


def test_a_file_in_the_way_is_not_overwritten(tmp_path):
    (tmp_path / "tokenizer").write_text("mine")
    with pytest.raises(CheckpointError, match=r"tokenizer is a file: choose another name"):
        save(model_of(), tmp_path / "tokenizer")
    assert (tmp_path / "tokenizer").read_text() == "mine"


def test_interrupted_saving_leaves_the_old_tokenizer(saved, monkeypatch):
    before = fingerprint(load(saved))

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(native, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(model_of(BOTTLENECKS[1]), saved)
    assert [p.name for p in saved.parent.iterdir()] == ["tokenizer"]
    assert fingerprint(load(saved)) == before
    monkeypatch.undo()
    save(model_of(BOTTLENECKS[1]), saved)
    assert [p.name for p in saved.parent.iterdir()] == ["tokenizer"]


def test_a_full_disk_is_an_error_that_names_the_folder(saved, small_disk):
    before, size = fingerprint(load(saved)), (saved / "model.safetensors").stat().st_size
    for limit in (size // 2, 100):  # the weights, of which safetensors has an error of its own; config.json
        with (
            small_disk(limit),
            pytest.raises(WriteError, match=r"/tokenizer: cannot.*written \(File.*large\);"),
        ):
            save(model_of(), saved)
        assert [p.name for p in saved.parent.iterdir()] == ["tokenizer"]
        assert fingerprint(load(saved)) == before
    with small_disk(size):
        save(model_of(BOTTLENECKS[0]), saved)


@pytest.mark.parametrize("step", [1, 2])
def test_a_failed_exchange_puts_the_old_tokenizer_back(saved, monkeypatch, step):
    before, calls, replace_file = fingerprint(load(saved)), [], native.os.replace

    def fail_once(source, target):
        calls.append(target)
        if len(calls) == step:
            raise OSError(16, "Device or resource busy")
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(native.os, "replace", fail_once)
        with pytest.raises(OSError, match="busy"):
            save(model_of(BOTTLENECKS[1]), saved)
    assert fingerprint(load(saved)) == before
    assert [p.name for p in saved.parent.iterdir()] == ["tokenizer"]


def edit_weights(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def edit_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


DAMAGES = {
    "no folder": (shutil.rmtree, r"tokenizer: no such file or folder, and no hub repository"),
    "no config": (
        lambda f: (f / "config.json").unlink(),
        r"tokenizer: no config.json, .* it holds model.safetensors; give the",
    ),
    "not JSON": (lambda f: (f / "config.json").write_text("{"), r"config.json: not JSON .*copy or download it again"),
    "not text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{"), r"config.json: not JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), r"config.json: expected a mapping, found \[\]"),
    "unknown key": (
        lambda f: edit_config(f, lambda c: c["model"].update(zchannels=3)),
        r"config.json.zchannels = 3: unknown key \(did you mean z_channels\?\)",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"model.safetensors: cannot be read as safetensors"),
    "truncated": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
        r"model.safetensors: cannot be read as safetensors .*copy or save it again",
    ),
    "missing key": (
        lambda f: edit_weights(f, lambda s: s.pop("quant_conv.bias")),
        r"model.safetensors does not fit its config.json: missing keys: quant_conv.bias",
    ),
    "missing statistics": (
        lambda f: edit_weights(f, lambda s: s.pop("latent_std_D")),
        r"model.safetensors does not fit its config.json: missing keys: latent_std_D .*copy it again",
    ),
    "unknown key of the origin": (
        lambda f: edit_config(f, lambda c: c.update(origin=vars(PROVENANCE) | {"licence": "MIT"})),
        r"config.json.origin.licence = 'MIT': unknown key \(did you mean licence_code\?\)",
    ),
    "unexpected key": (
        lambda f: edit_weights(f, lambda s: s.update(extra=torch.zeros(1))),
        r"does not fit its config.json: unexpected keys: extra",
    ),
    "wrong shape": (
        lambda f: edit_weights(f, lambda s: s.update({"quant_conv.bias": torch.zeros(7)})),
        r"does not fit its config.json: wrong shapes: quant_conv.bias \(7,\) \(expected \(6,\)\)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(saved, damage):
    break_it, message = DAMAGES[damage]
    break_it(saved)
    with pytest.raises(ValueError, match=message):
        load(saved)


@pytest.mark.parametrize(
    ("change", "found"), [({"format": "tokenizers-mm/9"}, "tokenizers-mm/9"), ({"kind": None}, "'kind': None")]
)
def test_another_format_is_named(saved, change, found):
    edit_config(saved, lambda config: config.update(change))
    message = rf"config.json: expected format 'tokenizers-mm/1' and a kind, found .*{found}"
    with pytest.raises(CheckpointError, match=message):
        native.load(saved, KINDS)
    with pytest.raises(CheckpointError, match=message):
        save(model_of(), saved)


def test_another_kind_is_named(saved):
    edit_config(saved, lambda config: config.update(kind="generator"))
    with pytest.raises(CheckpointError, match=r"config.json: expected kind 'autoencoder' or .*'fused', .*'generator'"):
        load(saved)
    with pytest.raises(CheckpointError, match=r"tokenizer:.*Autoencoder,.*tokenizer.*generator"):
        Autoencoder.from_pretrained(saved)


def test_long_lists_of_keys_are_cut(saved):
    edit_weights(saved, lambda state: [state.pop(name) for name in list(state) if name.startswith("encoder.mid")])
    with pytest.raises(CheckpointError, match=r"missing keys: encoder.mid\S+, \S+, \S+, \S+.*\d+"):
        load(saved)


def test_the_origin_is_kept_and_is_no_part_of_the_identity(tmp_path):
    model = model_of()
    before = fingerprint(model)
    model.provenance = PROVENANCE
    save(model, tmp_path / "tokenizer")
    again = load(tmp_path / "tokenizer")
    assert again.provenance == PROVENANCE
    assert fingerprint(again) == before
    save(model_of(), tmp_path / "tokenizer")
    assert load(tmp_path / "tokenizer").provenance is None


@pytest.mark.parametrize("bottleneck", [*BOTTLENECKS, {"kind": "lfq", "dim": 3}], ids=lambda b: b["kind"])
def test_precision_is_kept(tmp_path, bottleneck):
    model = build_autoencoder(AutoencoderConfig(image_size=(16, 16), bottleneck=bottleneck, net=NET, z_channels=3))
    model = model.eval().to(torch.bfloat16)
    save(model, tmp_path / "tokenizer")
    again = native.load(tmp_path / "tokenizer", KINDS)
    assert again.decoder.last_layer.dtype == torch.bfloat16
    assert fingerprint(again) == fingerprint(model)
    assert torch.equal(again.encode(IMAGE).data, model.encode(IMAGE).data)


def test_a_loaded_tokenizer_trains_and_outlives_its_file(saved):
    model, before = load(saved), (saved / "model.safetensors").read_bytes()
    model.train()(IMAGE)[0].square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert (saved / "model.safetensors").read_bytes() == before
    expected = fingerprint(model)
    save(model, saved)  # over the file that its own weights are mapped from
    assert fingerprint(load(saved)) == expected
    shutil.rmtree(saved)
    assert fingerprint(model) == expected


COMPANIONS = {"LICENSE": "licence", "README.md": "my words", ".gitattributes": "*.safetensors filter=lfs"}


def test_readme_and_licence_stay(saved):
    for name, text in COMPANIONS.items():
        (saved / name).write_text(text)
    save(model_of(BOTTLENECKS[1]), saved, card=True)
    assert {name: (saved / name).read_text() for name in COMPANIONS} == COMPANIONS
    assert sorted(p.name for p in saved.iterdir()) == sorted([*COMPANIONS, "config.json", "model.safetensors"])
    assert load(saved).bottleneck.kind == "vq"


def test_a_folder_with_a_readme_alone_is_free(tmp_path):
    (tmp_path / "README.md").write_text("my words")
    save(model_of(), tmp_path)
    assert (tmp_path / "README.md").read_text() == "my words"
    load(tmp_path)


def test_the_generated_card_follows_the_tokenizer(saved):
    assert not (saved / "README.md").exists()
    save(model_of(), saved, card=True)
    assert "gaussian" in (saved / "README.md").read_text()
    save(model_of(BOTTLENECKS[1]), saved)
    text = (saved / "README.md").read_text()
    assert "gaussian" not in text
    assert "vq" in text
    claimed = "\n".join(line for line in text.splitlines() if "generated by" not in line)
    (saved / "README.md").write_text(claimed)
    save(model_of(), saved, card=True)
    assert (saved / "README.md").read_text() == claimed


def test_a_folder_called_readme_is_foreign(saved):
    (saved / "README.md").mkdir()
    (saved / "README.md" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds README.md, not just a tokenizer"):
        save(model_of(), saved)
    assert (saved / "README.md" / "notes.txt").read_text() == "mine"


def test_a_link_is_followed(saved):
    link = saved.with_name("latest")
    link.symlink_to(saved)
    save(model_of(BOTTLENECKS[1]), link)
    assert link.is_symlink()
    assert load(saved).bottleneck.kind == "vq"
    assert sorted(p.name for p in saved.parent.iterdir()) == ["latest", "tokenizer"]
