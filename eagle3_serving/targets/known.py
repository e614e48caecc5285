"""The targets that `eagle3 fetch-target` makes, by name; the first is the default."""

from eagle3_serving.targets import gemma3, smollm2
from eagle3_serving.targets.fetch import Recipe

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (smollm2.RECIPE, gemma3.RECIPE)}
