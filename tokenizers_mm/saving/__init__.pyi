from tokenizers_mm.saving.card import (
    content as content,
    latent_statistics as latent_statistics,
    model_card as model_card,
    title_of as title_of,
)
from tokenizers_mm.saving.fingerprints import fingerprint as fingerprint, fingerprint_of as fingerprint_of
from tokenizers_mm.saving.folder import save as save, write_whole as write_whole
from tokenizers_mm.saving.local import (
    OF_A_RUN as OF_A_RUN,
    is_ours as is_ours,
    listing as listing,
    locate as locate,
    read_config as read_config,
    refuse_path as refuse_path,
)
from tokenizers_mm.saving.object_state import object_digest as object_digest
from tokenizers_mm.saving.pretrained import HubMixin as HubMixin
from tokenizers_mm.saving.saved import (
    CardFacts as CardFacts,
    CardSource as CardSource,
    Saved as Saved,
    check_saved as check_saved,
    describe as describe,
    is_saved as is_saved,
)
