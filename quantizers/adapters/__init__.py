"""To and from vector-quantize-pytorch (https://github.com/lucidrains/vector-quantize-pytorch), nothing given up.

    from_vector_quantize_pytorch(module)                 any module of it as a quantizer of ours
    to_vector_quantize_pytorch(quantizer)                the other way round
    load_vector_quantize_pytorch(quantizer, state_dict)  its checkpoints into a quantizer built already
    vector_quantize_pytorch_state(quantizer)             and back

The package itself is imported by the second only.
"""

from quantizers.adapters.convert import from_vector_quantize_pytorch, to_vector_quantize_pytorch
from quantizers.adapters.foreign import Foreign
from quantizers.adapters.state import load_vector_quantize_pytorch, vector_quantize_pytorch_state

__all__ = [
    "Foreign",
    "from_vector_quantize_pytorch",
    "load_vector_quantize_pytorch",
    "to_vector_quantize_pytorch",
    "vector_quantize_pytorch_state",
]
