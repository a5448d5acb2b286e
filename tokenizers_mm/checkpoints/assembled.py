"""A tokenizer from a file that is understood."""

from __future__ import annotations

from tokenizers_mm.checkpoints.parsed import Parsed
from tokenizers_mm.models import Autoencoder
from tokenizers_mm.models.assemble import assemble
from tokenizers_mm.weights import Provenance

__all__ = ["assembled"]


def assembled(parsed: Parsed, source: str) -> Autoencoder:
    """The tokenizer around the parsed tensors, with published statistics; `source` is where they come from, in words.

    Raises `CheckpointError` where the tensors do not fit their options.
    """
    model = assemble(parsed.options, parsed.state, parsed.where)
    if parsed.statistics is not None and not model.spec.discrete:
        model.set_statistics(*parsed.statistics)
    row = parsed.family
    model.provenance = Provenance(row.name, source, None, row.code_licence, row.weights_licence, parsed.ignored)
    return model
