"""3x3 convolutions of float32 images on CPUs, in C++: AVX-512, AVX2 or plain, chosen when they run."""

from tokenizers_mm.fast.native.convolve import Norm, channel_sums, convolve, mix
from tokenizers_mm.fast.native.library import available, why_not
from tokenizers_mm.fast.native.memory import release

__all__ = ["Norm", "available", "channel_sums", "convolve", "mix", "release", "why_not"]
