"""The mask formula against a slow reference, and the future-leak gate."""

import pytest
import torch

from backbones.mask import allow, prefix_mask
from backbones.trunk import Trunk, TrunkConfig


def reference(doc, block, bidir, private):
    """The same rule in words: one pair of positions at a time."""
    length = len(doc)
    rows = []
    for q in range(length):
        row = []
        for k in range(length):
            sees = doc[q] == doc[k]
            sees &= block[k] < block[q] or (block[k] == block[q] and (bool(bidir[q]) or k <= q))
            sees &= not (private[k] and block[k] != block[q])
            row.append(bool(sees))
        rows.append(row)
    return torch.tensor(rows)


def test_allow_equals_the_rule_pair_by_pair():
    torch.manual_seed(0)
    for _ in range(50):
        length = 9
        doc = torch.randint(0, 2, (2, length))
        block = torch.randint(0, 3, (2, length)).sort(1).values
        bidir, private = torch.rand(2, length) < 0.5, torch.rand(2, length) < 0.3
        mask = allow(doc, block, bidir, private)
        for row in range(2):
            assert torch.equal(mask[row], reference(doc[row], block[row], bidir[row], private[row]))


def test_prefix_mask_is_bidirectional_before_and_causal_after():
    mask = prefix_mask(torch.tensor([[True, True, False]]), 2)[0]
    expected = [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
    assert torch.equal(mask, torch.tensor(expected, dtype=torch.bool))
    both = prefix_mask(torch.tensor([[True, True, False]]), 2, bidir=True)[0]
    assert both[3, 4]
    assert not both[0, 3]


def changed_rows(mask, changed):
    """Which outputs of a random transformer change at all when one input position does."""
    torch.manual_seed(0)
    trunk = Trunk(TrunkConfig(width=16, depth=3, heads=2))
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, mask.shape[1], 16)
    other = x.clone()
    other[0, changed] += 1
    position = torch.arange(mask.shape[1])[:, None]
    return (trunk(x, position, mask) != trunk(other, position, mask)).any(-1)[0]


def test_the_future_never_leaks():
    mask = prefix_mask(torch.ones(1, 2, dtype=torch.bool), 5)
    for changed in range(2, 7):
        assert changed_rows(mask, changed).tolist() == [index >= changed for index in range(7)]


def test_a_flipped_mask_leaks():
    mask = prefix_mask(torch.ones(1, 2, dtype=torch.bool), 5)
    assert changed_rows(mask.mT, 6)[2:6].any()


def test_a_private_block_is_invisible_to_the_others():
    block = torch.tensor([[0, 0, 1, 1, 2, 2]])
    private = block == 1
    mask = allow(torch.zeros_like(block), block, private, private)
    assert changed_rows(mask, 3).tolist() == [False, False, True, True, False, False]
    seen = allow(torch.zeros_like(block), block, private, torch.zeros_like(private))
    assert changed_rows(seen, 3)[4:].all()


@pytest.mark.parametrize(("width", "heads"), [(10, 4), (6, 2), (0, 1)])
def test_impossible_widths_are_refused(width, heads):
    with pytest.raises(ValueError, match=r"width a multiple of 2 \* heads"):
        TrunkConfig(width=width, heads=heads)
