"""LoRA (arXiv 2106.09685): dense layers learn low-rank changes of their frozen kernels.

The parameters get two more leaves beside a kernel, and a context makes the layers use them; no
model knows of it.
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vlp import trees
from big_vlp.models.layers.axes import Axes, declare, inputs_of
from big_vlp.parallel.placing import MAY_STAY_WHOLE

FACTORS = ("lora_a", "lora_b")

# The scale of the factors in use, None where none are. It is a part of the key of every program
# that jax keeps: what was compiled for one scale never runs for another.
_SCALE = jax.make_user_context(None)


@dataclasses.dataclass(frozen=True)
class Lora:
    """Dense layers that compute x W + (alpha / rank) (x A) B.

    A is drawn from U(+-1/sqrt(inputs)), B is zero, so training begins at the given model. Both are
    fp32 and stand beside their "kernel" as "lora_a" and "lora_b":

        kernel                          A            B
        [in, out]                       [in, r]      [r, out]
        query, key, value: [in, H, D]   [in, r]      [r, H, D]
        out: [H, D, out]                [H, D, r]    [r, out]
        qkv, key_value: [in, n, H, D]   [in, n, r]   [n, r, H, D], a pair for each of the n

    with the axis of layers in front of all where blocks are stacked.

    What is trained is the optimizer's affair, as with any parameter: a rule for ".*/lora_[ab]". A
    kernel that is frozen has no gradient, since the low-rank products are those of activations.

    Attributes:
      kernels: regexes; a kernel gets factors if one matches its whole path
        ("language/blocks/language/attn/qkv/kernel").
      rank: of each product A B.
      alpha: A B is scaled by alpha / rank.
    """

    kernels: Sequence[str]
    rank: int
    alpha: float

    def __post_init__(self):
        if not self.kernels or self.rank < 1:
            raise ValueError(
                f"LoRA with kernels={self.kernels!r} and rank={self.rank}: give at least one regex "
                "and a rank of at least 1."
            )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def add(self, rng, params, dense: Mapping[str, Axes]) -> dict:
        """`params` with fresh factors beside every kernel that a regex matches.

        Args:
          params: nested dict; only its shapes matter.
          dense: the axes of the dense layers' kernels, see `layers.axes.Declared`.

        Raises:
          ValueError: there are factors already, or a regex matches no dense kernel, or matches
            that of a convolution; names each.
        """
        flat = trees.flatten(params)
        chosen = self._choose(flat, dense)
        for path, key in zip(chosen, jax.random.split(rng, len(chosen))):
            axes, (layers, shape) = dense[path], _layers(path, flat[path])
            inputs, rest = shape[: axes.inputs], shape[axes.inputs :]
            parts, outputs = rest[: axes.parts], rest[axes.parts :]
            bound = 1 / math.sqrt(math.prod(inputs))
            flat[_beside(path, "lora_a")] = jax.random.uniform(
                key, (*layers, *inputs, *parts, self.rank), jnp.float32, -bound, bound
            )
            flat[_beside(path, "lora_b")] = jnp.zeros(
                (*layers, *parts, self.rank, *outputs), jnp.float32
            )
            declare({_beside(path, name): MAY_STAY_WHOLE for name in FACTORS})
        return trees.unflatten(flat)

    def _choose(self, flat, dense: Mapping[str, Axes]) -> list[str]:
        """Paths of the kernels that get factors."""
        kernels = [path for path in flat if path.endswith("/kernel")]
        matched = {r: [p for p in kernels if re.fullmatch(r, p)] for r in self.kernels}
        chosen = sorted({path for paths in matched.values() for path in paths})
        problems = [f"{r!r} matches no dense kernel" for r, paths in matched.items() if not paths]
        problems += [
            f"{path} {tuple(flat[path].shape)} is the kernel of a convolution, matched by "
            f"{[r for r, paths in matched.items() if path in paths]}"
            for path in chosen
            if len(_layers(path, flat[path])[1]) != sum(dense.get(path, ()))
        ]
        problems += [f"{p} has factors already" for p in chosen if _beside(p, "lora_a") in flat]
        if problems:
            raise ValueError(
                "LoRA's kernels must be regexes of dense kernels:\n  " + "\n  ".join(problems)
            )
        return chosen

    def merge(self, params) -> dict:
        """`params` of the plain model: kernels W + (alpha / rank) A B, and no factors.

        Computed in fp32, a layer at a time; each kernel keeps its dtype.
        """
        flat = trees.flatten(params)
        for path in [_beside(p, "kernel") for p in flat if p.endswith("/lora_a")]:
            leaves = (flat[path], *(flat.pop(_beside(path, name)) for name in FACTORS))
            stacked = _layers(path, leaves[0])[0]
            merge = self._merge_layer
            flat[path] = jax.lax.map(merge, leaves) if stacked else merge(leaves)
        return trees.unflatten(flat)

    def _merge_layer(self, leaves):
        kernel, a, b = leaves
        parts = a.ndim + b.ndim - kernel.ndim - 2  # both have the rank, and the parts
        change = _expand(self.scale * a, b, parts, precision="highest")
        return (kernel + change).astype(kernel.dtype)

    @contextlib.contextmanager
    def active(self):
        """A context in which dense layers whose parameters have factors use them.

        It acts while a model is called or traced. Compiled functions may be called in it, or enter
        it; those that were compiled outside of it, or for another scale, are compiled anew. Outside
        of it factors are not used, and Flax may refuse them as a parameter's wrong shape.
        """
        around = []  # of each running module that has stacked blocks, these, flattened

        def intercept(call, args, kwargs, context):
            module = context.module
            if isinstance(module, (nn.Dense, nn.DenseGeneral)):
                y = call(*args, **kwargs)
                return self._dense(module, around, y, *args, **kwargs)
            if module.scope is None or not module.has_variable("params", "blocks"):
                return call(*args, **kwargs)
            around.append(trees.flatten(module.get_variable("params", "blocks")))
            try:
                return call(*args, **kwargs)
            finally:
                around.pop()

        with _SCALE(self.scale), nn.intercept_methods(intercept):
            yield

    def _dense(self, module, around, y, inputs):
        """What a dense layer returns whose kernel alone gives `y`."""
        if module.is_initializing():
            # Flax compares stacked blocks with what their initialiser would make, leaf by leaf, so
            # this must make factors where the given blocks have some.
            given = around[-1] if around else {}
            for name in FACTORS:
                leaf = given.get("/".join((*module.path, name)))
                if leaf is not None:
                    module.param(name, nn.initializers.zeros, leaf.shape[1:])
            return y
        if not module.has_variable("params", "lora_a"):
            return y
        a, b = (module.get_variable("params", name) for name in FACTORS)
        summed, dtype = inputs_of(module), module.dtype or y.dtype
        x, a, b = (array.astype(dtype) for array in (inputs, self.scale * a, b))
        low = jnp.tensordot(x, a, summed, precision=module.precision)
        # Logits are summed up in more than the layer's dtype.
        options = {"precision": module.precision, "preferred_element_type": y.dtype}
        return y + _expand(low, b, a.ndim - summed - 1, **options)


def _beside(path: str, name: str) -> str:
    return f"{path.rpartition('/')[0]}/{name}"


def _layers(path: str, leaf) -> tuple[tuple, tuple]:
    """The shape of a parameter: (that of stacked layers, that in one layer)."""
    count = 1 if re.search(r"\bblocks/", path) else 0
    return leaf.shape[:count], leaf.shape[count:]


def _expand(low, b, parts: int, **options):
    """[..., r] times [r, ...]; with an axis of parts, [..., n, r] times [n, r, ...]."""
    if parts:
        return jnp.einsum("...nr,nrhd->...nhd", low, b, **options)
    return jnp.tensordot(low, b, 1, **options)
