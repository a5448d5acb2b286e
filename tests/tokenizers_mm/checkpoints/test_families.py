"""A family is one value: what is known of it stands in its reader, and everything asks that."""

import json
import re
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from recipes.programs.convert import families_text
from tokenizers_mm import AutoencoderConfig, build_autoencoder, load
from tokenizers_mm.checkpoints import CheckpointError, check_family, from_diffusers, known_families
from tokenizers_mm.checkpoints.families import (
    DiffusersClass,
    Family,
    Names,
    Naming,
    Reader,
    conv,
    diffusers_classes,
    readers,
    table,
)
from tokenizers_mm.nets import ConvConfig

IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_rows_say_what_there_is():
    rows = known_families()
    assert len(rows) > 25
    assert len({row.name for row in rows}) == len(rows)
    for reader in readers():
        names = {naming.name for naming in reader.namings}
        assert all(set(row.namings) <= names for row in reader.families)
        marks = [mark for row in reader.families for mark in row.marks]
        assert all(re.compile(pattern) for pattern in [*reader.dropped, *marks])
        assert {known.family for known in reader.diffusers} <= {row.name for row in reader.families}
    for row in rows:
        check_family(row.name, "file")


def test_what_is_written_can_be_read():
    for reader, known in diffusers_classes():
        if known.tensors is not None:
            assert known.describe is not None
            assert known.bottlenecks
            assert "diffusers" in {naming.name for naming in reader.namings}


# ------------------------------------------------------------------------------------------------ one more of them

NAMES = Names(
    """
    codec.enc.stem.*              encoder.conv_in.*
    codec.enc.stage.{i}.{j}.*     encoder.down.{i}.block.{j}.*
    codec.enc.pool.{i}.*          encoder.down.{i}.downsample.conv.*
    codec.enc.*                   encoder.*
    codec.dec.stem.*              decoder.conv_in.*
    codec.dec.stage.{-i}.{j}.*    decoder.up.{i}.block.{j}.*
    codec.dec.grow.{i}.*          decoder.up.{i}.upsample.conv.*
    codec.dec.*                   decoder.*
    """
)
READER = Reader(
    namings=(Naming(name="synthetic", signature=(r"codec\.enc\.stem\.weight",), names=NAMES),),
    first=("codec.enc.stem",),
    options=conv.options,
    needs={"bottleneck.kind": "gaussian", "net.middle_blocks": 1},
    dropped=("steps",),
    families=(
        Family(
            name="synthetic",
            title="A codec that nobody has published",
            paper="https://example.org/codec",
            config={"net": {"activation": "relu"}},
            scale=0.5,
            shift=0.25,
            weights_licence="nobody's",
            restricted=True,
        ),
    ),
    diffusers=(DiffusersClass(name="AutoencoderSynthetic", family="synthetic"),),
)


def codec():
    """A tokenizer of that family, and its file's tensors."""
    middle = {"middle_blocks": 1, "middle_attention": False}
    net = ConvConfig(channels=32, multipliers=(1, 2), blocks=1, activation="relu", **middle)
    bottleneck = {"kind": "gaussian", "dim": 3}
    model = build_autoencoder(
        AutoencoderConfig(image_size=(16, 16), net=net, bottleneck=bottleneck, z_channels=3, quant_conv=0)
    ).eval()
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("latent_")}
    return model, NAMES.write(state) | {"steps": torch.zeros(1)}


@pytest.fixture
def one_more(monkeypatch):
    """The table with one line more."""
    monkeypatch.setattr(table, "READERS", (*table.READERS, READER))


def test_it_is_unknown_without_its_line(tmp_path):
    save_file(codec()[1], tmp_path / "codec.safetensors")
    with pytest.raises(CheckpointError, match=r"codec\.safetensors: no image tokenizer found"):
        load(tmp_path / "codec.safetensors")
    with pytest.raises(CheckpointError, match="family='synthetic' is unknown"):
        check_family("synthetic", "file")
    assert "synthetic" not in families_text()


@pytest.mark.usefixtures("one_more")
def test_it_is_recognised_loaded_and_listed(tmp_path):
    model, state = codec()
    tree = {"state_dict": {f"model.{key}": value for key, value in state.items()} | {"text.weight": torch.ones(2)}}
    torch.save(tree, tmp_path / "file.ckpt")
    with pytest.warns(UserWarning, match="nobody's"):
        again = load(tmp_path / "file.ckpt")
    assert again.provenance.family == "synthetic"
    assert again.provenance.ignored == ("text.* (1)", "model.* (1)")
    assert again.config.net == model.config.net
    assert torch.equal(again.posterior(IMAGE)[0], model.posterior(IMAGE)[0])
    assert torch.allclose(again.encode(IMAGE).data, (model.posterior(IMAGE)[0] - 0.25) * 0.5)
    assert "synthetic" in {row.name for row in known_families()}
    assert "A codec that nobody has published" in families_text()
    assert "nobody's" in families_text(licences=True)
    check_family("synthetic", "file")


@pytest.mark.usefixtures("one_more")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codec.enc.stage.1.0.conv1.bias": None}, r"read as synthetic .*: missing keys: encoder.down.1.block"),
        ({"codec.enc.more": torch.ones(1)}, r"read as synthetic .*: unexpected keys: encoder.more"),
        ({"codec.enc.mid.block_2.norm1.weight": torch.ones(64)}, r"nearest is synthetic, .*middle_blocks is 2, not 1"),
        ({"encoder.conv_in.weight": torch.ones(32, 3, 3, 3)}, r"and another key mean encoder.conv_in"),
        ({"codec.enc.stem.weight": None}, r"nearest are the names of .*; found codec"),
    ],
)
def test_what_nearly_fits_it_is_refused(tmp_path, change, message):
    state = {key: value for key, value in (codec()[1] | change).items() if value is not None}
    save_file(state, tmp_path / "codec.safetensors")
    with pytest.raises(CheckpointError, match=rf"codec\.safetensors.*{message}"):
        load(tmp_path / "codec.safetensors")


@pytest.mark.usefixtures("one_more")
def test_its_class_is_known_in_folders_and_objects(tmp_path):
    model, state = codec()
    (tmp_path / "vae").mkdir()
    save_file(state, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderSynthetic"}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        again = load(tmp_path)
    assert again.provenance.family == "synthetic"
    assert torch.equal(again.posterior(IMAGE)[0], model.posterior(IMAGE)[0])

    class AutoencoderSynthetic(torch.nn.Module):
        config = {"_name_or_path": "here"}  # noqa: RUF012

        def state_dict(self):
            return state

    live = from_diffusers(AutoencoderSynthetic())
    assert torch.equal(live.posterior(IMAGE)[0], model.posterior(IMAGE)[0])


def test_a_reader_that_needs_a_config_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "READERS", (*table.READERS, replace(READER, config_json=True)))
    save_file(codec()[1], tmp_path / "codec.safetensors")
    with pytest.raises(CheckpointError, match=r"only the config\.json beside it says what it is; give the folder"):
        load(tmp_path / "codec.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "codec"}))
    with pytest.warns(UserWarning, match="nobody's"):
        assert load(tmp_path).provenance.family == "synthetic"
