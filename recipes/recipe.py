"""What a recipe file may say. A recipe is one YAML file: model, data, objective, optimisation; no defaults chain."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from tokenizers_mm.autoencoder import AutoencoderConfig
from tokenizers_mm.config import ConfigError, override, parse, read_yaml
from tokenizers_mm.data.photos import training_photos
from tokenizers_mm.data.shapes import Shapes
from tokenizers_mm.data.sources import ImageArrays, ImageFolder, RandomCrops, Source
from tokenizers_mm.objective import ObjectiveConfig
from tokenizers_mm.train import TrainConfig

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class PhotoCrops:
    """Random crops of the photographs inside the scikit-image wheel, reduced up to `max_downscale` times first."""

    kind: Literal["photos"] = "photos"
    crop: int = 64
    max_downscale: int = 2

    def source(self) -> Source:
        """Build the source."""
        return RandomCrops(list(training_photos().values()), self.crop, max_downscale=self.max_downscale)


@dataclass(frozen=True, kw_only=True)
class ShapeImages:
    """Captioned shapes, made on the fly."""

    kind: Literal["shapes"] = "shapes"
    count: int = 8000
    seed: int = 0
    image_size: int = 32

    def source(self) -> Source:
        """Build the source."""
        return ImageArrays(Shapes(self.count, self.seed, "train", image_size=self.image_size).images)


@dataclass(frozen=True, kw_only=True)
class FolderImages:
    """Your own jpg, png and webp files: shorter side resized to `size`, then a random square crop of it."""

    path: str
    size: int
    kind: Literal["folder"] = "folder"
    flip: bool = True

    def source(self) -> Source:
        """Build the source; `ValueError` for a folder without images."""
        return ImageFolder(Path(self.path), self.size, flip=self.flip)


ImageData = Annotated[PhotoCrops | ShapeImages | FolderImages, Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipe:
    """Train a tokenizer on images."""

    model: AutoencoderConfig
    data: ImageData
    train: TrainConfig
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    kind: Literal["tokenizer"] = "tokenizer"


@dataclass(frozen=True, kw_only=True)
class GeneratorRecipe:
    """Train a generator on a token store.

    model   {"kind": one of backbones.KINDS, **its options}
    tokens  folder that `tmm encode` wrote
    """

    model: dict[str, Any]
    tokens: str
    train: TrainConfig
    kind: Literal["generator"] = "generator"


Recipe = TokenizerRecipe | GeneratorRecipe


def load_recipe(name: str, assignments: list[str] | None = None) -> Recipe:
    """Read a recipe by path, or by name among those that come with the package (`tmm recipes` lists them).

    assignments  `path.to.key=value` overrides. Raises `ConfigError` naming file, path, value and remedy.
    """
    path = find_recipe(name)
    data = override(read_yaml(path), assignments or [])
    schemas: dict[str, type[Recipe]] = {"tokenizer": TokenizerRecipe, "generator": GeneratorRecipe}
    if data.get("kind") not in schemas:
        raise ConfigError(f"{path}: kind = {data.get('kind')!r}: expected one of {', '.join(schemas)}")
    return parse(schemas[data["kind"]], data, str(path))


def find_recipe(name: str) -> Path:
    """Path of a recipe file; names without a folder are looked up among the packaged ones."""
    path = Path(name)
    if path.exists() or path.suffix in (".yaml", ".yml"):
        return path
    known = packaged_recipes()
    if name not in known:
        raise ConfigError(f"recipe {name!r}: no such file, and not one of {', '.join(sorted(known))}")
    return known[name]


def packaged_recipes() -> dict[str, Path]:
    """Name -> file of every recipe that comes with the package."""
    return {
        path.stem: path for folder in ("tokenizers", "systems") for path in sorted((_FOLDER / folder).glob("*.yaml"))
    }
