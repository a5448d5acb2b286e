from tokenizers_mm.models.autoencoder import (
    Autoencoder as Autoencoder,
    build_autoencoder as build_autoencoder,
)
from tokenizers_mm.models.autoencoder_config import AutoencoderConfig as AutoencoderConfig
from tokenizers_mm.models.fused import KINDS as KINDS, Fused as Fused, Model as Model
from tokenizers_mm.models.fused_config import How as How
from tokenizers_mm.models.semantic_head import SemanticConfig as SemanticConfig, SemanticHead as SemanticHead
from tokenizers_mm.models.vectors import Vectors as Vectors
