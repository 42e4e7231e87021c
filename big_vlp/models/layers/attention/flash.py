"""Attention by the kernel for TPUs that comes with jax ("splash")."""

import jax
import jax.numpy as jnp
import numpy as np

from big_vlp.models.layers.attention import split

# Sizes of a block of queries or keys; the kernel wants multiples of 128, and two blocks' logits of
# the largest, fp32, are 3 MB of a TPU core's 16 MB or more. Not measured.
BLOCKS = (256, 384, 512, 640)


def refusal(platform: str, query, key, spans) -> str | None:
    """What the kernel takes where it does not take this; None: it does."""
    if platform != "tpu":
        return "TPUs"
    try:
        _splash()
    except ImportError as error:
        return f"a jax that has it ({error})"
    if query.dtype != jnp.bfloat16:
        return "bfloat16"
    if spans is not None and not isinstance(spans, tuple):
        return "spans that are the same in all rows"
    return split.refusal(query, key)


def attention(
    query, key, value, *, causal: bool, spans=None, segments=None, interpret: bool = False
):
    """As `attention.attention`, for what `refusal` does not refuse.

    What the backward pass needs is named "attention", see `layers.remat`.

    Args:
      interpret: whether to run the kernel step by step in jax, on any platform: for tests.
    """
    lengths = query.shape[1], key.shape[1]
    queries, keys = sizes = tuple(map(_padded, lengths))
    scaled = (query.astype(jnp.float32) * query.shape[-1] ** -0.5).astype(query.dtype)

    def on_device(query, key, value, *segments):  # own rows and heads
        kernel = _kernel(sizes, query.shape[2], causal, spans, interpret)

        def laid_out(x, size):  # [B, T, H, D] -> [B, H, size, D]
            return jnp.pad(x, ((0, 0), (0, size - x.shape[1]), (0, 0), (0, 0))).swapaxes(1, 2)

        def numbers(own, size, length):  # nothing real sees padding, nor padding what is real
            own = jnp.ones(length, jnp.int32) if own is None else own
            return jnp.pad(own, (0, size - length), constant_values=-1)

        def of_row(query, key, value, own=None):
            if own is None and lengths == sizes:
                return kernel(query, key, value)
            both = (numbers(own, *of) for of in zip(sizes, lengths))
            return kernel(query, key, value, _splash()[0].SegmentIds(*both))

        arrays = laid_out(query, queries), laid_out(key, keys), laid_out(value, keys)
        out = jax.vmap(of_row)(*arrays, *segments)
        return out.swapaxes(1, 2)[:, : lengths[0]]

    more = () if segments is None else (segments,)
    return split.over_devices(on_device, scaled, key, value, *more)


def _splash():
    """(kernels, masks) of jax. A module of its experiments, which may move."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    return splash_attention_kernel, splash_attention_mask


def _block(length: int) -> int:
    """The block that pads rows of this length least; of several the largest."""
    return min(BLOCKS, key=lambda size: (-(-length // size) * size, -size))


def _padded(length: int) -> int:
    size = _block(length)
    return -(-length // size) * size


def _kernel(shape: tuple[int, int], heads: int, causal: bool, spans, interpret: bool):
    """The kernel for so many queries and keys, both whole blocks."""
    kernels, masks = _splash()
    mask = (masks.CausalMask if causal else masks.FullMask)(shape)
    if spans is not None:
        seen = np.tri(*shape, dtype=bool)
        seen[slice(*spans), slice(*spans)] = True
        mask = masks.NumpyMask(seen)
    query, key = map(_block, shape)
    sizes = kernels.BlockSizes(
        block_q=query,
        block_kv=key,
        block_q_dkv=query,
        block_kv_dkv=key,
        block_q_dq=query,
        block_kv_dq=key,
    )
    return kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="attention",
        interpret=interpret,
    )
