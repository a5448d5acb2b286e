from recipes.joint.effective_bits import (
    EffectiveBits as EffectiveBits,
    EffectiveBitsConfig as EffectiveBitsConfig,
    bigram_bits as bigram_bits,
    unigram_bits as unigram_bits,
)
from recipes.joint.latent_norm import LatentNorm as LatentNorm
from recipes.joint.repa import (
    AlignedBatch as AlignedBatch,
    AlignedTokens as AlignedTokens,
    RepaConfig as RepaConfig,
    RepaEObjective as RepaEObjective,
    RepaObjective as RepaObjective,
)
