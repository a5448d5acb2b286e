"""A generator on disk: a folder with config.json (kind, token spec, options) and model.safetensors."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from backbones.autoregressive import Autoregressive, AutoregressiveConfig
from backbones.codes import code_tables
from backbones.flow import Flow, FlowConfig
from tokenizers_mm.api import Quantizer, TokenSpec

KINDS: dict[str, type[Autoregressive] | type[Flow]] = {"autoregressive": Autoregressive, "flow": Flow}


def build(
    kind: str,
    options: dict[str, object],
    spec: TokenSpec,
    codebook_VD: Tensor | None = None,
    quantizer: Quantizer | None = None,
) -> Autoregressive | Flow:
    """A fresh generator. Raises `ValueError` for what does not exist.

    The vectors of codes help an autoregressive one, from whichever is there:
    codebook_VD  of all codes, the streams' tables below each other
    quantizer    the one that gave the codes, as a token store keeps it
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(KINDS)}")
    try:
        if kind == "flow":
            return Flow(FlowConfig(**options), spec)  # type: ignore[arg-type]
        config = AutoregressiveConfig(**options)  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(f"options of {kind}: {error}") from error
    if codebook_VD is None and quantizer is not None:
        if quantizer.codes != spec.codes:
            raise ValueError(f"quantizer has codes={quantizer.codes}, the tokens have {spec.codes}: it made others")
        codebook_VD = code_tables(quantizer)
    return Autoregressive(config, spec, codebook_VD)


def save(generator: Autoregressive | Flow, folder: str | Path) -> None:
    """Write the generator to a folder, which is made if need be; each file appears whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "kind": generator.kind,
        "spec": json.loads(generator.spec.to_json()),
        "options": asdict(generator.config),
    }
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in generator.state_dict().items()}
    partials = {name: folder / f".{name}.partial" for name in ("model.safetensors", "config.json")}
    try:
        save_file(state, partials["model.safetensors"])
        partials["config.json"].write_text(json.dumps(config, indent=2) + "\n")
        for name, partial in partials.items():
            os.replace(partial, folder / name)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def load(folder: str | Path) -> Autoregressive | Flow:
    """Read what `save` wrote; the generator is on the CPU and in evaluation mode.

    Raises `ValueError` where a file is missing or broken, or the weights do not fit the configuration.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
        kind, spec, options = config["kind"], TokenSpec.from_json(json.dumps(config["spec"])), config["options"]
        state = load_file(folder / "model.safetensors")
    except (OSError, KeyError, TypeError, json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"{folder}: not a saved generator ({type(error).__name__}: {error})") from error
    generator = build(kind, options, spec, state.get("codes.codebook"))
    expected = generator.state_dict()
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    shapes = sorted(k for k in expected.keys() & state.keys() if expected[k].shape != state[k].shape)
    if missing or unexpected or shapes:
        raise ValueError(
            f"{folder}/model.safetensors does not fit config.json: missing {missing[:5]}, unexpected "
            f"{unexpected[:5]}, other shape {shapes[:5]}; the two files come from different generators"
        )
    generator.load_state_dict(state)
    return generator.eval()
