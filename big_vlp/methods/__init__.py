"""Methods: one module per objective, chosen by `config.method.name`."""

from big_vlp.methods.shared.base import Method
from input_pipeline.checks import arguments, parts


def make_method(name: str, **kwargs) -> Method:
    """Builds the `Method` of a module of this package, or of another: see `checks.parts`.

    Raises:
      ValueError: no such method.
      ArgumentError: the method does not take one of the arguments, or lacks one.
    """
    return arguments.call("", parts.find("method", __name__, name, "Method"), kwargs)
