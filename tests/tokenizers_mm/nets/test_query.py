from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from tokenizers_mm import AutoencoderConfig, Tokens, build_autoencoder
from tokenizers_mm.models.vectors import Vectors
from tokenizers_mm.nets import Geometry, QueryConfig
from tokenizers_mm.nets.query import QueryDecoder, QueryEncoder, prefix_mask
from tokenizers_mm.nets.transformer import TransformerConfig

NET = QueryConfig(patch=4, tokens=6, encoder=TransformerConfig(width=16, depth=2, heads=2))
NESTED = replace(NET, nested=True)
IMAGE = torch.rand(3, 3, 8, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
FSQ = {"kind": "fsq", "levels": [5, 5]}
GAUSSIAN = {"kind": "gaussian", "dim": 3}


def model_of(net=NESTED, bottleneck=FSQ, **changes):
    torch.manual_seed(0)
    config = AutoencoderConfig(image_size=(8, 12), bottleneck=bottleneck, net=net, **changes)
    return build_autoencoder(config).eval()


def test_tokens_without_a_place():
    for net, order in ((NET, "sequence"), (NESTED, "nested")):
        for bottleneck in (FSQ, GAUSSIAN):
            model = model_of(net, bottleneck)
            assert (model.spec.grid, model.spec.layout, model.spec.image_size) == ((6,), order, (8, 12))
            tokens = model.encode(IMAGE).check(model.spec)
            assert (tokens.grid, tokens.data.shape[:2]) == ((6,), (3, 6))
            assert model.decode(tokens).shape == IMAGE.shape
            recon, quantized = model(IMAGE)
            torch.testing.assert_close(recon, model.decode(tokens), atol=1e-5, rtol=0)
            assert quantized.z_BND.shape == (3, 6, bottleneck.get("dim", 2))


def test_every_parameter_learns():
    model = model_of(bottleneck=GAUSSIAN).train()
    torch.manual_seed(1)
    recon, quantized = model(IMAGE)
    ((recon - IMAGE).square().mean() + quantized.loss).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())] == []


def test_one_image_size():
    with pytest.raises(ValueError, match=r"image_size=\(8, 8\):.*tokenizer takes \(8, 12\)"):
        model_of().encode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"image_size=\(8, 10\):.*sides.*multiples.*patch=4"):
        QueryEncoder(NET, 3, Geometry((8, 10), 4, 6))


def test_statistics():
    """Calibration whitens per channel, or per token; of a prefix each token keeps its own."""
    images = torch.rand(40, 3, 8, 12) * 2 - 1
    model = model_of(bottleneck=GAUSSIAN, latent_positions=True)
    plain = model.decode(model.encode(IMAGE))
    model.calibrate([images[:20], images[20:]])
    latents = model.encode(images).data
    assert torch.allclose(latents.mean(0), torch.zeros(6, 3), atol=1e-4)
    assert torch.allclose(latents.std(0), torch.ones(6, 3), atol=1e-3)
    tokens = model.encode(IMAGE)
    torch.testing.assert_close(model.decode(tokens), plain, atol=1e-5, rtol=0)
    z_BND, grid = model.vectors(Tokens(latents_BND=tokens.data[:, :2], grid=(2,)))
    assert grid == (2,)
    torch.testing.assert_close(z_BND, model.vectors(tokens)[0][:, :2])


# ------------------------------------------------------------------------------------------------------- nested


def test_the_first_tokens_do_not_depend_on_how_many_follow():
    """An encoder with only the first k queries gives the first k tokens; without nesting it does not."""
    for config, exact in ((NESTED, True), (NET, False)):
        encoder = QueryEncoder(config, 5, Geometry((8, 12), 4, 6))
        whole = encoder(IMAGE)
        for k in (1, 3, 5):
            encoder_k = QueryEncoder(replace(config, tokens=k), 5, Geometry((8, 12), 4, k))
            state = encoder.state_dict()
            encoder_k.load_state_dict(state | {"query_NE": state["query_NE"][:k]})
            error = (encoder_k(IMAGE) - whole[..., :k]).detach().abs().max()
            assert (float(error) < 1e-5) == exact


def test_mask():
    assert prefix_mask(2, 3).int().tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
    ]


