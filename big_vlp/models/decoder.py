"""A decoder's block with one or two sets of weights: the second is the visual expert of CogVLM
(arXiv 2311.03079, section 2.1)."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vlp.models.layers.activations import silu
from big_vlp.models.layers.attention import attention, attention_over_cache, drop, fold_in
from big_vlp.models.layers.axes import inputs, outputs
from big_vlp.models.layers.remat import named
from big_vlp.models.layers.rope import rotate
from big_vlp.models.layers.transformer import normal
from big_vlp.parallel import meshes

EXPERT_PARTS = ("qkv", "out", "mlp")
INIT = normal(0.02)


class Places(NamedTuple):
    """Which positions of each row are text and which image: the first `text` of `order` and the
    others. All streams are as long as those of other rows; `layout.stream_order` makes them.

    Attributes:
      order: i32[B, T], the positions of every row in the order of its streams.
      back: i32[B, T], where in `order` each position is.
      text: how many there are in the text stream.
    """

    order: jax.Array
    back: jax.Array
    text: int


# Which tokens the visual experts handle, the image stream: None, none; (start, stop), the positions
# start..stop-1 of every row; else those of each row by itself.
Route = None | tuple[int, int] | Places


class RMSNorm(nn.Module):
    """x / rms(x) * scale, all in fp32 and rounded once (as CogVLM; others round before `scale`)."""

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        """[..., W] -> [..., W]."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + self.epsilon)
        return (x * scale).astype(self.dtype)


class Attention(nn.Module):
    """The projections of attention.

    With as many key as query heads they are fused as `qkv/kernel` [width, 3, heads, head_dim]; else
    there are `query/kernel` and `key_value/kernel` [width, 2, kv_heads, head_dim].
    """

    tensor_axes = outputs("qkv", -2) | inputs("out", -3)  # by heads
    tensor_axes |= outputs("query", -2) | outputs("key_value", -2)
    fused_layers = ("qkv", "key_value")

    heads: int
    kv_heads: int
    width: int
    qkv_bias: bool
    dtype: jnp.dtype

    def setup(self):
        def dense(features, axis=-1, use_bias=False):
            return nn.DenseGeneral(
                features, axis=axis, use_bias=use_bias, dtype=self.dtype, kernel_init=INIT
            )

        head_dim = self.width // self.heads
        if self.kv_heads == self.heads:
            self.qkv = dense((3, self.heads, head_dim), use_bias=self.qkv_bias)
        else:
            self.query = dense((self.heads, head_dim), use_bias=self.qkv_bias)
            self.key_value = dense((2, self.kv_heads, head_dim), use_bias=self.qkv_bias)
        self.out = dense(self.width, axis=(-2, -1))

    def project(self, x):
        """[B, T, W] -> query [B, T, H, D], key and value [B, T, K, D], not rotated."""
        if self.kv_heads == self.heads:
            qkv = named(self.qkv(x), "qkv")
            return tuple(qkv[:, :, i] for i in range(3))
        query, key_value = named((self.query(x), self.key_value(x)), "qkv")
        return query, key_value[:, :, 0], key_value[:, :, 1]

    def merge(self, heads):
        """[B, T, H, D] -> [B, T, W]."""
        return named(self.out(heads), "out")


class GatedMlp(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) * up(x)), without biases."""

    tensor_axes = outputs("gate") | outputs("up") | inputs("down")  # by hidden units

    mlp_dim: int
    dtype: jnp.dtype
    kernel_init: Callable = INIT

    @nn.compact
    def __call__(self, x):
        """[..., W] -> [..., W]."""
        dense = functools.partial(
            nn.Dense, use_bias=False, dtype=self.dtype, kernel_init=self.kernel_init
        )
        gate, up = named([dense(self.mlp_dim, name=name)(x) for name in ("gate", "up")], "hidden")
        return dense(x.shape[-1], name="down")(silu(gate) * up)


class Expert(nn.Module):
    """One set of a block's weights; only the parts that are called get some."""

    heads: int
    kv_heads: int
    width: int
    mlp_dim: int
    qkv_bias: bool
    dtype: jnp.dtype

    def setup(self):
        self.attn = Attention(self.heads, self.kv_heads, self.width, self.qkv_bias, self.dtype)
        self.mlp = GatedMlp(self.mlp_dim, self.dtype)

    def part(self, name: str, x):
        """One of EXPERT_PARTS."""
        if name == "qkv":
            return self.attn.project(x)
        return self.attn.merge(x) if name == "out" else self.mlp(x)


