"""What a recipe file may say. A recipe is one YAML file: model, data, objective, optimisation; no defaults chain."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field

import backbones
import quantizers
from tokenizers_mm.autoencoder import AutoencoderConfig
from tokenizers_mm.config import ConfigError, build, override, parse, read_yaml
from tokenizers_mm.data.photos import training_photos
from tokenizers_mm.data.shapes import Shapes
from tokenizers_mm.data.sources import ImageArrays, ImageFolder, RandomCrops, Source
from tokenizers_mm.objective import ObjectiveConfig
from tokenizers_mm.train import TrainConfig

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class PhotoCrops:
    """Random crops of the photographs inside the scikit-image wheel, reduced or enlarged first up to so many times."""

    kind: Literal["photos"] = "photos"
    crop: int = 64
    max_downscale: int = 3
    max_upscale: int = 2

    def __post_init__(self) -> None:
        """Refuse sizes that no crop can have."""
        _require_positive(self, "crop", "max_downscale", "max_upscale")

    def source(self) -> Source:
        """Build the source."""
        return RandomCrops(
            list(training_photos().values()), self.crop, max_downscale=self.max_downscale, max_upscale=self.max_upscale
        )


@dataclass(frozen=True, kw_only=True)
class ShapeImages:
    """Captioned shapes, made on the fly."""

    kind: Literal["shapes"] = "shapes"
    count: int = 8000
    seed: int = 0
    image_size: int = 32

    def __post_init__(self) -> None:
        """Refuse an empty data set."""
        _require_positive(self, "count", "image_size")

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

    def __post_init__(self) -> None:
        """Refuse a size that no image can have."""
        _require_positive(self, "size")

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

    def __post_init__(self) -> None:
        """Refuse a bottleneck that cannot be built before anything is read or written."""
        build(quantizers.KINDS, self.model.bottleneck, "model.bottleneck")


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

    def __post_init__(self) -> None:
        """Refuse unknown kinds and options before anything is read or written; options become typed and complete."""
        kind = str(self.model.get("kind"))
        if kind not in backbones.KINDS:
            raise ConfigError(f"model.kind = {kind}: expected one of {', '.join(backbones.KINDS)}")
        options = {name: value for name, value in self.model.items() if name != "kind"}
        config = parse(get_type_hints(backbones.KINDS[kind].__init__)["config"], options, "model")
        object.__setattr__(self, "model", {"kind": kind} | asdict(config))


Recipe = TokenizerRecipe | GeneratorRecipe


def load_recipe(name: str, assignments: list[str] | None = None) -> Recipe:
    """Read a recipe by path, or by name among those that come with the package (`tmm recipes` lists them).

    assignments  `path.to.key=value` overrides. Raises `ConfigError` naming file, path, value and remedy.
    """
    path = find_recipe(name)
    data = override(read_yaml(path), assignments or [])
    schemas: dict[str, type[Recipe]] = {"tokenizer": TokenizerRecipe, "generator": GeneratorRecipe}
    kind = str(data.get("kind"))
    if kind not in schemas:
        raise ConfigError(f"{path}.kind = {kind}: expected one of {', '.join(schemas)}")
    return parse(schemas[kind], data, str(path))


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


def _require_positive(data: object, *names: str) -> None:
    for name in names:
        if getattr(data, name) < 1:
            raise ValueError(f"{name}={getattr(data, name)}: expected at least 1")
