from recipes.compare.comparison import Comparison as Comparison, Settings as Settings
from recipes.compare.measure import compare_tokenizers as compare_tokenizers
from recipes.compare.page import write_comparison as write_comparison
