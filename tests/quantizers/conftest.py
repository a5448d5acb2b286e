"""What tests of quantizers share: no leftovers of compiling; modules of vector-quantize-pytorch run in any layout."""

import sys

import pytest
import torch

from quantizers import KINDS

VQ4, BITS = {"kind": "vq", "size": 12, "dim": 4}, {"kind": "bsq", "dim": 4}
EXAMPLES = [
    {"kind": "fsq", "levels": [5, 3, 3]},
    {"kind": "latent", "levels": [5, 3]},
    VQ4,
    {"kind": "gaussian", "dim": 3},
    {"kind": "identity", "dim": 3},
    {"kind": "simvq", "size": 12, "dim": 4},
    {"kind": "ibq", "size": 12, "dim": 4},
    {"kind": "gumbel", "size": 12, "dim": 4, "in_dim": 6},
    {"kind": "lfq", "dim": 6, "streams": 2},
    BITS,
    {"kind": "residual", "inner": VQ4, "depth": 3},
    {"kind": "product", "inner": VQ4, "groups": 2},
    {"kind": "projected", "inner": BITS, "in_dim": 6},
    {"kind": "multiscale", "inner": VQ4, "scales": [[1, 1], [1, 2], [2, 4]], "phi": 1},
]


def sequence_of(module, z_BND):
    """What a module gives for a sequence in the layout it was built for: vectors [B, N, D] and codes [B, N, S]."""
    name, n = type(module).__name__, z_BND.shape[1]
    if name == "HierarchicalVQ":
        return scales_of(module, z_BND)
    first = not getattr(module, "channel_last", True) or getattr(module, "channel_first", False)
    first = first or getattr(module, "is_channel_first", False) or name == "LatentQuantize"
    shape = (n,)
    if name == "VectorQuantize" and (module.accept_image_fmap or module.accept_3d_fmap):
        first, shape = True, (1, n) if module.accept_image_fmap else (1, 1, n)
    vectors, codes, *_ = module(z_BND.transpose(1, 2).unflatten(2, shape) if first else z_BND)
    if first:
        vectors = vectors.flatten(2).transpose(1, 2)
    if codes is None:
        return vectors, None
    if name.startswith("Grouped"):
        codes = torch.cat([*codes], -1)
    if name == "ResidualFSQ" and module.is_channel_first:
        codes = codes.transpose(1, 2)
    return vectors, codes.reshape(*z_BND.shape[:2], -1).long()


def scales_of(module, z_BND):
    grid = z_BND.unflatten(1, module.level_shapes[-1])
    vectors, codes, _ = module(grid.movedim(-1, 1) if module.channel_first else grid)
    vectors = vectors.flatten(2).transpose(1, 2) if module.channel_first else vectors.flatten(1, -2)
    return vectors, torch.cat([code.flatten(1) for code in codes], 1)[..., None]


@pytest.fixture(params=EXAMPLES, ids=lambda options: options["kind"])
def example(request):
    """Options of one small quantizer of every kind."""
    assert {options["kind"] for options in EXAMPLES} == set(KINDS)
    return request.param


@pytest.fixture(scope="session")
def as_sequence():
    return sequence_of


@pytest.fixture(autouse=True)
def _nothing_compiled():
    """All kinds share the code of `Quantizer.forward`, of which torch keeps few versions at a time."""
    if "torch._dynamo" in sys.modules:  # which takes seconds to import
        torch.compiler.reset()
