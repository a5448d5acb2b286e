from recipes.commands.arguments import tell as tell, warn as warn
from recipes.commands.eval import evaluate as evaluate
