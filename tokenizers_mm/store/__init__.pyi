from tokenizers_mm.store.code_vectors import codebook_of as codebook_of
from tokenizers_mm.store.dataset import StoreWriter as StoreWriter, TokenDataset as TokenDataset
from tokenizers_mm.store.encode import CAPTIONS as CAPTIONS, encode_folder as encode_folder
from tokenizers_mm.store.features import WithFeatures as WithFeatures
from tokenizers_mm.store.folder import require_store as require_store
from tokenizers_mm.store.shards import Row as Row, digest as digest
from tokenizers_mm.store.verification import verify as verify
