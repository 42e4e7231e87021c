"""Views: one record -> the arrays of one training example (geometry and tokens, on the host).

Colour jitter, greyscale, blur, solarise and normalisation run on the device, over whole batches;
images leave here as uint8. `Views` is their base.
"""

from input_pipeline.checks import arguments, parts
from input_pipeline.views.shared.base import Views


def make_views(name: str, **kwargs) -> Views:
    """Builds the `Views` of a module in this package, or of another: see `checks.parts`.

    Raises:
      ValueError: the name is unknown, or the class lacks the base.
      ArgumentError: the class does not take one of the keywords, or lacks one.
    """
    views = arguments.call("", parts.find("views", __name__, name, "Views"), kwargs)
    if not isinstance(views, Views):
        raise ValueError(
            f"The Views of {name} must derive from {__name__}.Views, see docs/extending.md."
        )
    return views
