from tokenizers_mm.checkpoints.families.names import Names as Names
from tokenizers_mm.checkpoints.families.reader import (
    Contents as Contents,
    DiffusersClass as DiffusersClass,
    Family as Family,
    Naming as Naming,
    Needs as Needs,
    Reader as Reader,
    agree as agree,
    laid_over as laid_over,
    option as option,
)
from tokenizers_mm.checkpoints.families.table import (
    check_family as check_family,
    diffusers_classes as diffusers_classes,
    known_families as known_families,
    readers as readers,
)
