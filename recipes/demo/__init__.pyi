from recipes.demo.run import run_demo as run_demo
