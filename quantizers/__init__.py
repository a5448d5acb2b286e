"""Quantizers: vectors <-> codes, every family behind one contract (see `quantizers.base`).

This is the `quantizers` package of tokenizers-mm. An unrelated distribution on PyPI has the same import name; if
`from quantizers import FSQ` fails, uninstall that one (`pip uninstall quantizers`) and reinstall tokenizers-mm.
"""

from quantizers.base import Quantized, Quantizer
from quantizers.bsq import BSQ
from quantizers.drop_in import DropIn
from quantizers.fsq import FSQ
from quantizers.gaussian import Gaussian
from quantizers.gumbel import Gumbel
from quantizers.ibq import IBQ
from quantizers.identity import Identity
from quantizers.kinds import KINDS, build
from quantizers.latent import Latent
from quantizers.lfq import LFQ
from quantizers.meter import CodeMeter, entropy_bits
from quantizers.multiscale import MultiScale
from quantizers.product import Product
from quantizers.projected import Projected
from quantizers.residual import Residual
from quantizers.simvq import SimVQ
from quantizers.vq import VQ

__all__ = [
    "BSQ",
    "FSQ",
    "IBQ",
    "KINDS",
    "LFQ",
    "VQ",
    "CodeMeter",
    "DropIn",
    "Gaussian",
    "Gumbel",
    "Identity",
    "Latent",
    "MultiScale",
    "Product",
    "Projected",
    "Quantized",
    "Quantizer",
    "Residual",
    "SimVQ",
    "build",
    "entropy_bits",
]
