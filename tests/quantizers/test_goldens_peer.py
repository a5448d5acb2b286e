"""Every stand-alone quantizer golden, through vector-quantize-pytorch's own module and through its state dict.

A golden says how a module is built, how its weights are drawn, and what its class gave.
"""

import hashlib
import json
import runpy
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
import vector_quantize_pytorch as peer
from safetensors.torch import load_file

from quantizers import build
from quantizers.adapters import Foreign, from_vector_quantize_pytorch, load_vector_quantize_pytorch

FOLDER = Path(__file__).parents[1] / "goldens"
FILL = runpy.run_path(str(FOLDER.parent / "test_goldens.py"))["fill"]
NAMES = sorted(path.stem for path in FOLDER.glob("q_*.json"))

every_golden = pytest.mark.parametrize("name", NAMES)


def golden(name):
    return json.loads((FOLDER / f"{name}.json").read_text()), load_file(FOLDER / f"{name}.safetensors")


def filled(key, shape, facts):
    """One tensor by fill rule `crc32-1`, with the exceptions that the golden lists."""
    return FILL(key, shape, facts.get("fill_gain", {}).get(key, 1.0), facts.get("fill_post", {}).get(key))


def state_of(facts):
    """The state dict as a checkpoint would hold it; constants derived from the configuration are left out."""
    fixed = facts.get("integer_buffers", {}) | facts.get("zero_dim_values", {})
    state = {}
    for key, shape, dtype in facts["keys"]:
        if key in fixed:
            state[key] = torch.tensor(fixed[key], dtype=getattr(torch, dtype))
        elif not any(fnmatch(key, pattern) for pattern in facts.get("as_constructed", {})):
            state[key] = filled(facts.get("aliases", {}).get(key, key), shape, facts)
    return state


def module_of(facts, state):
    name = facts["facts"]["class"]
    options = dict(facts["facts"]["options"])
    if name.endswith("ResidualVQ") and isinstance(options["codebook_size"], list):
        options["codebook_size"] = tuple(options["codebook_size"])
    module = getattr(peer, name)(**options)
    module.load_state_dict(module.state_dict() | state)
    return module.eval()


def sequence(array):
    """Vectors as [B, N, D]: images are channel first."""
    return array.flatten(2).transpose(1, 2) if array.ndim == 4 else array


def streams(array, shape, grouped):
    """Codes or margins as [B, N, S]; groups come stacked in front."""
    return (torch.cat([*array], -1) if grouped and array.ndim == 4 else array).reshape(*shape, -1)


def check(quantizer, facts, arrays, case):
    z = sequence(arrays[f"{case}.input"])
    codes = quantizer.encode(z)
    grouped = facts["facts"]["class"].startswith("Grouped")
    if f"{case}.indices" in arrays:
        theirs = streams(arrays[f"{case}.indices"], codes.shape[:2], grouped).long()
        margin = streams(arrays[f"{case}.margin"], codes.shape[:2], grouped)
    else:
        scales = sorted((k for k in arrays if k.startswith(f"{case}.indices.")), key=lambda k: int(k.rsplit(".")[-1]))
        theirs = torch.cat([arrays[key].flatten(1) for key in scales], 1).long()[..., None]
        margin = torch.cat([arrays[key.replace("indices", "margin")].flatten(1) for key in scales], 1)[..., None]
    assert codes.shape == theirs.shape
    sure = margin > facts["tolerance"]["margin"]
    assert sure.sum() >= sure.numel() - sum(facts.get("margin_below_1e-4", {}).values())
    assert torch.equal(codes[sure.expand_as(codes)], theirs[sure.expand_as(codes)])
    reference = sequence(arrays[f"{case}.quantized"])
    same = (codes == theirs).flatten(2).all(-1)
    for vectors in (quantizer.decode(codes), quantizer(z).z_BND):
        error = (vectors - reference).abs().amax(-1)
        error = error[same] if same.shape == error.shape else error
        assert float(error.max() / reference.abs().max()) <= facts["tolerance"]["rel"]


def test_there_are_goldens_of_every_class():
    classes = {golden(name)[0]["facts"]["class"] for name in NAMES}
    assert classes >= {"VectorQuantize", "ResidualVQ", "FSQ", "ResidualFSQ", "LFQ", "SimVQ", "LatentQuantize"}


@every_golden
def test_inputs_are_those_of_the_golden(name):
    facts, arrays = golden(name)
    for case, given in facts["cases"].items():
        z = np.random.RandomState(given["seed"]).standard_normal(given["shape"]) * given["scale"]
        assert hashlib.sha256(z.astype(np.float32).tobytes()).hexdigest() == given["input_sha256"]
        assert torch.equal(torch.from_numpy(z.astype(np.float32)), arrays[f"{case}.input"])


@every_golden
@pytest.mark.parametrize("wrap", [False, True])
@torch.no_grad()
def test_through_the_module(name, wrap):
    facts, arrays = golden(name)
    module = module_of(facts, state_of(facts))
    quantizer = from_vector_quantize_pytorch(module, wrap=wrap)
    for case in facts["cases"]:
        check(quantizer, facts, arrays, case)


@every_golden
@torch.no_grad()
def test_through_the_state_dict(name):
    facts, arrays = golden(name)
    converted = from_vector_quantize_pytorch(module_of(facts, state_of(facts)))
    if isinstance(converted, Foreign):
        pytest.skip(f"nothing of ours has this state: {converted.reason}")
    quantizer = build(converted.options()).eval()
    load_vector_quantize_pytorch(quantizer, state_of(facts))
    for case in facts["cases"]:
        check(quantizer, facts, arrays, case)


def drawn_tables(name):
    keys = json.loads((FOLDER / f"{name}.json").read_text())["keys"]
    return [key for key, shape, _ in keys if len(shape) >= 2 and not key.endswith("embed_avg")]


@pytest.mark.parametrize("name", [name for name in NAMES if len(drawn_tables(name))])
@torch.no_grad()
def test_other_weights_are_told_apart(name):
    """Negative control: what is compared depends on the weights, wherever there are any."""
    facts, arrays = golden(name)
    state, key = state_of(facts), drawn_tables(name)[-1]
    quantizer = from_vector_quantize_pytorch(module_of(facts, state | {key: state[key].flip(-1)}))
    with pytest.raises(AssertionError):
        check(quantizer, facts, arrays, next(iter(facts["cases"])))
