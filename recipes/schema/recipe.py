"""What a recipe file may say. A recipe is one YAML file: model, data, objective, optimisation; no defaults chain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch

import backbones
import quantizers
from recipes.schema.data import ImageData, size_of
from recipes.schema.files import RECIPE_KINDS, read_recipe
from tokenizers_mm.config import ConfigError, parse
from tokenizers_mm.models import AutoencoderConfig, SemanticConfig
from tokenizers_mm.training import TrainConfig
from tokenizers_mm.training.objective import ObjectiveConfig, Part


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipe:
    """Train a tokenizer on images.

    model     what to build; start  instead: a tokenizer to go on from, anything `open_tokenizer` takes
    semantic  with start: a new semantic head for that tokenizer (TokLIP), in place of one that it may have
    freeze    parts that stay as they are: encoder (everything up to the tokens), decoder, semantic
    cache_features  keep the teacher's features of every image in memory, computed once; for images that never change.
              Large data has them in a token store instead (`data.features`)
    """

    data: ImageData
    train: TrainConfig
    model: AutoencoderConfig | None = None
    start: str | None = None
    semantic: SemanticConfig | None = None
    freeze: tuple[Part, ...] = ()
    cache_features: bool = False
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    kind: Literal["tokenizer"] = "tokenizer"

    def __post_init__(self) -> None:
        """Refuse what cannot be built before anything is read or written."""
        if (self.model is None) == (self.start is None):
            raise ValueError("model, start: give one of them, what to build or a tokenizer to go on from")
        if self.semantic is not None and self.start is None:
            raise ValueError("semantic: a new head for a tokenizer to go on from; in a model it is model.semantic")
        if self.model is not None:
            with torch.device("meta"):  # without memory and random numbers: it is built when it is trained
                quantizers.build(self.model.bottleneck, "model.bottleneck")
            require_size(self.data, self.model.image_size, "model.image_size")
        if self.objective.text and self.train.accumulate > 1:
            raise ValueError(
                f"train.accumulate={self.train.accumulate}: the contrast of objective.text compares all images of a "
                "batch, and micro-batches do not see each other; set accumulate to 1, and use more processes"
            )
        teachers = [t for t in (self.objective.alignment, self.objective.distillation) if t is not None]
        if self.cache_features and not teachers:
            raise ValueError("cache_features=True: the objective has no teacher; leave it out")


def require_size(data: ImageData, image_size: tuple[int, int], name: str) -> None:
    """Raise `ValueError`, with what to set instead, unless the images have the size that a tokenizer is made for.

    name  of that size: a key of the recipe that can be set as well, or the tokenizer that it belongs to
    """
    keys, found = size_of(data)
    if found == image_size:
        return
    given = ", ".join(f"data.{key}={getattr(data, key)}" for key in keys)
    remedies = []
    if len(keys) == 2 or image_size[0] == image_size[1]:
        remedies.append(" ".join(f"--set data.{key}={side}" for key, side in zip(keys, image_size, strict=False)))
    if name.startswith("model."):
        remedies.append(f"--set '{name}={list(found)}'")
    raise ValueError(
        f"{given}, {name}={list(image_size)}: the images have another size than the tokenizer is made for; say "
        f"{' or '.join(remedies) or 'data of that size'}"
    )


@dataclass(frozen=True, kw_only=True)
class FusedRecipe:
    """A semantic and a perceptual tokenizer side by side, see `tokenizers_mm.models.fused`.

    semantic, perceptual  a recipe, trained in a folder of that name, or anything `open_tokenizer` takes
    """

    semantic: TokenizerRecipe | str
    perceptual: TokenizerRecipe | str
    how: Literal["channel", "sequence"] = "channel"
    kind: Literal["fused"] = "fused"


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


Recipe = TokenizerRecipe | FusedRecipe | GeneratorRecipe
_SCHEMAS: dict[str, type[Recipe]] = dict(
    zip(RECIPE_KINDS, (TokenizerRecipe, FusedRecipe, GeneratorRecipe), strict=True)
)


def load_recipe(name: str, assignments: list[str] | None = None) -> Recipe:
    """Read a recipe by path, or by name among those that come with the package (`tmm recipes` lists them).

    assignments  `path.to.key=value` overrides. Raises `ConfigError` naming file, path, value and remedy.
    """
    return parse_recipe(*read_recipe(name, assignments or ()))


def parse_recipe(path: Path, data: Mapping[str, Any]) -> Recipe:
    """The recipe that a file says, from what `read_recipe` gave. Raises `ConfigError` as `load_recipe` does."""
    return parse(_SCHEMAS[data["kind"]], data, str(path))
