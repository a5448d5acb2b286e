from tokenizers_mm.blocks.attention import Attention as Attention, attend as attend
from tokenizers_mm.blocks.block import Block as Block, modulate as modulate
from tokenizers_mm.blocks.cache import KeyValueCache as KeyValueCache, KeyValues as KeyValues
from tokenizers_mm.blocks.cross_attention import AttentionPool as AttentionPool, CrossAttention as CrossAttention
from tokenizers_mm.blocks.encoder import encoder_layer as encoder_layer
from tokenizers_mm.blocks.latent_statistics import WithLatents as WithLatents
from tokenizers_mm.blocks.linear import scaled as scaled, zero_linear as zero_linear
from tokenizers_mm.blocks.mlp import Mlp as Mlp, MlpKind as MlpKind, swiglu as swiglu
from tokenizers_mm.blocks.norms import (
    Norm as Norm,
    QKNorm as QKNorm,
    normalisation as normalisation,
    normalised as normalised,
)
from tokenizers_mm.blocks.patches import (
    PatchEmbed as PatchEmbed,
    PatchUnembed as PatchUnembed,
    patchify as patchify,
    unpatchify as unpatchify,
)
from tokenizers_mm.blocks.positions import grid_positions as grid_positions, sincos as sincos
from tokenizers_mm.blocks.rectified_flow import (
    TIME_DENSITIES as TIME_DENSITIES,
    TimeDensity as TimeDensity,
    interpolate as interpolate,
    sample_times as sample_times,
    shift_times as shift_times,
    velocity as velocity,
    velocity_towards as velocity_towards,
)
from tokenizers_mm.blocks.rotary import Rotation as Rotation, rotate as rotate, rotation as rotation
from tokenizers_mm.blocks.solvers import SOLVERS as SOLVERS, Solver as Solver, solve as solve
from tokenizers_mm.blocks.time_embedding import TimeEmbedding as TimeEmbedding, timestep_embedding as timestep_embedding
from tokenizers_mm.blocks.transformer import Transformer as Transformer
