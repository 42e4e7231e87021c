"""Views: one record -> the arrays of one training example (geometry and tokens, on the host).

Colour jitter, greyscale, blur, solarise and normalisation run on the device, over whole batches;
images leave here as uint8.
"""

from input_pipeline.checks import arguments, parts


def make_views(name: str, **kwargs):
    """Builds the `Views` of a module in this package, or of another: see `checks.parts`.

    Views are `views(record, rng) -> {name: array}`, with `spec()` of these arrays, `texts(batch)`
    for people, and `num_classes` where they decide it, else None.

    Raises:
      ValueError: the name is unknown.
      ArgumentError: the class does not take one of the keywords, or lacks one.
    """
    return arguments.call("", parts.find("views", __name__, name, "Views"), kwargs)
