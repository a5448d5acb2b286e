"""A file that nearly fits: a good file of every family with one thing changed is read right, or refused by name.

Never is it silently another tokenizer: whatever is read is made of every tensor of the file, and of no other.
"""

import os

import pytest
import torch
from safetensors.torch import save_file

from tokenizers_mm import load
from tokenizers_mm.checkpoints.diffusers import read
from tokenizers_mm.checkpoints.families import readers
from tokenizers_mm.checkpoints.recognise import recognise
from tokenizers_mm.models.assemble import assemble
from tokenizers_mm.weights import CheckpointError


class File:
    """A file's tensors under its own keys and under ours."""

    def __init__(self, tensors, about):
        self.tensors, self.about = tensors, about
        first = [f"{name}." for reader in readers() for name in reader.first]
        self.prefix = next(key[: key.index(name)] for key in tensors for name in first if name in key)
        inside = {key.removeprefix(self.prefix): v for key, v in tensors.items() if key.startswith(self.prefix)}
        naming = next(naming for reader in readers() if (naming := reader.naming_of(inside)) is not None)
        self.table = naming.table(inside)
        self.ours = self.table.read(inside)
        self.keys = {value.untyped_storage().data_ptr(): self.prefix + key for key, value in inside.items()}

    def key(self, ours):
        """What the file calls a tensor."""
        return self.keys[self.ours[ours].untyped_storage().data_ptr()]

    def under(self, *modules):
        """Keys of the file in these modules, in our names."""
        return {self.key(key) for key in self.ours for module in modules if key.startswith(f"{module}.")}

    def without(self, keys):
        return {key: value for key, value in self.tensors.items() if key not in keys}

    def parsed(self, tensors=None, **options):
        tensors = self.tensors if tensors is None else tensors
        if self.about is not None:
            return read(self.about, tensors, "some/file", options.get("config"))
        return recognise(tensors, "some/file", **options)

    def built(self, tensors=None, **options):
        parsed = self.parsed(tensors, **options)
        return parsed, assemble(parsed.options, parsed.state, parsed.where)


@pytest.fixture(scope="module")
def file(public_file):
    return File(*public_file)


# What a refusal says is wrong, and what is to be done.
WRONG = (
    "missing keys", "unexpected keys", "wrong shapes", " no ", "nearest is", "nearest are", "not recognised as",
    "channels go into", "levels in the encoder", "config.json has", " alone", "parts are there", "config.net",
    "levels are",
)  # fmt: skip
REMEDIES = ("family=", "config=", "copy it again", "whole", "choose another", "take the config.json", "expected one of")


def refused(file, tensors, *named):
    """The error of a file, which names the path, what is wrong and what to do."""
    with pytest.raises(CheckpointError) as caught:
        file.built(tensors)
    message = str(caught.value)
    assert message.startswith("some/file")
    assert "\n" not in message
    assert any(one in message for one in named or WRONG), message
    assert any(one in message for one in REMEDIES), message
    return message


def test_the_file_itself_is_read_whole(file):
    """Control: nothing is changed, and every tensor is used or listed."""
    parsed, model = file.built()
    used = {value.untyped_storage().data_ptr() for value in model.state_dict().values()}
    kept = {value.untyped_storage().data_ptr() for value in parsed.state.values()}
    assert kept <= used | {value.untyped_storage().data_ptr() for value in model.bottleneck.state_dict().values()}
    unused = len(file.tensors) - len(kept)
    assert unused == sum(int(pattern.rpartition("(")[2][:-1]) for pattern in parsed.ignored)


def test_behind_another_prefix_and_in_a_wrapper(file):
    if file.about is not None:
        return  # a folder of diffusers: its config.json says where
    parsed = file.parsed()
    inside = {f"model.{key}": value for key, value in file.tensors.items()}
    wrapped = file.parsed({"state_dict": inside | {"text.weight": torch.ones(3)}, "epoch": 3})
    assert (wrapped.family, wrapped.options) == (parsed.family, parsed.options)
    assert wrapped.state.keys() == parsed.state.keys()
    assert all(torch.equal(wrapped.state[key], value) for key, value in parsed.state.items())
    assert "text.* (1)" in wrapped.ignored


def ends(file):
    """Our names of the convolutions beside the image."""
    first = next(key for key in file.ours if key.startswith("encoder.conv_in.") and key.endswith("weight"))
    last = next(key for key in file.ours if key.startswith("decoder.conv_out.") and key.endswith("weight"))
    return first, last


