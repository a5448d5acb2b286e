"""Whole systems: choices, no new mechanisms; and the programs and console script that run them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers_mm.lazy import face

if TYPE_CHECKING:
    from recipes.caption import Captioned, caption_images, write_captions
    from recipes.compare.measure import Settings, compare_tokenizers
    from recipes.compare.page import write_comparison
    from recipes.evaluate import Extras, evaluate_images
    from recipes.recipe import load_recipe
    from recipes.sample import sample_images, save_strip
    from recipes.tokenizer_source import open_tokenizer
    from recipes.train import train_recipe

__all__ = [
    "Captioned",
    "Extras",
    "Settings",
    "caption_images",
    "compare_tokenizers",
    "evaluate_images",
    "load_recipe",
    "open_tokenizer",
    "sample_images",
    "save_strip",
    "train_recipe",
    "write_captions",
    "write_comparison",
]
_HOMES = {
    "Captioned": "recipes.caption",
    "Extras": "recipes.evaluate",
    "Settings": "recipes.compare.measure",
    "caption_images": "recipes.caption",
    "compare_tokenizers": "recipes.compare.measure",
    "evaluate_images": "recipes.evaluate",
    "load_recipe": "recipes.recipe",
    "open_tokenizer": "recipes.tokenizer_source",
    "sample_images": "recipes.sample",
    "save_strip": "recipes.sample",
    "train_recipe": "recipes.train",
    "write_captions": "recipes.caption",
    "write_comparison": "recipes.compare.page",
}
if not TYPE_CHECKING:  # or type checkers would take every name for one of ours
    __getattr__, __dir__ = face(__name__, _HOMES)
