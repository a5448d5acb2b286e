"""Show-o's MAGVIT-v2 (https://arxiv.org/abs/2408.12528): bits of latent diffusion's net."""

from __future__ import annotations

from tokenizers_mm.checkpoints.families import conv
from tokenizers_mm.checkpoints.families.reader import Family, Reader

READER = Reader(
    namings=(conv.INSIDE,),
    options=conv.options,
    needs={**conv.needs(1, **conv.LDM_NET), "bottleneck.kind": "bits"},
    dropped=(*conv.LEFT, r"quantize\.(embedding|power_vals)"),
    families=(
        Family(
            name="showo",
            title="Show-o's MAGVIT-v2, f16: 13 bits, the first one most significant",
            paper="https://arxiv.org/abs/2408.12528",
            config={"bottleneck": {"kind": "lfq", "bit_order": "msb"}},
            code_licence="Apache-2.0",
            parameters=95.4,
        ),
    ),
)
