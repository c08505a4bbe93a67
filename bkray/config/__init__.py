"""The recipe: typed models, dotted overrides, errors that suggest the mend."""

from bkray.config.errors import UserError
from bkray.config.loading import (
    apply_overrides,
    dump_yaml,
    load_recipe,
    parse_recipe,
    parse_section,
    read_recipe,
    read_yaml,
)
from bkray.config.recipe import Recipe

__all__ = [
    "Recipe",
    "UserError",
    "apply_overrides",
    "dump_yaml",
    "load_recipe",
    "parse_recipe",
    "parse_section",
    "read_recipe",
    "read_yaml",
]
