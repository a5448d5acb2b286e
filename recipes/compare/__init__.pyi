from recipes.compare.measure import Settings as Settings, compare_tokenizers as compare_tokenizers
from recipes.compare.page import write_comparison as write_comparison
