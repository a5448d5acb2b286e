"""Public tokenizers that are known by their keys and have no body here yet: a door each, no room.

A row is a name and patterns, all of which some key matches. Such a file is refused by its name, not as a riddle.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

DOORS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("TiTok", (r"(.*\.)?latent_tokens", r"(.*\.)?encoder\.positional_embedding")),
    ("QLIP", (r"(.*\.)?vision_decoder\..*", r"(.*\.)?quant_embed\..*|.*visual_projection.*")),
    ("UniTok", (r"(.*\.)?quant_proj\..*", r"(.*\.)?encoder\.patch_embed\.backbone\..*")),
    ("RAE's decoder", (r"(.*\.)?decoder_embed\..*", r"(.*\.)?decoder_pred\..*")),
    ("FlexTok", (r"encoder\.module_dict\..*", r"decoder\.module_dict\..*")),
    ("GigaTok", (r"(.*\.)?s2to1encoder\..*",)),
    ("VTP", (r"(.*\.)?trunk\.feature_bottleneck\..*|.*feature_bottleneck.*", r"(.*\.)?pixel_decoder\..*")),
    ("BSQ-ViT", (r"(.*\.)?encoder\.transformer\.resblocks\..*", r"(.*\.)?quant_embed\..*|.*quantize.*")),
    ("VILA-U", (r"(.*\.)?rqvaesiglip\..*",)),
)


def door_of(keys: Iterable[str]) -> str | None:
    """The tokenizer whose keys these are, if it is a known one."""
    keys = list(keys)
    return next(
        (name for name, patterns in DOORS if all(any(re.fullmatch(p, key) for key in keys) for p in patterns)), None
    )
