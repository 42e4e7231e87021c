"""Nested dicts of arrays as flat paths: splitting, merging, comparing."""

from flax import traverse_util

STATISTICS = "batch_stats"


def flatten(tree) -> dict:
    """Nested dict -> {"a/b/c": leaf}, in sorted order."""
    return dict(sorted(traverse_util.flatten_dict(tree, sep="/").items()))


def unflatten(flat: dict):
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(flat, sep="/")


def split(tree, keep):
    """(paths for which `keep(path)` holds, the others), both nested dicts without empty parts."""
    flat = flatten(tree)
    return (
        unflatten({k: v for k, v in flat.items() if keep(k)}),
        unflatten({k: v for k, v in flat.items() if not keep(k)}),
    )


def split_statistics(model):
    """(parameters, running statistics), each a nested dict without empty parts.

    Statistics are what training moves without a gradient and inference needs: all below the key
    "batch_stats".
    """
    return split(model, lambda path: not path.startswith(f"{STATISTICS}/"))


def variables(model) -> dict:
    """What a Flax module is applied to, of a model whose tree is the module's own."""
    parameters, statistics = split_statistics(model)
    return {"params": parameters, **statistics}


def merge(a, b):
    """The union of two trees with disjoint paths."""
    if not a or not b:
        return a or b
    return unflatten({**flatten(a), **flatten(b)})


def differences(expected: dict, found: dict) -> list[str]:
    """One line for each path that is missing, unexpected or has another shape.

    Args:
      expected, found: nested dicts whose leaves have a `shape`.
    """
    expected, found = flatten(expected), flatten(found)
    lines = [f"missing: {k} {tuple(expected[k].shape)}" for k in expected if k not in found]
    lines += [f"unexpected: {k} {tuple(found[k].shape)}" for k in found if k not in expected]
    lines += [
        f"wrong shape: {k} is {tuple(found[k].shape)}, should be {tuple(expected[k].shape)}"
        for k in expected
        if k in found and tuple(expected[k].shape) != tuple(found[k].shape)
    ]
    return lines
