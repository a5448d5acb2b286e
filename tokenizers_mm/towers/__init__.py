"""Pretrained networks that understand images and texts: frozen towers, teachers, and text encoders."""

from tokenizers_mm.towers.clip_text import OpenClipText, OpenClipTextConfig
from tokenizers_mm.towers.teacher import Teacher, cached_semantics
from tokenizers_mm.towers.text import TextConfig, Words, WordsConfig, build_text
from tokenizers_mm.towers.tower import EncodeOnly, TextTower, Tower, TowerConfig, build_tower

__all__ = [
    "EncodeOnly",
    "OpenClipText",
    "OpenClipTextConfig",
    "Teacher",
    "TextConfig",
    "TextTower",
    "Tower",
    "TowerConfig",
    "Words",
    "WordsConfig",
    "build_text",
    "build_tower",
    "cached_semantics",
]
