"""What lies in `big_vlp.recipes` now; so configs that were written before still load."""

from big_vlp.recipes import *  # noqa: F403
