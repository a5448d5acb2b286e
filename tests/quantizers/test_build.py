"""From options to a quantizer and back: what is inside is built first, errors name the whole path, seeds give the same
values however a quantizer was put together."""

import json

import pytest
import torch
from safetensors.torch import load, save

from quantizers import BSQ, FSQ, KINDS, VQ, Gumbel, MultiScale, Product, Projected, Residual, build

VQ8 = {"kind": "vq", "size": 8, "dim": 2}


def equal_states(one, other):
    assert list(one.state_dict()) == list(other.state_dict())
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def seeded(make, seed=0):
    torch.manual_seed(seed)
    return make()


def test_options_and_tensors_bring_a_quantizer_back(example):
    quantizer = seeded(lambda: build(example))
    for _ in range(2):
        quantizer(torch.randn(3, 8, quantizer.in_dim))
    again = build(json.loads(json.dumps(quantizer.eval().options()))).eval()
    again.load_state_dict(load(save(quantizer.state_dict())))
    assert again.options() == quantizer.options()
    payload = quantizer.encode(torch.randn(2, 8, quantizer.in_dim))
    with torch.no_grad():
        assert torch.equal(again.decode(payload), quantizer.decode(payload))
        assert torch.equal(again.vectors(payload), quantizer.vectors(payload))
        if "codebook_KD" in quantizer.state_dict():  # control: without the tensors it is another one
            assert not torch.equal(build(quantizer.options()).decode(payload), quantizer.decode(payload))


def test_a_fresh_one_has_the_same_options_and_the_next_random_values(example):
    torch.manual_seed(0)
    quantizer = build(example)
    fresh = quantizer.fresh()
    torch.manual_seed(0)
    built = [build(example), build(example)]
    assert fresh.options() == quantizer.options()
    assert type(fresh) is type(quantizer)
    assert equal_states(quantizer, built[0])
    assert equal_states(fresh, built[1])


@pytest.mark.parametrize(
    ("options", "direct"),
    [
        ({"kind": "residual", "inner": VQ8, "depth": 3}, lambda: Residual(VQ(8, 2), 3)),
        ({"kind": "residual", "inner": VQ8, "depth": 3}, lambda: Residual([VQ(8, 2), VQ(8, 2), VQ(8, 2)])),
        ({"kind": "residual", "inner": VQ8, "depth": 3, "shared": True}, lambda: Residual(VQ(8, 2), 3, shared=True)),
        ({"kind": "product", "inner": VQ8, "groups": 2}, lambda: Product(VQ(8, 2), groups=2)),
        ({"kind": "projected", "inner": VQ8, "in_dim": 5, "norm": False}, lambda: Projected(VQ(8, 2), 5)),
        ({"kind": "multiscale", "inner": VQ8, "scales": [1, 2]}, lambda: MultiScale(VQ(8, 2), [1, 2])),
        (
            {
                "kind": "residual",
                "inner": {
                    "kind": "product",
                    "inner": [{"kind": "projected", "inner": VQ8, "in_dim": 3}, VQ8],
                    "groups": 2,
                },
                "depth": 2,
            },
            lambda: Residual(Product([Projected(VQ(8, 2), 3), VQ(8, 2)]), 2),
        ),
    ],
)
def test_levels_draw_their_values_one_after_another(options, direct):
    built, ours = seeded(lambda: build(options)), seeded(direct)
    assert equal_states(built, ours)
    tables = [value for name, value in ours.state_dict().items() if name.endswith("codebook_KD")]
    assert len({float(table.sum()) for table in tables}) == len(tables)  # none is a copy of another
    if isinstance(ours.options()["inner"], dict):
        assert ours.options() == built.options()


def test_what_one_alone_draws_comes_first():
    residual = seeded(lambda: Residual(VQ(8, 2), 2))
    torch.manual_seed(0)
    for level in residual.levels:
        assert torch.equal(level.codebook_KD, torch.randn(8, 2))


def test_options_keep_the_form_in_which_the_inner_ones_were_given():
    one, several = Residual(VQ(8, 2), 2), Residual([VQ(8, 2), VQ(4, 2)])
    assert one.options()["inner"] == VQ(8, 2).options()
    assert several.options()["inner"] == [VQ(8, 2).options(), VQ(4, 2).options()]
    assert (several.options()["depth"], Product([VQ(8, 2)]).options()["groups"]) == (2, 1)
    assert Projected(BSQ(4), 6).options()["inner"] == BSQ(4).options()
    assert one.inner is one.levels[0]


