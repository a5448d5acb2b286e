from tokenizers_mm.saving.card import model_card as model_card
from tokenizers_mm.saving.folder import write_whole as write_whole
from tokenizers_mm.saving.object_state import object_digest as object_digest
from tokenizers_mm.saving.pretrained import HubMixin as HubMixin
