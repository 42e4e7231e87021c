"""What lies in `input_pipeline.plans` now; so configs that were written before still load."""

from input_pipeline.plans import make_plan
from input_pipeline.plans.variable import catlip_sizes

__all__ = ["catlip_sizes", "make_plan"]