def test_text_of_numbers_is_numbers():
    vq = build({"kind": "vq", "size": "8", "dim": 2.0, "decay": "9e-1", "revive": 0, "kmeans": 3})
    assert (vq.size, vq.dim, vq.decay) == (8, 2, 0.9)
    assert json.dumps(vq.options()["revive"]) == "0.0"
    inside = build({"kind": "product", "inner": VQ8 | {"decay": "9e-1", "revive": 0}, "groups": 2})
    assert inside.quantizers[1].decay == 0.9
    # Fingerprints of tokenizers hash options as they were written: a whole number inside stays one.
    assert json.dumps(inside.options()["inner"]["revive"]) == "0"
    assert build({"kind": "fsq", "levels": [5, "4"]}).levels == (5, 4)
    shrunk = {"kind": "residual", "inner": {"kind": "fsq", "levels": [5, 3]}, "depth": 2, "soft_clamp": None}
    assert build(shrunk | {"shrink": [4, "2e0"]}).shrink == [4.0, 2.0]
    assert build(shrunk | {"shrink": 2}).shrink == 2.0
    assert isinstance(build({"kind": "gumbel", "size": 8, "dim": 2, "in_dim": None}), Gumbel)
    assert isinstance(build({"kind": "fsq"}), FSQ)


TWO = {"kind": "residual", "depth": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, f"bottleneck.kind = None: expected one of {', '.join(KINDS)}"),
        ("vq", "bottleneck.kind = 'vq': expected one of "),
        ({"kind": "gausian"}, "bottleneck.kind = 'gausian': expected one of "),
        ({"kind": ["vq"]}, "bottleneck.kind = ['vq']: expected one of "),
        ({"kind": "vq", "size": 8}, "bottleneck.dim: missing; vq needs it"),
        (VQ8 | {"dekay": 0.5}, "bottleneck.dekay = 0.5: unknown; vq takes size, dim, "),
        (VQ8 | {"size": "big"}, "bottleneck.size = 'big': expected a whole number"),
        (VQ8 | {"size": 8.5}, "bottleneck.size = 8.5: expected a whole number"),
        (VQ8 | {"size": True}, "bottleneck.size = True: expected a whole number"),
        (VQ8 | {"size": None}, "bottleneck.size = None: expected a whole number"),
        (VQ8 | {"decay": "fast"}, "bottleneck.decay = 'fast': expected a number"),
        (VQ8 | {"decay": [0.9]}, "bottleneck.decay = [0.9]: expected a number"),
        (VQ8 | {"metric": "cos"}, "bottleneck.metric = 'cos': expected one of euclidean, cosine, angle"),
        (VQ8 | {"size": 1}, "bottleneck: size=1, dim=2: expected a codebook of at least 2 rows"),
        ({"kind": "fsq", "levels": 8}, "bottleneck.levels = 8: expected a list, each item a whole number"),
        ({"kind": "fsq", "levels": [8, "x"]}, "bottleneck.levels[1] = 'x': expected a whole number"),
        ({"kind": "gumbel"} | VQ8 | {"kind": "gumbel", "in_dim": "x"}, "bottleneck.in_dim = 'x': expected a whole n"),
        (TWO, "bottleneck.inner: missing; residual needs it"),
        (TWO | {"inner": VQ8, "shared": "yes"}, "bottleneck.shared = 'yes': expected true or false"),
        (TWO | {"inner": VQ8, "shrink": [1, "x"]}, "bottleneck.shrink[1] = 'x': expected a number"),
        (TWO | {"inner": VQ8, "shrink": "x"}, "bottleneck.shrink = 'x': expected a number or a list, each item a nu"),
        (TWO | {"inner": "vq"}, "bottleneck.inner = 'vq': expected the options of a quantizer, or a list of them"),
        (TWO | {"inner": {"kind": "vqq"}}, "bottleneck.inner.kind = 'vqq': expected one of "),
        (TWO | {"inner": VQ8 | {"size": 1}}, "bottleneck.inner: size=1, dim=2"),
        (TWO | {"inner": [VQ8, VQ8 | {"size": "big"}]}, "bottleneck.inner[1].size = 'big': expected a whole number"),
        (TWO | {"inner": [VQ8, {"kind": "vq", "size": 4}]}, "bottleneck.inner[1].dim: missing; vq needs it"),
        (TWO | {"inner": [VQ8, 3]}, "bottleneck.inner[1].kind = 3: expected one of "),
        (TWO | {"inner": [VQ8]}, "bottleneck: depth=2: inner has 1 quantizers, expected as many"),
        (TWO | {"inner": {"kind": "gaussian", "dim": 2}}, "bottleneck: inner.kind = 'gaussian': expected a quantizer"),
        (
            TWO | {"inner": {"kind": "projected", "inner": VQ8 | {"dim": 0}, "in_dim": 4}},
            "bottleneck.inner.inner: size=8, dim=0",
        ),
    ],
)
def test_options_that_do_not_fit_are_named_by_their_path(options, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        build(options, "bottleneck")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_what_was_nearly_right_is_suggested():
    with pytest.raises(ValueError, match=r"did you mean gaussian\?"):
        build({"kind": "gausian", "dim": 3})
    with pytest.raises(ValueError, match=r"options.inner.dekay.*did you mean decay\?"):
        build(TWO | {"inner": VQ8 | {"dekay": 0.5}})
