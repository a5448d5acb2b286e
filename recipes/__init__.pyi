from recipes.compare.comparison import Settings as Settings
from recipes.compare.measure import compare_tokenizers as compare_tokenizers
from recipes.compare.page import write_comparison as write_comparison
from recipes.inputs.tokenizer_source import open_tokenizer as open_tokenizer
from recipes.programs.caption import (
    Captioned as Captioned,
    caption_images as caption_images,
    write_captions as write_captions,
)
from recipes.programs.evaluate import Extras as Extras, evaluate_images as evaluate_images
from recipes.programs.sample import sample_images as sample_images, save_strip as save_strip
from recipes.programs.train import train_recipe as train_recipe
from recipes.schema.recipe import load_recipe as load_recipe
