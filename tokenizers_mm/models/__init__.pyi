from tokenizers_mm.models.autoencoder import (
    Autoencoder as Autoencoder,
    build_autoencoder as build_autoencoder,
    config_dict as config_dict,
)
from tokenizers_mm.models.autoencoder_config import AutoencoderConfig as AutoencoderConfig
from tokenizers_mm.models.fused import Fused as Fused, How as How
from tokenizers_mm.models.semantic_head import SemanticConfig as SemanticConfig, SemanticHead as SemanticHead
