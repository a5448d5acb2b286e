"""A quantizer called as `quantized, indices, loss = vq(z)`: layouts, masks, and what vector-quantize-pytorch gives."""

from copy import deepcopy

import pytest
import torch
import vector_quantize_pytorch as peer

from quantizers import DropIn, Gaussian, build
from quantizers.adapters import Foreign, from_vector_quantize_pytorch

VQ = {"kind": "vq", "size": 24, "dim": 6}
RVQ = {"kind": "residual", "inner": {"kind": "vq", "size": 16, "dim": 6}, "depth": 3}
FSQ = {"kind": "fsq", "levels": [8, 5, 5]}
every_case = pytest.mark.parametrize("options", [VQ, RVQ, FSQ], ids=["vq", "residual", "fsq"])
first_or_last = pytest.mark.parametrize("first", [True, False], ids=["channel first", "channel last"])
# Positional axes of one vector, a sequence, a map, a video.
every_shape = pytest.mark.parametrize("axes", [(), (5,), (3, 4), (2, 3, 4)], ids=str)


def met_data(options):
    quantizer = build(options)
    quantizer(torch.randn(4, 64, quantizer.in_dim))
    return quantizer


def placed(last, first):
    """Channels where they are wanted, of vectors that have them last."""
    return last.movedim(-1, 1).contiguous() if first else last


@every_case
@first_or_last
@every_shape
def test_every_layout_gives_what_the_quantizer_gives(options, first, axes):
    quantizer = met_data(options)
    twin, drop_in = deepcopy(quantizer), DropIn(quantizer, channel_first=first)
    streams = () if len(quantizer.codes) == 1 else (len(quantizer.codes),)
    last = torch.randn(2, *axes, quantizer.in_dim)
    z = placed(last, first).clone().requires_grad_()
    flat = last.reshape(2, -1, quantizer.in_dim).clone().requires_grad_()
    torch.manual_seed(0)
    expected = twin(flat)
    torch.manual_seed(0)
    quantized, indices, loss = drop_in(z)
    assert quantized.shape == z.shape
    assert indices.shape == (2, *axes, *streams)
    assert indices.dtype == torch.int64
    assert torch.equal(quantized, placed(expected.z_BND.view_as(last), first))
    assert torch.equal(indices, expected.codes_BNS.reshape(indices.shape))
    assert torch.equal(loss, expected.loss)
    weight = torch.randn_like(last)
    ((quantized * placed(weight, first)).sum() + loss).backward()
    ((expected.z_BND * weight.view_as(flat)).sum() + expected.loss).backward()
    torch.testing.assert_close(z.grad, placed(flat.grad.view_as(last), first))
    for name, tensor in twin.state_dict().items():  # it trained as the other did
        assert torch.equal(drop_in.state_dict()[f"quantizer.{name}"], tensor)
    indices = drop_in.eval()(z).indices
    vectors = twin.eval().decode(indices.reshape(2, -1, len(quantizer.codes))).view_as(last)
    assert torch.equal(drop_in.vectors(indices), placed(vectors, first))


def test_training_moves_the_codebook_and_evaluation_does_not():
    drop_in = DropIn(build(VQ), channel_first=True)
    before = drop_in.quantizer.codebook_KD.clone()
    drop_in.eval()(torch.randn(2, 6, 4, 4))
    assert torch.equal(drop_in.quantizer.codebook_KD, before)
    drop_in.train()(torch.randn(2, 6, 4, 4))
    assert not torch.equal(drop_in.quantizer.codebook_KD, before)


