from tokenizers_mm.weights.errors import CheckpointError as CheckpointError
from tokenizers_mm.weights.formats import INNER_FOLDERS as INNER_FOLDERS, WEIGHT_SUFFIXES as WEIGHT_SUFFIXES
from tokenizers_mm.weights.network_names import (
    INCEPTIONS as INCEPTIONS,
    LPIPS_BACKBONES as LPIPS_BACKBONES,
    TOWERS as TOWERS,
    check_extractor as check_extractor,
    check_perceptual as check_perceptual,
    check_tower as check_tower,
)
from tokenizers_mm.weights.provenance import Provenance as Provenance
from tokenizers_mm.weights.state_dict import (
    OPTIONS_MAY_DIFFER as OPTIONS_MAY_DIFFER,
    check_keys as check_keys,
    file_sha256 as file_sha256,
    load_strict as load_strict,
    read_state as read_state,
    some as some,
    tensors_sha256 as tensors_sha256,
    unfetched as unfetched,
)
