"""C++ kernels for CPUs: AVX-512, AVX2 or plain, chosen when they run. See `build` for how they are built."""

from quantizers.kernels.native.bits import sign_quantize
from quantizers.kernels.native.library import available, why_not
from quantizers.kernels.native.nearest import nearest
from quantizers.kernels.native.residual import residual_encode
from quantizers.kernels.native.scalar import scalar_quantize

__all__ = ["available", "nearest", "residual_encode", "scalar_quantize", "sign_quantize", "why_not"]
