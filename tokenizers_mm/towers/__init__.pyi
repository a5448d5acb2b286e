from tokenizers_mm.towers.clip_text import OpenClipText as OpenClipText, OpenClipTextConfig as OpenClipTextConfig
from tokenizers_mm.towers.frozen import freeze as freeze
from tokenizers_mm.towers.lite0 import LITE0_SHA256 as LITE0_SHA256, lite0_network as lite0_network
from tokenizers_mm.towers.sizes import weight_count as weight_count
from tokenizers_mm.towers.teacher import Teacher as Teacher, cached_semantics as cached_semantics
from tokenizers_mm.towers.text import (
    NGramTextConfig as NGramTextConfig,
    NGramTextEncoder as NGramTextEncoder,
    TextConfig as TextConfig,
    build_text as build_text,
)
from tokenizers_mm.towers.timm_network import lite0_tower as lite0_tower, timm_tower as timm_tower
from tokenizers_mm.towers.tower import (
    EncodeOnly as EncodeOnly,
    TextTower as TextTower,
    Tower as Tower,
    build_tower as build_tower,
)
from tokenizers_mm.towers.tower_config import TowerConfig as TowerConfig
