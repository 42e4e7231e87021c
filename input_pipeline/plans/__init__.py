"""Which image size and how many examples each step of a run has, as a function of the step."""

from input_pipeline.checks import arguments, parts


def make_plan(name: str, **kwargs):
    """Builds the `Plan` of a module in this package, or of another: see `checks.parts`.

    A plan is `plan(step) -> (image size, global batch, position of the first example)`, with the
    `shapes` that occur: pairs (image size, global batch), each of which is compiled once.

    Raises:
      ValueError: the name is unknown, or an argument is out of range.
      ArgumentError: the plan does not take one of the arguments, or lacks one.
    """
    return arguments.call("", parts.find("plan", __name__, name, "Plan"), kwargs)
