import hashlib
import re

import diffusers
import pytest
import torch
from diffusers import VQModel

from tokenizers_mm import AutoencoderConfig, build_autoencoder
from tokenizers_mm.checkpoints import load
from tokenizers_mm.checkpoints.diffusers import from_diffusers, to_diffusers
from tokenizers_mm.checkpoints.families.emu3 import READER
from tokenizers_mm.checkpoints.recognise import recognise
from tokenizers_mm.config import parse
from tokenizers_mm.models.assemble import assemble
from tokenizers_mm.nets.emu3 import Emu3Config
from tokenizers_mm.saving.folder import save
from tokenizers_mm.weights.errors import CheckpointError

NETS = {
    "as_published_but_thin": {"channels": 32},
    "other_sizes": {"channels": 32, "multipliers": (2, 1, 3), "blocks": 1, "attention_levels": (0, 2), "frames": 2},
    "long": {"channels": 32, "multipliers": (1, 2), "blocks": 3, "attention_levels": (), "frames": 8},
}
# SHA-256 over the sorted names and shapes of Emu3VisionVQModel in emu3/tokenizer of github.com/baaivision/Emu3, without
# batch norm's counters: it pins `published`, the map back that these tests use.
ORIGINAL = "877c4ecd5f609d8c231d9586e697309d09eeb19d216a54761101e8a37ad7cb73"


def thin(name, dim=4):
    net = Emu3Config(**NETS[name]) if isinstance(name, str) else name
    book = {"kind": "vq", "size": 64, "dim": dim, "codebook": "gradient", "revive": 0.0}
    config = AutoencoderConfig(image_size=(64, 64), bottleneck=book, net=net, z_channels=dim, post_quant_conv=0)
    return build_autoencoder(config).eval()


def published(model):
    """Its tensors as Emu3's file has them: 3-D convolutions, whose first two taps an image does not meet."""
    state = {}
    for key, value in model.state_dict().items():
        if key.endswith(("count_K", "num_batches_tracked")):
            continue
        key = key.removeprefix("decoder.") if "post_quant_conv" in key else key
        key = key.replace("bottleneck.codebook_KD", "quantize.embedding.weight")
        key = re.sub(r"(^(?:post_)?quant_conv|time_res_stack\.\d+\.conv[12])\.", r"\1.conv.", key)
        key = re.sub(r"(time_conv\.\d+)\.", r"\1.conv.conv.", key)
        if value.ndim == 4 and re.search(r"time_|quant_conv", key):
            value = torch.stack([torch.randn_like(value), torch.randn_like(value), value], 2)
        state[key] = value
    return state


def in_transformers(state):
    """What transformers calls them, in a whole Emu3: levels and middle in blocks, norms beside linear attention."""
    out = {}
    for key, value in state.items():
        key = re.sub(r"^(encoder|decoder)\.(down|up)\.", r"\1.\2_block.\2.", key)
        key = re.sub(r"\.mid\.attn_1\.norm\.", ".middle_block.attn_norm.", key).replace(".mid.", ".middle_block.")
        key = re.sub(r"\.attn\.(\d+)\.norm\.", r".attn_norms.\1.", key)
        if re.search(r"\.attn(_1|\.\d+)\.", key):
            key = re.sub(r"\.([qkv])\.", r".\1_proj.", key).replace(".proj_out.", ".out_proj.")
            value = value.flatten(1) if value.ndim == 4 else value
        out[f"model.vqmodel.{key}"] = value
    return out


def built(state):
    parsed = recognise(state, "file")
    return assemble(parsed.options, parsed.state, parsed.where)


def naming_of(keys):
    naming = READER.naming_of(keys)
    return naming and naming.name


def movq(**options):
    """A MoVQ of diffusers with random weights, thin."""
    d, a, u, b = "DownEncoderBlock2D", "AttnDownEncoderBlock2D", "UpDecoderBlock2D", "AttnUpDecoderBlock2D"
    shape = {"block_out_channels": (32, 64, 64), "down_block_types": (d, d, a), "up_block_types": (b, u, u)}
    codes = {"latent_channels": 4, "vq_embed_dim": 4, "num_vq_embeddings": 64, "norm_type": "spatial"}
    theirs = VQModel(**(shape | codes | {"layers_per_block": 2} | options)).eval().requires_grad_(False)
    for name, value in theirs.named_parameters():
        value.data = torch.randn_like(value) * (value[0].numel() ** -0.5 if value.ndim > 1 else 0.1)
        value.data += 1.0 if value.ndim == 1 and name.endswith("weight") else 0.0
    theirs.encoder.conv_out.weight.data *= 4  # many codes in use
    return theirs


