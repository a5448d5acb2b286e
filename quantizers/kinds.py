"""Every kind of quantizer by name, and how to build one from plain data."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_type_hints

from quantizers.base import Quantizer
from quantizers.bsq import BSQ
from quantizers.fsq import FSQ
from quantizers.gaussian import Gaussian
from quantizers.gumbel import Gumbel
from quantizers.ibq import IBQ
from quantizers.identity import Identity
from quantizers.inner import Inner
from quantizers.latent import Latent
from quantizers.lfq import LFQ
from quantizers.multiscale import MultiScale
from quantizers.options import fitted
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
    """Build `KINDS[options["kind"]]` from the other options, the quantizers inside it first.

    options  what `Quantizer.options` gives, or the same written by hand; constructor defaults may be left out
    where    name of the options in error messages

    With `load_state_dict` this is how a quantizer comes back from its options and its tensors. Raises `ValueError`
    that names the option which does not fit by its whole path, `options.inner[1].size` for instance.
    """
    return _built(options, where, outermost=True)


def _built(options: Any, where: str, *, outermost: bool) -> Quantizer:
    cls = _class_of(options, where)
    hints = get_type_hints(cls.__init__)
    given = {name: value for name, value in options.items() if name != "kind"}
    _check_names(cls, given, where)
    for name, value in given.items():
        path = f"{where}.{name}"
        if name == "inner":
            given[name] = _built_inner(value, path)
            continue
        checked = fitted(value, hints[name], path)
        # Options are hashed as JSON, where 1 is not 1.0: inside, a whole number stays as it was written.
        given[name] = value if isinstance(value, int) and not outermost else checked
    try:
        return cls(**given)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _built_inner(value: Any, where: str) -> Inner:
    if isinstance(value, Mapping):
        return _built(value, where, outermost=False)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"{where} = {value!r}: expected the options of a quantizer, or a list of them")
    return [_built(options, f"{where}[{i}]", outermost=False) for i, options in enumerate(value)]


def _check_names(cls: type[Quantizer], given: Mapping[str, Any], where: str) -> None:
    """All that the constructor needs, and nothing that it does not take."""
    parameters = inspect.signature(cls).parameters
    for name, value in given.items():
        if name not in parameters:
            known = f"{cls.kind} takes {', '.join(parameters)}{_nearest(name, parameters)}"
            raise ValueError(f"{where}.{name} = {value!r}: unknown; {known}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in given:
            raise ValueError(f"{where}.{name}: missing; {cls.kind} needs it")


def _class_of(options: Any, where: str) -> type[Quantizer]:
    kind = options.get("kind") if isinstance(options, Mapping) else options
    if not isinstance(options, Mapping) or not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{where}.kind = {kind!r}: expected one of {', '.join(KINDS)}{_nearest(kind, KINDS)}")
    return KINDS[kind]


def _nearest(word: Any, known: Iterable[str]) -> str:
    close = get_close_matches(str(word), list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
