from recipes.schema.files import (
    find_recipe as find_recipe,
    read_recipe as read_recipe,
    recipe_text as recipe_text,
    recipes_text as recipes_text,
)
from recipes.schema.recipe import (
    FusedRecipe as FusedRecipe,
    GeneratorRecipe as GeneratorRecipe,
    Recipe as Recipe,
    TokenizerRecipe as TokenizerRecipe,
    load_recipe as load_recipe,
    parse_recipe as parse_recipe,
    require_size as require_size,
)