def test_the_map_back_gives_every_name_of_the_original():
    with torch.device("meta"):
        config = thin(Emu3Config()).config
        book = config.bottleneck | {"size": 32768}
        state = published(build_autoencoder(AutoencoderConfig(**vars(config) | {"bottleneck": book})))
    lines = sorted(f"{key} {list(value.shape)}" for key, value in state.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == ORIGINAL
    options = recognise(state, "file").options
    assert parse(Emu3Config, options["net"], "net") == Emu3Config()
    assert (options["bottleneck"]["size"], options["bottleneck"]["dim"], options["z_channels"]) == (32768, 4, 4)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("naming", [dict, in_transformers])
def test_a_file_in_either_naming_is_the_tokenizer_it_was_written_from(name, naming):
    model = thin(name, dim=6)
    for key, value in model.named_buffers():
        if "running" in key:
            value.uniform_(0.5, 1.5)
    reading = recognise(naming(published(model)), "file")
    assert (reading.family.name, reading.statistics) == ("emu3", None)
    net = parse(Emu3Config, reading.options["net"], "net")
    assert net == Emu3Config(**NETS[name], temporal_blocks=2)
    again = assemble(reading.options, reading.state, "file")
    image = torch.rand(2, 3, 16, 24) * 2 - 1
    tokens = again.encode(image)
    assert torch.equal(tokens.codes_BNS, model.encode(image).codes_BNS)
    assert torch.equal(again.decode(tokens), model.decode(tokens))


def test_weights_are_views_but_for_those_of_time():
    state = published(thin("as_published_but_thin"))
    owners = {value.untyped_storage().data_ptr() for value in state.values()}
    for key, value in recognise(state, "file").state.items():
        shared = value.untyped_storage().data_ptr() in owners
        assert shared or (value.numel() <= 4 * 4 * 9 and value.is_contiguous()), key


@pytest.mark.parametrize("size", [(16, 40), (32, 8)])
def test_movq_is_that_of_diffusers(size):
    theirs = movq()
    reading = recognise(theirs.state_dict(), "file")
    assert reading.family.name == "movq"
    ours = assemble(reading.options, reading.state, "file")
    image = torch.rand(2, 3, *size) * 2 - 1
    tokens = ours.encode(image)
    quantized, _, (_, _, codes) = theirs.quantize(theirs.encode(image).latents)
    assert torch.equal(tokens.codes_BNS.flatten(), codes.flatten())
    assert len(codes.unique()) > 8
    expected = theirs.decode(quantized, force_not_quantize=True).sample
    assert float((ours.decode(tokens) - expected).abs().max() / expected.abs().max()) < 2e-5


def test_movq_from_a_folder_and_from_a_live_object(tmp_path):
    theirs = movq(sample_size=64)
    theirs.save_pretrained(tmp_path / "theirs")
    loaded, wrapped = load(tmp_path / "theirs"), from_diffusers(theirs)
    for ours in (loaded, wrapped):
        assert ours.provenance.family == "movq"
        assert ours.spec.image_size == (64, 64)
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(loaded.decode(loaded.encode(image)), wrapped.decode(wrapped.encode(image)))
    owners = {value.untyped_storage().data_ptr() for value in theirs.state_dict().values()}
    assert all(value.untyped_storage().data_ptr() in owners for value in wrapped.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm_num_groups": 16}, "norm_num_groups = 16, expected 32"),
        ({"vq_embed_dim": 3}, "4 channels go into the decoder, and code vectors have 3: expected as many"),
        ({"mid_block_add_attention": False}, "mid_block_add_attention = False, expected True"),
    ],
)
def test_a_movq_of_another_shape_is_refused(options, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        from_diffusers(movq(**options))
    assert "\n" not in str(caught.value)


def test_our_own_format_keeps_it_and_diffusers_cannot(tmp_path):
    model = thin("as_published_but_thin")
    save(model, tmp_path / "own")
    again = load(tmp_path / "own")
    assert again.config.net == model.config.net
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(again.decode(again.encode(image)), model.decode(model.encode(image)))
    with pytest.raises(CheckpointError, match=r"net\.kind='emu3'"):
        to_diffusers(model, tmp_path / "theirs")


def test_only_these_are_recognised():
    state = published(thin("long"))
    assert naming_of(state) == "emu3"
    assert naming_of(in_transformers(state)) is None  # behind a prefix there
    moved = movq().state_dict()
    (naming,) = (naming for naming in READER.namings if naming.name == "diffusers")
    assert naming_of(moved) == "diffusers"
    assert naming_of(naming.table(moved).read(moved)) == "movq"
    for other in ("AutoencoderKL", "AutoencoderDC", "VQModel", "AutoencoderKLWan", "AutoencoderKLCogVideoX"):
        with torch.device("meta"):
            keys = list(getattr(diffusers, other)().state_dict())
        assert naming_of(keys) is None, other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder.conv_in.weight": None}, "file: no encoder.conv_in.weight"),
        ({"quantize.embedding.weight": None}, "file: no bottleneck.codebook_KD"),
        ({"encoder.down.1.block.0.conv2.weight": (48, 48, 3, 3)}, r"levels are \[32, 48, 64, 128\] channels wide"),
        ({"decoder.conv_in.weight": (128, 5, 3, 3)}, "5 channels go into the decoder, and code vectors have 4"),
        ({"decoder.norm_out.conv_b.bias": None}, "missing keys: decoder.norm_out.conv_b.bias"),
        ({"decoder.mid.block_1.norm1.conv.weight": (4, 4, 3, 3)}, "unexpected keys: decoder.mid.block_1.norm1.conv"),
        ({"decoder.time_conv.1.conv.conv.weight": (4, 4, 3, 5, 5)}, r"decoder.time_conv.1.weight \(4, 4, 5, 5\)"),
    ],
)
def test_what_is_no_whole_tokenizer_is_refused(changes, message):
    state = published(thin("as_published_but_thin"))
    state |= {key: torch.zeros(shape) for key, shape in changes.items() if shape is not None}
    state = {key: value for key, value in state.items() if changes.get(key, ()) is not None}
    with pytest.raises(CheckpointError, match=message) as caught:
        built(state)
    assert "\n" not in str(caught.value)


def test_the_table_has_both():
    assert [(row.name, row.weights_licence) for row in READER.families] == [
        ("emu3", "Apache-2.0"),
        ("movq", "not stated"),
    ]
