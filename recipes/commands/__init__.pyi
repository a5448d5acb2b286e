from recipes.commands.arguments import tell as tell, warn as warn
