from types import SimpleNamespace

import torch

from tokenizers_mm.models.prefixes import fill_up, hide_last, prefix_lengths
from tokenizers_mm.models.vectors import Vectors

MASK_D = torch.tensor([7.0, 8.0])


def test_prefixes_of_powers_of_two():
    torch.manual_seed(0)
    for tokens, wanted in ((6, {1, 2, 4, 6}), (8, {1, 2, 4, 8}), (1, {1})):
        assert set(prefix_lengths(300, tokens, "powers").tolist()) == wanted


def test_a_share_of_images_keeps_all_tokens():
    torch.manual_seed(0)
    for prefixes, others in (("uniform", 8), ("powers", 4)):
        kept = prefix_lengths(4000, 8, prefixes, 0.5)
        shares = torch.bincount(kept, minlength=9)[1:] / 4000
        assert abs(float(shares[7]) - (0.5 + 0.5 / others)) < 0.03
        assert abs(float(shares[0]) - 0.5 / others) < 0.03


def test_every_image_keeps_a_prefix_of_its_own():
    z_BND = torch.rand(200, 5, 2, requires_grad=True)
    torch.manual_seed(3)
    hidden = hide_last(Vectors(z_BND, (5,)), MASK_D, SimpleNamespace(prefixes="uniform", whole=0.0))
    torch.manual_seed(3)
    kept_BN = torch.arange(5) < prefix_lengths(200, 5, "uniform")[:, None]
    assert hidden.grid == (5,)
    assert torch.equal(hidden.z_BND, torch.where(kept_BN[..., None], z_BND, MASK_D))
    hidden.z_BND.sum().backward()
    assert torch.equal(z_BND.grad[..., 0], kept_BN.float())


def test_what_a_prefix_lacks_is_the_mask_token():
    vectors = Vectors(torch.rand(3, 2, 2), (2,))
    whole = fill_up(vectors, MASK_D, 5)
    assert whole.grid == (5,)
    assert torch.equal(whole.z_BND[:, :2], vectors.z_BND)
    assert torch.equal(whole.z_BND[:, 2:], MASK_D.expand(3, 3, 2))
    assert fill_up(whole, MASK_D, 5) is whole