def test_one_key_less(file):
    """Of the first and last layers, the middle, codebook and statistics, and of any."""
    parsed = file.parsed()
    needed = [key for key in file.ours if key in parsed.state or key in ("bn.running_mean", "bn.running_var")]
    needed = [key for key in needed if not key.endswith("num_batches_tracked")]
    outer = [key for key in needed if key.startswith(("bottleneck.", "quant_conv.", "post_quant_conv.", "bn."))]
    for ours in dict.fromkeys([*ends(file), *outer, *needed[:: max(1, len(needed) // 3)]]):
        refused(file, file.without({file.key(ours)}))


def test_one_part_less(file):
    levels = sorted(
        {int(key.split(".")[2]) for key in file.ours if key.startswith(("encoder.down.", "encoder.down_blocks."))}
    )
    level = [f"encoder.down.{levels[-1]}", f"encoder.down_blocks.{levels[-1]}"]
    others = ("decoder.norm_out", "decoder.conv_in", "encoder.mid", "quant_conv", "bottleneck", "encoder")
    for modules in (level, *([other] for other in others)):
        gone = file.under(*modules)
        if gone:
            refused(file, file.without(gone))


def test_one_key_more(file):
    name = f"{file.prefix}encoder.surprise.weight"
    assert "encoder.surprise.weight" in refused(file, file.tensors | {name: torch.ones(2)}, "unexpected keys")


def test_one_block_more(file):
    """Read with all its tensors where a family has such depths, refused where none has."""
    timed = any(key.endswith(".gamma") for key in file.tensors)  # Wan's encoder is one flat list
    levels = ("decoder.up.3.block.",) if timed else ("encoder.down.0.block.", "encoder.down_blocks.2.")
    (level,) = (level for level in levels if any(key.startswith(level) for key in file.ours))
    last = max(int(key.removeprefix(level).partition(".")[0]) for key in file.ours if key.startswith(level))
    block = [file.key(key) for key in file.ours if key.startswith(f"{level}{last}.")]
    before = os.path.commonprefix(block)  # noqa: RUF071
    assert before.endswith(f".{last}.")
    after = f"{before.removesuffix(f'{last}.')}{last + 1}."
    more = {key.replace(before, after): torch.randn_like(file.tensors[key]) for key in block}
    try:
        parsed, model = file.built(file.tensors | more)
    except CheckpointError:
        refused(file, file.tensors | more, "blocks is", "blocks=", "unexpected keys", "missing keys")
    else:
        assert parsed.options != file.parsed().options
        used = {value.untyped_storage().data_ptr() for value in model.state_dict().values()}
        assert {value.untyped_storage().data_ptr() for value in more.values()} <= used


def widened(file, *changed, channels):
    """The file with another number of image channels in these layers, of three."""
    tensors = dict(file.tensors)
    for ours in changed:
        key, axis = file.key(ours), 0 if ours.startswith("decoder.") else 1
        shape = list(tensors[key].shape)
        shape[axis] = shape[axis] * channels // 3
        tensors[key] = torch.zeros(shape)
        bias = ours.removesuffix("weight") + "bias"
        if axis == 0 and bias in file.ours:
            tensors[file.key(bias)] = torch.zeros(shape[0])
    return tensors


def test_images_of_other_channels_are_asked_for(file):
    tensors = widened(file, *ends(file), channels=5)
    if file.about is not None:
        refused(file, tensors, "in_channels = 3")
        return
    message = refused(file, tensors, "net.image_channels is 5", "net.image_channels is 20")
    assert "config=" in message
    row, channels = file.parsed().family.name, 20 if "is 20" in message else 5
    parsed, model = file.built(tensors, family=row, config={"net": {"image_channels": channels}})
    assert model.config.net.image_channels == channels
    assert parsed.family.name == row


def test_halves_for_images_of_different_channels(file):
    first, last = ends(file)
    for changed, named in ((first, last), (last, last)):
        refused(
            file, widened(file, changed, channels=4), named.removesuffix(".weight"), "in_channels", "image_channels"
        )


# ----------------------------------------------------------------------------------------------- what was taken amiss


def cosmos(discrete=False):
    """Keys and shapes of NVIDIA's Cosmos tokenizers for images, thin: LDM names behind two Haar wavelets."""
    from tokenizers_mm import AutoencoderConfig, build_autoencoder
    from tokenizers_mm.nets import ConvConfig

    net = ConvConfig(channels=32, multipliers=(2, 4, 4), image_channels=48)
    kind = {"kind": "fsq", "levels": [8, 8, 8, 5, 5, 5]} if discrete else {"kind": "identity", "dim": 16}
    z = 64 if discrete else 16
    model = build_autoencoder(AutoencoderConfig(image_size=(64, 64), net=net, bottleneck=kind, z_channels=z))
    return {key: value for key, value in model.state_dict().items() if not key.startswith(("latent_", "bottleneck."))}


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_cosmos_is_known_by_name(tmp_path, discrete, prefix):
    save_file({prefix + key: value for key, value in cosmos(discrete).items()}, tmp_path / "autoencoder.safetensors")
    with pytest.raises(CheckpointError, match=r"autoencoder\.safetensors: this is Cosmos tokenizer, whose body"):
        load(tmp_path / "autoencoder.safetensors")
    save_file({"encoder.conv_in.0.conv3d.weight": torch.ones(2, 2, 1, 3, 3)}, tmp_path / "video.safetensors")
    with pytest.raises(CheckpointError, match=r"this is Cosmos tokenizer of videos"):
        load(tmp_path / "video.safetensors")


def test_a_vqgan_without_its_codebook_gives_no_bits(file):
    """Nothing in a bottleneck without weights: a codebook that got lost looks like a code of bits."""
    if "bottleneck.codebook_KD" in file.ours:
        message = refused(file, file.without(file.under("bottleneck")), "bits", "bottleneck.codebook_KD")
        assert "lfq" not in message