def apart(route: Route, x) -> tuple:
    """The streams of [B, T, ...]: (text [B, T - N, ...], image [B, N, ...]), without a route the
    whole."""
    if route is None:
        return (x,)
    if isinstance(route, Places):
        x = reordered(x, route.order, route.back)
        return x[:, : route.text], x[:, route.text :]
    start, stop = route
    return jnp.concatenate([x[:, :start], x[:, stop:]], axis=1), x[:, start:stop]


def together(route: Route, streams: tuple):
    """What `apart` took apart."""
    if route is None:
        return streams[0]
    if isinstance(route, Places):
        return reordered(jnp.concatenate(streams, axis=1), route.back, route.order)
    text, image = streams
    start, _ = route
    return jnp.concatenate([text[:, :start], image, text[:, start:]], axis=1)


@jax.custom_vjp
def reordered(x, order, back):
    """x[b, order[b]] of every row b of [B, T, ...]; `back` is the inverse. So the gradient is read
    from its place, too, and no device adds up what is scattered."""
    return jax.vmap(lambda row, at: row.at[at].get(mode="promise_in_bounds"))(x, order)


reordered.defvjp(
    lambda x, order, back: (reordered(x, order, back), (order, back)),
    lambda orders, upstream: (reordered(upstream, *orders[::-1]), None, None),
)


class DecoderBlock(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x)), with one or two sets of weights.

    Norms are shared. Attributes as those of `Llama`.
    """

    heads: int
    kv_heads: int
    width: int
    mlp_dim: int
    norm_epsilon: float
    expert_parts: tuple[str, ...]
    expert_qkv_bias: bool
    dtype: jnp.dtype

    def setup(self):
        sizes = (self.heads, self.kv_heads, self.width, self.mlp_dim)
        self.norm1 = RMSNorm(self.norm_epsilon, self.dtype)
        self.norm2 = RMSNorm(self.norm_epsilon, self.dtype)
        self.language = Expert(*sizes, qkv_bias=False, dtype=self.dtype)
        self.vision = Expert(*sizes, qkv_bias=self.expert_qkv_bias, dtype=self.dtype)

    def _part(self, name: str, streams: tuple) -> tuple:
        """One of EXPERT_PARTS of every stream: each token goes through one set of weights."""
        text, *image = streams
        expert = self.vision if name in self.expert_parts else self.language
        return self.language.part(name, text), *(expert.part(name, x) for x in image)

    def __call__(self, streams: tuple, angles, route: Route, spans, segments=None, dropout=None):
        """Streams of [B, T, W], see `apart`, -> (streams, (key, value) [B, T, K, D] each, rotated).

        They meet in attention only.

        Args:
          angles: of `rope_angles`.
          spans, segments: of `attention`; what else is seen is causal.
          dropout: of `attention.drop`, with keys of this block's own.
        """
        qkv = self._part("qkv", tuple(map(self.norm1, streams)))
        query, key, value = (together(route, parts) for parts in zip(*qkv))
        query, key = rotate(query, angles), rotate(key, angles)
        of_weights, of_output = fold_in(dropout, 0), fold_in(dropout, 1)
        heads = attention(
            query, key, value, causal=True, spans=spans, segments=segments, dropout=of_weights
        )
        added = self._part("out", apart(route, heads))
        positions = jnp.broadcast_to(jnp.arange(heads.shape[1]), heads.shape[:2])
        streams = tuple(
            x + drop(y, of_output, own)
            for x, y, own in zip(streams, added, apart(route, positions))
        )
        added = self._part("mlp", tuple(map(self.norm2, streams)))
        return tuple(map(jnp.add, streams, added)), (key, value)

    def decode(self, x, angles, prompts, written, lengths, step):
        """As `__call__` for one new language token [B, 1, W] of each row; see `Llama.decode`.

        On a mesh a kernel stays in its parts, whichever axis they split: the few rows go to it. All
        of them are on every device of "fsdp", but in attention, whose caches are split by rows.

        Args:
          prompts, written: {"key", "value"} of this block: [P, S, K, D], [B, N, K, D].
        """

        def whole(heads):
            return meshes.keep(heads, "data", None, "tensor")

        # Not by rows at once: the compiler would bring the kernel to the rows.
        query, key, value = map(whole, self.language.part("qkv", self.norm1(x)))
        query, key = rotate(query, angles), rotate(key, angles)
        caches = ((cache["key"], cache["value"]) for cache in (prompts, written))
        heads = attention_over_cache(query, key, value, *caches, lengths, step)
        x = meshes.keep(x + self.language.part("out", whole(heads)), "data")
        x = meshes.keep(x + self.language.part("mlp", self.norm2(x)), "data")
        return x, {"key": key, "value": value}
