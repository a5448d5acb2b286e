"""diffusers' autoencoders as tokenizers: their folders and live objects, and folders that their classes load.

Nothing here imports diffusers: a config.json and the weights beside it, or an object with `config` and `state_dict`,
say everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tokenizers_mm.checkpoints import causal, dc, diffusers_config, diffusers_names, emu3
from tokenizers_mm.checkpoints.diffusers_config import config_to_options as config_to_options, statistics as statistics
from tokenizers_mm.checkpoints.diffusers_write import to_diffusers as to_diffusers
from tokenizers_mm.checkpoints.families import BY_NAME, FAMILIES
from tokenizers_mm.checkpoints.family import Family, structure
from tokenizers_mm.checkpoints.recognise import Reading
from tokenizers_mm.checkpoints.structure import facts_of
from tokenizers_mm.models import Autoencoder
from tokenizers_mm.models.assemble import assemble
from tokenizers_mm.weights import CheckpointError, Provenance

# Classes with a body of their own, and the row of the table that they belong to.
_BODIES = {
    "AutoencoderDC": "dc_ae",
    "AutoencoderKLQwenImage": "qwen_image",
    "AutoencoderKLQwenImage21": "qwen_image",
    "AutoencoderKLWan": "wan",
}
# Classes that belong to one row.
_ROWS = _BODIES | {"VQModel": "diffusers_vq", "AutoencoderKLFlux2": "flux2"}
CLASSES = (*diffusers_config.CLASSES, *_BODIES)
_IMAGE_SIZE = {"image_size": (512, 512)}  # where config.json states none


def read(config: Mapping[str, Any], state: Mapping[str, Tensor], where: str) -> Reading:
    """What a config.json of diffusers and the weights beside it are; tensors are views of those given.

    where  path that starts every error message

    Raises `CheckpointError` naming the option that cannot be built, or the class.
    """
    name = str(config.get("_class_name"))
    if name not in CLASSES:
        raise CheckpointError(f"{where}: _class_name = {name}: expected one of {', '.join(CLASSES)}; choose another")
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    unused: list[str] = []
    measured: tuple[Any, Any] | None
    if name == "AutoencoderDC":
        options, measured = _IMAGE_SIZE | dc.options(config, shapes), dc.statistics(config)
        ours = dc.from_original(state) if dc.is_original(state) else dict(state)
    elif name in _BODIES:
        options = _IMAGE_SIZE | causal.options(config, shapes, where=where)
        measured = causal.statistics(config, options["z_channels"], where=where)
        ours, unused = causal.to_ours(state)
    elif config.get("norm_type") == "spatial":
        options, measured, ours = _movq_options(config, state, where), None, emu3.to_ours(state)
    else:
        options = diffusers_config.config_to_options(config, where=where)
        measured = diffusers_config.statistics(config, state, where=where)
        ours = diffusers_names.to_ours({key: value for key, value in state.items() if not key.startswith("bn.")})
    family = BY_NAME["movq"] if emu3.is_movq(state) else _family(name, state, measured, where)
    ignored = (f"*.time_conv.* ({len(unused)})",) if unused else ()
    return Reading(family=family, options=options, state=ours, statistics=measured, ignored=ignored)


def from_diffusers(vae: nn.Module) -> Autoencoder:
    """A live autoencoder of diffusers as a tokenizer in eval mode, around the same weights: nothing is copied.

    Training one trains the other. Device and precision stay; a codebook in 16 bits is copied to float32, and so are the
    statistics of latents. Raises `CheckpointError` for other classes and for options that our nets do not have.
    """
    name = type(vae).__name__
    config = getattr(vae, "config", None)
    if name not in CLASSES or not isinstance(config, Mapping):
        raise CheckpointError(f"{name}: expected an object of diffusers' {', '.join(CLASSES)}; load one of these")
    state = vae.state_dict()
    for key, value in state.items():
        if value.is_meta or not (value.is_floating_point() or key.endswith("num_batches_tracked")):
            found = "no memory (meta device)" if value.is_meta else str(value.dtype)
            raise CheckpointError(f"{name}: {key} has {found}: expected floats in memory; load it without quantization")
    reading = read({**config, "_class_name": name}, state, name)
    model = assemble(reading.options, reading.state, name)
    device = next(iter(state.values())).device
    for module in model.modules():
        for key, buffer in module.named_buffers(recurse=False):
            setattr(module, key, buffer.to(device))
    model.bottleneck.float()
    if reading.statistics is not None:
        model.set_statistics(*reading.statistics)
    row, source = reading.family, str(config.get("_name_or_path") or f"an object of diffusers' {name}")
    model.provenance = Provenance(row.name, source, None, row.code_licence, row.weights_licence, reading.ignored)
    return model


def _movq_options(config: Mapping[str, Any], state: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """Options of a VQModel whose norms read the codes, which always have 32 groups."""
    plain = diffusers_config.config_to_options({**config, "norm_type": "group"}, where=where)
    if plain["net"]["groups"] != 32:
        raise CheckpointError(
            f"{where}: norm_num_groups = {plain['net']['groups']!r}: expected 32 beside norm_type = 'spatial'; choose "
            "another model"
        )
    return emu3.options(state, where) | {"image_size": plain["image_size"]}


def _family(name: str, state: Mapping[str, Tensor], measured: Any, where: str) -> Family:
    """The row whose class, or whose structure and published scale, these are; the general one where none is.

    A row claims licences, and AutoencoderKL is anybody's class: the whole structure and the same numbers are asked.
    """
    if name in _ROWS:
        return BY_NAME[_ROWS[name]]
    ours = diffusers_names.to_ours(state)
    facts = facts_of({key: tuple(value.shape) for key, value in ours.items()}, where)
    numbers = measured if all(isinstance(one, float) for one in measured) else None
    for row in FAMILIES:
        published = row.scale is not None and numbers == (row.shift, 1 / row.scale)
        typical = all(structure(facts, option) == value for option, value in row.typical.items())
        if published and typical and not row.misfits("diffusers", facts, ""):
            return row
    return BY_NAME["ldm_kl"]
