from tokenizers_mm.nets.build import (
    DecoderConfig as DecoderConfig,
    NetConfig as NetConfig,
    build_nets as build_nets,
    check_pair as check_pair,
    geometry_of as geometry_of,
)
from tokenizers_mm.nets.causal import (
    CausalConfig as CausalConfig,
    CausalDecoder as CausalDecoder,
    CausalEncoder as CausalEncoder,
)
from tokenizers_mm.nets.conv import ConvConfig as ConvConfig
from tokenizers_mm.nets.dc import DCConfig as DCConfig, DCDecoder as DCDecoder, DCEncoder as DCEncoder
from tokenizers_mm.nets.dc_config import Level as Level
from tokenizers_mm.nets.discriminators import (
    Discriminator as Discriminator,
    DiscriminatorConfig as DiscriminatorConfig,
    PatchConfig as PatchConfig,
    build_discriminator as build_discriminator,
)
from tokenizers_mm.nets.emu3 import Emu3Config as Emu3Config
from tokenizers_mm.nets.flow_decoder import FlowDecoder as FlowDecoder, FlowDecoderConfig as FlowDecoderConfig
from tokenizers_mm.nets.fuse_batch_norm import fold_batch_norms as fold_batch_norms
from tokenizers_mm.nets.geometry import Geometry as Geometry
from tokenizers_mm.nets.precision import run as run
from tokenizers_mm.nets.query import QueryConfig as QueryConfig
from tokenizers_mm.nets.tower_net import TowerNetConfig as TowerNetConfig
from tokenizers_mm.nets.vit import ViTConfig as ViTConfig
