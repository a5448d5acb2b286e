from tokenizers_mm.checkpoints.families.diffusers_class import (
    DiffusersClass as DiffusersClass,
    agree as agree,
    needs as needs,
)
from tokenizers_mm.checkpoints.families.names import Names as Names
from tokenizers_mm.checkpoints.families.reader import (
    Contents as Contents,
    Family as Family,
    Naming as Naming,
    Reader as Reader,
    laid_over as laid_over,
    option as option,
)
from tokenizers_mm.checkpoints.families.table import (
    check_family as check_family,
    diffusers_classes as diffusers_classes,
    known_families as known_families,
    readers as readers,
)
