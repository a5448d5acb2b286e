import pytest
import torch
from torch import nn

from tokenizers_mm.towers import Teacher, Tower, TowerConfig, build_tower, cached_semantics


@pytest.fixture(scope="module")
def tower() -> Tower:
    return build_tower(TowerConfig(name="timm:test_vit", image_size=32, input_size=32), random_init=True)


def batches(sizes: tuple[int, ...] = (3, 2), side: int = 32) -> list[torch.Tensor]:
    return [torch.rand(size, 3, side, side) * 2 - 1 for size in sizes]


def test_a_teacher_stays_out_of_a_training_module(tower: Tower) -> None:
    objective = nn.ModuleDict({"model": nn.Linear(2, 2), "teacher": Teacher(tower)}).train().requires_grad_(True)
    assert sorted(objective.state_dict()) == ["model.bias", "model.weight"]
    assert len(list(objective.parameters())) == 2
    assert not list(objective.buffers())  # what several processes would send each other at every step
    image = batches()[0].requires_grad_()
    semantics = objective["teacher"](image)
    assert torch.equal(semantics.patch_BND, tower.semantics(image).patch_BND)
    semantics.pooled_BD[:, 0].sum().backward()  # of all channels it is zero after a layer norm
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert objective["teacher"].weights_sha256 == tower.weights_sha256
    assert (objective["teacher"].spec, objective["teacher"].pooled_dim) == (tower.spec, tower.pooled_dim)


def test_a_teacher_follows_its_parent() -> None:
    tower = build_tower(TowerConfig(name="timm:test_vit", input_size=32), random_init=True)
    nn.ModuleDict({"teacher": Teacher(tower)}).to(torch.bfloat16)
    assert tower.network.model.norm.weight.dtype == torch.bfloat16
    assert tower.scale_C11.dtype == torch.float32


def test_cached_features_are_those_of_the_tower(tower: Tower) -> None:
    data = batches()
    cached = cached_semantics(tower, iter(data))
    assert len(cached) == 5
    for part, image in ((cached[:3], data[0]), (cached[3:], data[1])):
        assert torch.equal(part.patch_BND, tower.semantics(image).patch_BND)
        assert torch.equal(part.pooled_BD, tower.semantics(image).pooled_BD)
    assert not cached.patch_BND.requires_grad
    (cached.patch_BND * nn.Parameter(torch.ones(()))).sum().backward()  # no inference tensors: they can be trained on
    small = cached_semantics(Teacher(tower), data, dtype=torch.bfloat16)
    assert torch.equal(small.patch_BND, cached.patch_BND.bfloat16())
    with pytest.raises(ValueError, match="batches are empty"):
        cached_semantics(tower, [])


def test_cached_grids_must_agree() -> None:
    class Cells:
        def semantics(self, image: torch.Tensor) -> object:
            from tokenizers_mm.semantics import Semantics

            side = image.shape[2] // 16
            return Semantics(torch.zeros(len(image), side * side, 2), torch.zeros(len(image), 2), (side, side))

    with pytest.raises(ValueError, match=r"grids \[\(1, 1\), \(2, 2\)\]:.*images"):
        cached_semantics(Cells(), [*batches((1,), 16), *batches((1,), 32)])  # type: ignore[arg-type]
