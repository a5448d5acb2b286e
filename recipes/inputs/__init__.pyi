from recipes.inputs.image_sets import (
    ImageSet as ImageSet,
    check_images as check_images,
    image_set as image_set,
    probe_data as probe_data,
)
from recipes.inputs.left_out import LeftOut as LeftOut
from recipes.inputs.run_folder import (
    check_generator as check_generator,
    generator_folder as generator_folder,
    trained_precision as trained_precision,
)
from recipes.inputs.tokenizer_source import (
    TokenizerSource as TokenizerSource,
    check_source as check_source,
    names_an_object as names_an_object,
    open_tokenizer as open_tokenizer,
)
