"""Public tokenizers that are known by their keys and whose body is not here: refused by name, not as a riddle."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# Names, and patterns each of which some key matches, alone or with the shape of its tensor behind it.
UNSUPPORTED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("TiTok", (r"(.*\.)?latent_tokens", r"(.*\.)?encoder\.positional_embedding")),
    ("QLIP", (r"(.*\.)?vision_decoder\..*", r"(.*\.)?quant_embed\..*|.*visual_projection.*")),
    ("UniTok", (r"(.*\.)?quant_proj\..*", r"(.*\.)?encoder\.patch_embed\.backbone\..*")),
    ("RAE's decoder", (r"(.*\.)?decoder_embed\..*", r"(.*\.)?decoder_pred\..*")),
    ("FlexTok", (r"encoder\.module_dict\..*", r"decoder\.module_dict\..*")),
    ("GigaTok", (r"(.*\.)?s2to1encoder\..*",)),
    ("VTP", (r"(.*\.)?trunk\.feature_bottleneck\..*|.*feature_bottleneck.*", r"(.*\.)?pixel_decoder\..*")),
    ("BSQ-ViT", (r"(.*\.)?encoder\.transformer\.resblocks\..*", r"(.*\.)?quant_embed\..*|.*quantize.*")),
    ("VILA-U", (r"(.*\.)?rqvaesiglip\..*",)),
    # Images go through two Haar wavelets first, which leave no parameter: 3 channels become 48.
    (
        "Cosmos tokenizer",
        (r"(.*\.)?encoder\.conv_in\.weight \[\d+, 48, 3, 3\]", r"(.*\.)?encoder\.down\.0\.block\.0\.norm1\.weight"),
    ),
    ("Cosmos tokenizer of videos", (r"(.*\.)?encoder\.conv_in\.0\.conv3d\.weight",)),
)


def name_of(tensors: Mapping[str, Tensor]) -> str | None:
    """The tokenizer whose keys these are, if it is one of these."""
    texts = [f"{key} {list(value.shape)}" for key, value in tensors.items()]

    def found(pattern: str) -> bool:
        match = re.compile(rf"(?:{pattern})(?: \[.*)?").fullmatch
        return any(map(match, texts))

    return next((name for name, patterns in UNSUPPORTED if all(map(found, patterns))), None)
