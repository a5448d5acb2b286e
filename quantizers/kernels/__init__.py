"""The fast path: one public function per operation, a plain PyTorch reference beside it, one dispatch.

Every operation is a `torch.library.custom_op`, so that it composes with `torch.compile` and `torch.export`.
"""

from quantizers.kernels.bits import pack_bits, sign_quantize, sign_vectors, unpack_bits
from quantizers.kernels.dispatch import backend, using
from quantizers.kernels.entropy import bit_entropy
from quantizers.kernels.nearest import nearest, sample_nearest
from quantizers.kernels.residual import residual_encode
from quantizers.kernels.scalar import scalar_quantize
from quantizers.kernels.softmax import SoftRows, soft_rows

__all__ = [
    "SoftRows",
    "backend",
    "bit_entropy",
    "nearest",
    "pack_bits",
    "residual_encode",
    "sample_nearest",
    "scalar_quantize",
    "sign_quantize",
    "sign_vectors",
    "soft_rows",
    "unpack_bits",
    "using",
]
