import pytest
import torch

from tokenizers_mm import TokenSpec
from tokenizers_mm.models.vectors import Vectors, decodable


def test_a_map_and_its_list():
    z_BDhw = torch.rand(2, 3, 4, 6)
    vectors = Vectors.of_map(z_BDhw)
    assert (vectors.grid, vectors.z_BND.shape) == ((4, 6), (2, 24, 3))
    assert torch.equal(vectors.z_BND[:, 7], z_BDhw[:, :, 1, 1])
    assert torch.equal(vectors.as_map(), z_BDhw)
    assert Vectors(vectors.z_BND, (24,)).as_map().shape == (2, 3, 1, 24)


def test_stacking_puts_channel_row_column_into_one_vector():
    z_BDhw = torch.rand(2, 3, 4, 6)
    vectors = Vectors.of_map(z_BDhw)
    stacked = vectors.stacked(2)
    assert (stacked.grid, stacked.z_BND.shape) == ((2, 3), (2, 6, 12))
    assert torch.equal(stacked.z_BND[:, 4], z_BDhw[:, :, 2:4, 2:4].flatten(1))
    assert torch.equal(stacked.unstacked(2).z_BND, vectors.z_BND)
    assert vectors.stacked(1) is vectors.unstacked(1) is vectors


SPECS = {
    "raster": ((4, 4), [(4, 4), (1, 9)], [(16,), ((4, 4),)], r"\(rows, columns\)"),
    "nested": ((4,), [(4,), (1,)], [(5,), (0,), (2, 2), ((1, 4),)], r"\(1,\) to \(4,\)"),
    "sequence": ((4,), [(4,)], [(3,), (2, 2)], r"decodes \(4,\)"),
    "scales": (((1, 1), (2, 2)), [((1, 1), (2, 2))], [((1, 1), (1, 4)), (5,)], r"decodes \(\(1, 1\), \(2, 2\)\)"),
}


@pytest.mark.parametrize("layout", SPECS)
def test_grids_that_decode(layout):
    own, fine, wrong, takes = SPECS[layout]
    spec = TokenSpec(image_size=(16, 16), grid=own, dim=3, layout=layout)
    assert [decodable(grid, spec) for grid in fine] == fine
    for grid in wrong:
        with pytest.raises(ValueError, match=takes):
            decodable(grid, spec)