# Layouts in which their modules take and give the same tensors.
THEIRS = {
    "map": (peer.VectorQuantize, {"codebook_size": 32, "accept_image_fmap": True}, (3, 5), True),
    "cosine map": (
        peer.VectorQuantize, {"codebook_size": 32, "accept_image_fmap": True, "use_cosine_sim": True}, (3, 5), True,
    ),
    "volume": (peer.VectorQuantize, {"codebook_size": 32, "accept_3d_fmap": True}, (2, 3, 4), True),
    "sequence": (peer.VectorQuantize, {"codebook_size": 32}, (7,), False),
    "channel-first sequence": (peer.VectorQuantize, {"codebook_size": 32, "channel_last": False}, (7,), True),
    "one vector": (peer.VectorQuantize, {"codebook_size": 32}, (), False),
    "heads": (peer.VectorQuantize, {"codebook_size": 32, "accept_image_fmap": True, "heads": 2}, (3, 5), True),
    "residual": (peer.ResidualVQ, {"codebook_size": 32, "num_quantizers": 3}, (7,), False),
    "wrapped": (
        peer.VectorQuantize, {"codebook_size": 32, "accept_image_fmap": True, "affine_param": True}, (3, 5), True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", THEIRS)
def test_it_takes_the_place_of_vector_quantize_pytorch(name):
    cls, options, axes, first = THEIRS[name]
    theirs = cls(dim=8, **options)
    wanted = placed(torch.randn(2, *axes, 8), first)
    for _ in range(2):
        theirs(torch.randn_like(wanted))
    theirs.eval()
    ours = DropIn(from_vector_quantize_pytorch(deepcopy(theirs)), channel_first=first)
    assert isinstance(ours.quantizer, Foreign) == (name == "wrapped")
    quantized, indices, _ = ours(wanted)
    their_quantized, their_indices, _ = theirs(wanted)
    assert indices.shape == their_indices.shape
    assert torch.equal(indices, their_indices)
    torch.testing.assert_close(quantized, their_quantized, rtol=1e-5, atol=1e-6)
    if name != "wrapped":  # theirs forgets the affine map there
        torch.testing.assert_close(ours.vectors(indices), quantized, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rotation", [True, False])
def test_a_training_step_is_that_of_vector_quantize_pytorch(rotation):
    """Vectors, loss, gradient, and the codebook after it, where neither starts anew nor revives rows."""
    theirs = peer.VectorQuantize(8, 32, accept_image_fmap=True, rotation_trick=rotation)
    for _ in range(3):
        theirs(torch.randn(2, 8, 6, 6))
    ours = DropIn(from_vector_quantize_pytorch(deepcopy(theirs)), channel_first=True)
    weight, z = torch.randn(2, 8, 6, 6), torch.randn(2, 8, 6, 6)
    gradients, losses = [], []
    for module in (theirs, ours):
        leaf = z.clone().requires_grad_()
        quantized, _, loss = module(leaf)
        ((quantized * weight).sum() + loss).sum().backward()
        gradients.append(leaf.grad)
        losses.append(loss.reshape(()))
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.quantizer.codebook_KD, theirs.codebook, rtol=1e-4, atol=1e-4)


def test_a_mask_follows_the_layout_and_marks_indices_as_theirs_does():
    theirs = peer.VectorQuantize(8, 32)
    theirs(torch.randn(4, 64, 8))
    theirs.eval()
    ours = DropIn(from_vector_quantize_pytorch(theirs))
    z, mask = torch.randn(2, 12, 8), torch.rand(2, 12) < 0.6
    quantized, indices, loss = ours(z, mask)
    their_quantized, their_indices, _ = theirs(z, mask=mask)
    assert torch.equal(indices, their_indices)
    assert bool((indices[~mask] == -1).all())
    torch.testing.assert_close(quantized, their_quantized, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.vectors(indices), quantized, rtol=1e-5, atol=1e-6)
    of_map = DropIn(ours.quantizer, channel_first=True)(
        z.unflatten(1, (3, 4)).movedim(-1, 1), mask.unflatten(1, (3, 4))
    )
    assert torch.equal(of_map.indices, indices.unflatten(1, (3, 4)))
    assert torch.equal(of_map.quantized.flatten(2).transpose(1, 2), quantized)
    assert torch.equal(of_map.loss, loss)
    assert not torch.equal(ours(z).loss, loss)


def test_several_codes_of_a_masked_position_are_all_marked():
    drop_in = DropIn(met_data(RVQ)).eval()
    mask = torch.tensor([[True, False, True]])
    quantized, indices, _ = drop_in(torch.randn(1, 3, 6), mask)
    assert indices[0, 1].tolist() == [-1, -1, -1]
    torch.testing.assert_close(drop_in.vectors(indices), quantized)
    indices[0, 0, 1] = -1  # one of three is no mask
    with pytest.raises(ValueError, match=r"stream 1 lie in \[-1, "):
        drop_in.vectors(indices)


def test_vectors_have_the_dtype_of_the_input_and_codes_are_those_of_float32():
    drop_in = DropIn(met_data(VQ), channel_first=True).eval()
    z = torch.randn(2, 6, 4, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        low = drop_in(z)
    exact = drop_in(z.float())
    assert (low.quantized.dtype, low.loss.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(low.indices, exact.indices)
    assert torch.equal(low.quantized, exact.quantized.bfloat16())


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("options", [VQ, RVQ], ids=["one stream", "several"])
def test_it_compiles_into_one_graph(options, training):
    eager = DropIn(met_data(options), channel_first=True).train(training)
    compiled = deepcopy(eager)
    forward = torch.compile(compiled, fullgraph=True, backend="eager")
    z, mask = torch.randn(2, eager.quantizer.in_dim, 4, 4), torch.rand(2, 4, 4) < 0.7
    for arguments in ((z,), (z,), (z, mask)):
        results = []
        for module in (eager, forward):
            torch.manual_seed(0)
            leaf = z.clone().requires_grad_()
            out = module(leaf, *arguments[1:])
            (out.quantized.square().sum() + out.loss).backward()
            results.append((*out, leaf.grad))
        for found, expected in zip(*reversed(results), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for name, tensor in eager.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 6, 4, 4), (2, 6, 0, 4)])
def test_empty_batches_and_maps_are_legal(shape):
    drop_in = DropIn(met_data(VQ), channel_first=True)
    quantized, indices, loss = drop_in(torch.zeros(shape))
    assert quantized.shape == drop_in.vectors(indices).shape == shape
    assert indices.shape == (shape[0], *shape[2:])
    assert float(loss) == 0


@first_or_last
def test_channels_in_the_wrong_place_are_refused(first):
    drop_in = DropIn(build(VQ), channel_first=first)
    wrong = (2, 4, 4, 6) if first else (2, 6, 4, 4)
    with pytest.raises(ValueError, match=rf"\({', '.join(map(str, wrong))}\): channel_first={first}"):
        drop_in(torch.zeros(wrong))
    with pytest.raises(ValueError, match=r"z has shape \(6,\)"):
        drop_in(torch.zeros(6))


def test_other_bad_input_is_refused_by_name():
    drop_in = DropIn(build(RVQ), channel_first=True)
    z = torch.zeros(2, 6, 4, 4)
    for mask in (torch.ones(2, 16, dtype=torch.bool), torch.ones(2, 4, 4)):
        with pytest.raises(ValueError, match=r"torch\.\w+.*shape .*\(2, 4, 4\)"):
            drop_in(z, mask)
    with pytest.raises(ValueError, match=r"indices.*shape \(2, 4, 4\).*\[batch, \.\.\., 3\]"):
        drop_in.vectors(torch.zeros(2, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"indices has shape \(\)"):
        DropIn(build(VQ)).vectors(torch.tensor(1))
    with pytest.raises(ValueError, match=r"has codes 0\.\.23"):
        DropIn(build(VQ)).vectors(torch.full((2, 4, 4), 24))


def test_what_has_no_code_per_position_is_refused():
    scales = build({"kind": "multiscale", "inner": VQ, "scales": [1, 2]})
    for quantizer in (Gaussian(4), scales):
        with pytest.raises(ValueError, match=f"quantizer={quantizer.kind}"):
            DropIn(quantizer)
