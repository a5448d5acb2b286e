"""Every kind of quantizer by name, and how to build one from plain data."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from quantizers.base import Quantizer
from quantizers.bsq import BSQ
from quantizers.fsq import FSQ
from quantizers.gaussian import Gaussian
from quantizers.gumbel import Gumbel
from quantizers.ibq import IBQ
from quantizers.identity import Identity
from quantizers.latent import Latent
from quantizers.lfq import LFQ
from quantizers.multiscale import MultiScale
from quantizers.product import Product
from quantizers.projected import Projected
from quantizers.residual import Residual
from quantizers.simvq import SimVQ
from quantizers.vq import VQ

KINDS: dict[str, type[Quantizer]] = {
    "fsq": FSQ,
    "latent": Latent,
    "vq": VQ,
    "gaussian": Gaussian,
    "identity": Identity,
    "simvq": SimVQ,
    "ibq": IBQ,
    "gumbel": Gumbel,
    "lfq": LFQ,
    "bsq": BSQ,
    "residual": Residual,
    "product": Product,
    "projected": Projected,
    "multiscale": MultiScale,
}


def build(options: Mapping[str, Any], where: str = "options") -> Quantizer:
    """Build `KINDS[options["kind"]]` from the other options; `ValueError` names the option that does not fit.

    options  what `Quantizer.options` gives, or the same written by hand; constructor defaults may be left out
    where    name of the options in error messages
    """
    if not isinstance(options, Mapping) or options.get("kind") not in KINDS:
        kind = options.get("kind") if isinstance(options, Mapping) else options
        raise ValueError(f"{where}.kind = {kind!r}: expected one of {', '.join(KINDS)}")
    cls = KINDS[options["kind"]]
    given = {name: value for name, value in options.items() if name != "kind"}
    parameters = inspect.signature(cls).parameters
    unknown = sorted(set(given) - set(parameters))
    if unknown:
        raise ValueError(f"{where}.{unknown[0]}: unknown; {cls.kind} takes {', '.join(parameters)}")
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in given]
    if missing:
        raise ValueError(f"{where}.{missing[0]}: missing; {cls.kind} needs it")
    return cls(**given)