@pytest.mark.parametrize("bottleneck", [FSQ, GAUSSIAN], ids=["codes", "latents"])
def test_every_prefix_decodes_and_what_is_missing_does_not_matter(bottleneck):
    model = model_of(bottleneck=bottleneck)
    model.calibrate([IMAGE])
    whole = model.encode(IMAGE)
    images = []
    for k in range(1, 7):
        name = "codes_BNS" if model.spec.discrete else "latents_BND"
        prefix = Tokens(**{name: whole.data[:, :k]}, grid=(k,))
        images.append(model.decode(prefix))
        z_BND = model.vectors(whole)[0].clone()
        z_BND[:, k:] = model.mask_token_D.detach()
        torch.testing.assert_close(images[-1], model.pixels(Vectors(z_BND, (6,))).detach(), atol=1e-5, rtol=0)
    assert torch.equal(images[-1], model.decode(whole))
    assert all(float((a - b).abs().max()) > 1e-4 for a, b in pairwise(images))
    for grid, count in (((0,), 0), ((7,), 7), ((2, 3), 6), (((1, 1), (1, 2)), 3)):
        data = whole.data[:, [0] * count]
        with pytest.raises(ValueError, match=r"this tokenizer decodes \(1,\) to \(6,\)"):
            model.decode(Tokens(**{name: data}, grid=grid))


def test_other_numbers_of_tokens_are_refused_where_they_are_not_nested():
    model = model_of(NET)
    codes = model.encode(IMAGE).codes_BNS
    with pytest.raises(ValueError, match=r"grid=\(4,\): this tokenizer decodes \(6,\)"):
        model.decode(Tokens(codes_BNS=codes[:, :4]))
    assert not hasattr(model, "mask_token_D")


def test_training_hides_the_last_tokens_of_every_image_by_itself():
    model = model_of().train()
    image = IMAGE[:1].expand(400, -1, -1, -1)
    torch.manual_seed(5)
    z_BND = model.quantized(image)[0].z_BND.detach()
    shown_BN = (z_BND != model.mask_token_D.detach()).any(-1)
    kept_B = shown_BN.sum(1)
    assert torch.equal(shown_BN, torch.arange(6) < kept_B[:, None])  # always the last ones
    counts = torch.bincount(kept_B, minlength=7)
    assert int(counts[0]) == 0
    assert int(counts[1:].min()) > 40  # of 67 expected
    torch.manual_seed(5)
    assert torch.equal(model.quantized(image)[0].z_BND, z_BND)
    quantized = model.eval().quantized(image)[0]
    assert torch.equal(quantized.z_BND, model.bottleneck.decode(quantized.codes_BNS))
    without = model_of(NET).train()
    assert torch.equal(without.quantized(IMAGE)[0].z_BND, without.quantized(IMAGE)[0].z_BND)


def test_more_tokens_are_a_better_picture():
    """Trained with nested dropout, the error falls with every token; what is decoded are prefixes of one encoding."""
    torch.manual_seed(0)
    net = replace(NESTED, tokens=3, encoder=TransformerConfig(width=16, depth=1, heads=2))
    model = model_of(net, {"kind": "identity", "dim": 2}).train()
    image = torch.nn.functional.interpolate(torch.rand(16, 3, 2, 3) * 2 - 1, (8, 12))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(150):
        (model(image)[0] - image).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    whole = model.eval().encode(image)
    errors = [
        float((model.decode(Tokens(latents_BND=whole.data[:, :k], grid=(k,))) - image).square().mean())
        for k in range(1, 4)
    ]
    assert all(later < earlier for earlier, later in pairwise(errors)), errors
    assert errors[0] < float((image - image.mean(0)).square().mean())


# ------------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"linear": True}, "linear=True: needs a map of positions"),
        ({"quant_conv": 3}, "quant_conv=3, .* tokens of net query have no neighbours"),
        ({"post_quant_conv": 3}, "post_quant_conv=3: tokens of net query have no neighbours"),
        ({"latent_patch": 2, "bottleneck": GAUSSIAN}, "latent_patch=2, .* have no neighbours"),
        (
            {"bottleneck": {"kind": "multiscale", "inner": {"kind": "vq", "size": 8, "dim": 3}, "scales": [1, [2, 3]]}},
            r"net query gives a grid of \(6,\) .* bottleneck multiscale does not take",
        ),
    ],
)
def test_what_needs_a_map_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        model_of(**changes)


def test_impossible_options_are_refused():
    for whole in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"whole={whole}: expected a share"):
            replace(NESTED, whole=whole)
    with pytest.raises(ValueError, match="tokens=0"):
        QueryConfig(tokens=0)


def test_encoder_and_decoder_have_their_own_sizes():
    config = replace(NET, decoder=TransformerConfig(width=32, depth=1, heads=2), smooth=True)
    decoder = QueryDecoder(config, 5, Geometry((8, 12), 4, 6))
    assert decoder.mask_LE.shape == (6, 32)
    assert decoder.last_layer is decoder.pixels.smooth.weight
    assert decoder(torch.randn(2, 5, 1, 6)).shape == (2, 3, 8, 12)
