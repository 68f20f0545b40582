from genius_lite.errors import UserError as UserError
from genius_lite.pipeline.round import Policy as Policy
from genius_lite.recipe import Recipe as Recipe
from genius_lite.recipe.reader import load as load
from genius_lite.run import open_run as open_run
from genius_lite.run import run as run

__version__: str
