"""Quantizers: vectors <-> codes, every family behind one contract (see `quantizers.base`).

This is the `quantizers` package of tokenizers-mm. An unrelated distribution on PyPI has the same import name; if
`from quantizers import FSQ` fails, uninstall that one (`pip uninstall quantizers`) and reinstall tokenizers-mm.
"""

from quantizers.base import Quantized, Quantizer
from quantizers.fsq import FSQ
from quantizers.gaussian import Gaussian
from quantizers.nearest import nearest
from quantizers.vq import VQ

KINDS: dict[str, type[Quantizer]] = {"fsq": FSQ, "vq": VQ, "gaussian": Gaussian}

__all__ = ["FSQ", "KINDS", "VQ", "Gaussian", "Quantized", "Quantizer", "nearest"]
