from recipes.compare.command import compare as compare
