"""`tmm verify`: every byte of a token store, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recipes.commands.arguments import TOO_MANY_QUARANTINED, MaxQuarantined
from tokenizers_mm.data import ALLOWED_SHARE

__all__ = ["verify"]


def verify(
    store: Annotated[Path, typer.Argument(help="Token store.")], max_quarantined: MaxQuarantined = ALLOWED_SHARE
) -> None:
    """Check every byte of a token store; exit status 1 when anything is wrong.

    Exit status 3: it is whole, but too many of the images it was made of are quarantined.
    """
    from tokenizers_mm.data import check_share
    from tokenizers_mm.store import require_store

    check_share("max_quarantined", max_quarantined)
    require_store(store)
    from tokenizers_mm.store import verify as verify_store

    report = verify_store(store)
    complaint = report.refused.complaint(max_quarantined)
    whole = "whole, but too many are quarantined" if complaint else "whole"
    print(
        *report.problems,
        f"{report.shards} shards, {report.encoded} of {report.refused.inputs} images encoded, "
        f"{report.quarantined} quarantined{f', quantizer {report.quantizer} kept' if report.quantizer else ''}: "
        f"{whole if report.ok else f'{len(report.problems)} problems'}",
        *complaint,
        sep="\n",
    )
    raise typer.Exit(1 if not report.ok else TOO_MANY_QUARANTINED if complaint else 0)
