from recipes.programs.caption import (
    Captioned as Captioned,
    caption_images as caption_images,
    write_captions as write_captions,
)
from recipes.programs.convert import (
    convert_tokenizer as convert_tokenizer,
    families_table as families_table,
    families_text as families_text,
)
from recipes.programs.datasets import write_dataset as write_dataset
from recipes.programs.evaluate import Extras as Extras, evaluate_images as evaluate_images, preparation as preparation
from recipes.programs.sample import sample_images as sample_images, save_strip as save_strip
from recipes.programs.train import (
    train_generator as train_generator,
    train_recipe as train_recipe,
    train_tokenizer as train_tokenizer,
    with_features as with_features,
)
