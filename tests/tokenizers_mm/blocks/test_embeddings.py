"""Times, places and patches as vectors."""

import math

import pytest
import torch

from tokenizers_mm.blocks.patches import PatchEmbed, PatchUnembed, patchify, unpatchify
from tokenizers_mm.blocks.positions import grid_positions, sincos
from tokenizers_mm.blocks.time_embedding import TimeEmbedding, timestep_embedding


@pytest.mark.parametrize("scale", [1000.0, 1.0])
def test_times_are_cosines_then_sines(scale):
    t_B = torch.tensor([0.0, 0.25, 1.0])
    found = timestep_embedding(t_B, 8, scale=scale)
    for row, t in zip(found, t_B.tolist(), strict=True):
        angles = [scale * math.exp(-math.log(10_000) * i / 4) * t for i in range(4)]
        wanted = [math.cos(angle) for angle in angles] + [math.sin(angle) for angle in angles]
        torch.testing.assert_close(row, torch.tensor(wanted), atol=1e-4, rtol=0)
    assert not torch.allclose(timestep_embedding(t_B, 8, scale=2 * scale), found, atol=1e-2)


def test_times_are_told_apart():
    w = timestep_embedding(torch.tensor([0.0, 0.001, 0.5, 0.501, 1.0]), 256)
    assert w.shape == (5, 256)
    assert float((torch.cdist(w, w) + 99 * torch.eye(5)).min()) > 1


def test_times_keep_float32_where_a_model_has_half_precision():
    t_B = torch.tensor([0.501, 0.502])
    assert timestep_embedding(t_B.half(), 8).dtype == torch.float32
    layer = TimeEmbedding(16)
    wanted = layer.mlp[2](torch.nn.functional.silu(layer.mlp[0](timestep_embedding(t_B, 128))))
    assert torch.equal(layer(t_B), wanted)
    assert [name for name, _ in layer.named_parameters()] == [
        "mlp.0.weight",
        "mlp.0.bias",
        "mlp.2.weight",
        "mlp.2.bias",
    ]


def test_positions_are_rows_and_columns_counted_from_the_middle():
    assert grid_positions(2, 3).tolist() == [[-0.5, -1], [-0.5, 0], [-0.5, 1], [0.5, -1], [0.5, 0], [0.5, 1]]


@pytest.mark.parametrize("grid", [(5,), (2, 3), (2, 2, 2)])
def test_axes_of_a_grid_share_the_channels_of_sines_and_cosines(grid):
    width, each = 24, 12 // len(grid)
    table = sincos(grid, width)
    assert table.shape == (math.prod(grid), width)
    for n, place in enumerate(torch.cartesian_prod(*map(torch.arange, grid)).reshape(-1, len(grid)).tolist()):
        angles = [[at * 10_000 ** (-i / each) for i in range(each)] for at in place]
        wanted = [f(angle) for row in angles for f in (math.sin, math.cos) for angle in row]
        torch.testing.assert_close(table[n], torch.tensor(wanted), atol=1e-6, rtol=0)


def test_every_position_has_its_own_code():
    for grid in ((4, 6), (24,)):
        code = sincos(grid, 8)
        assert code.shape == (24, 8)
        assert torch.cdist(code, code).add(torch.eye(24)).min() > 1e-3
    rows = sincos((4, 6), 8).view(4, 6, 8)
    assert torch.equal(rows[:, :, :4], rows[:, :1, :4].expand(-1, 6, -1))
    assert torch.equal(rows[:, :, 4:], rows[:1, :, 4:].expand(4, -1, -1))


def test_patches_of_a_grid_are_neighbours_channel_fastest_and_come_back():
    index = torch.arange(24.0).view(1, 24, 1)
    patches = patchify(index, (4, 6), 2)
    assert patches[0, 1].tolist() == [2, 3, 8, 9]
    assert torch.equal(unpatchify(patches, (4, 6), 2), index)
    x = torch.randn(2, 24, 5)
    assert torch.equal(patchify(x, (4, 6), 2)[:, 4, 5:10], x[:, 15])  # second row and column of patches, second cell
    assert torch.equal(unpatchify(patchify(x, (4, 6), 2), (4, 6), 2), x)


def test_patches_of_an_image_are_channel_slowest_and_come_back():
    """With projections that copy, the image comes back, and every patch is one position in raster order."""
    embed, unembed = PatchEmbed(4, 3, 48), PatchUnembed(4, 3, 48, smooth=True)
    with torch.no_grad():
        for layer in (embed.project, unembed.project):
            layer.weight.copy_(torch.eye(48))
            layer.bias.zero_()
    image = torch.randn(2, 3, 8, 12)
    x_BLE = embed(image)
    assert torch.equal(x_BLE[1, 4], image[1, :, 4:8, 4:8].flatten())  # second row, second column of 2 x 3
    torch.testing.assert_close(unembed(x_BLE, (2, 3)), image)


def test_an_embedded_patch_is_a_convolution_with_the_stride_of_its_side():
    embed, image = PatchEmbed(4, 3, 10), torch.randn(2, 3, 8, 12)
    weight = embed.project.weight.view(10, 3, 4, 4)
    wanted = torch.nn.functional.conv2d(image, weight, embed.project.bias, stride=4).flatten(2).mT
    torch.testing.assert_close(embed(image), wanted, atol=1e-5, rtol=1e-5)


def test_a_new_decoder_paints_nearly_grey():
    x_BLE = torch.randn(64, 6, 48)
    for smooth in (False, True):
        unembed = PatchUnembed(4, 3, 48, smooth=smooth)
        assert float(unembed(x_BLE, (2, 3)).detach().std()) == pytest.approx(0.1, rel=0.1)
        assert unembed.last_layer is (unembed.smooth if smooth else unembed.project).weight
