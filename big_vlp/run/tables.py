"""What a run says about its metrics and parameters, as tables of text."""

import math
from collections.abc import Mapping

import jax
import numpy as np

from big_vlp.parallel import placing

# Endings of metrics that say what a model would get which knows nothing, knows only frequencies,
# sees no image, or sees a wrong one.
REFERENCES = ("chance", "baseline", "blind", "shuffled")


def metric_table(values: Mapping[str, float]) -> str:
    """One line per metric, with what chance or a baseline gives where the evaluator says so."""
    lines = []
    for name, value in values.items():
        if metric_of(name) == name:
            found = {r: values[f"{name}_{r}"] for r in REFERENCES if f"{name}_{r}" in values}
            beside = "".join(f"   ({r} {v:.4f})" for r, v in found.items())
            lines.append(f"  {name:28} {value:9.4f}{beside}")
    return "\n".join(lines)


def metric_of(name: str) -> str:
    """The metric itself where the name is that of a reference value, such as "R@1_chance"."""
    for reference in REFERENCES:
        name = name.removesuffix(f"_{reference}")
    return name


def parameter_table(params, groups: Mapping[str, str]) -> str:
    """A text table of all parameters, section by section, with totals.

    Args:
      params: tree of jax.Array or jax.ShapeDtypeStruct; where they live is shown too.
      groups: path ("image/block/kernel") -> how the optimizer treats it, for example
        "trained, lr x1, wd x0" or "frozen".

    Raises:
      ValueError: paths of `params` and of `groups` differ.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if leaves.keys() != groups.keys():
        raise ValueError(
            f"Every parameter needs one group: {sorted(leaves.keys() - groups.keys())} have none, "
            f"{sorted(groups.keys() - leaves.keys())} are no parameters."
        )
    rows = {
        path: (
            path,
            "x".join(map(str, leaf.shape)) or "scalar",
            np.dtype(leaf.dtype).name,
            f"{math.prod(leaf.shape):,}",
            groups[path],
            placing.split_of(leaf),
            f"{placing.bytes_per_device(leaf):,}",
        )
        for path, leaf in leaves.items()
    }
    header = ("parameter", "shape", "dtype", "size", "group", "split", "bytes per device")
    widths = [max(map(len, column)) for column in zip(header, *rows.values())]
    left_aligned = (True, False, True, False, True, True, False)

    def text(row):
        cells = zip(row, widths, left_aligned)
        return "  ".join(c.ljust(w) if left else c.rjust(w) for c, w, left in cells).rstrip()

    lines = [text(header)]
    sections = {}
    for path in rows:
        sections.setdefault(path.split("/")[0], []).append(path)
    for name, paths in sections.items():
        total = sum(math.prod(leaves[path].shape) for path in paths)
        lines.append("")
        if len(paths) > 1:
            lines.append(f"{name}: {len(paths)} arrays, {total:,} parameters")
        lines += [text(rows[path]) for path in paths]

    totals = {}
    for path, leaf in leaves.items():
        count, size = totals.get(groups[path], (0, 0))
        totals[groups[path]] = count + 1, size + math.prod(leaf.shape)
    everything = sum(size for _, size in totals.values())
    held = sum(map(placing.bytes_per_device, leaves.values()))
    lines += [
        "",
        f"all: {len(leaves)} arrays, {everything:,} parameters, {held:,} bytes per device",
    ]
    for group, (count, size) in sorted(totals.items(), key=lambda item: -item[1][1]):
        lines.append(f"  {group}: {count} arrays, {size:,} parameters ({size / everything:.1%})")
    return "\n".join(lines)
