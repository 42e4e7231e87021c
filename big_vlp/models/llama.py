"""LLaMA (arXiv 2302.13971), whose blocks may have a second set of weights for image tokens: the
visual expert of CogVLM (arXiv 2311.03079, section 2.1)."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vlp.models.layers.attention import attention, attention_over_cache, drop, fold_in
from big_vlp.models.layers.axes import inputs, outputs
from big_vlp.models.layers.head import Head
from big_vlp.models.layers.remat import named, rematerialised
from big_vlp.models.layers.rope import rope_angles, rotate
from big_vlp.models.layers.stack import blocks_of, init_blocks, run_blocks, unstack
from big_vlp.models.layers.transformer import normal
from big_vlp.parallel import meshes

EXPERT_PARTS = ("qkv", "out", "mlp")
INIT = normal(0.02)

# Which weights handle which token: None, those for language all; (start, stop), the visual expert
# the positions start..stop-1 of every row; bool[B, T], the visual expert where it holds.
Route = None | tuple[int, int] | jax.Array


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
        return dense(x.shape[-1], name="down")(jax.nn.silu(gate) * up)


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


def by_expert(route: Route, language, vision, x):
    """Applies `language` or `vision` to each token of [B, T, ...]; both return trees of such.

    A span costs what one function costs; a mask costs both.
    """
    if route is None:
        return language(x)
    if isinstance(route, tuple):
        start, stop = route
        text = language(jnp.concatenate([x[:, :start], x[:, stop:]], axis=1))
        image = vision(x[:, start:stop])
        return jax.tree.map(
            lambda t, i: jnp.concatenate([t[:, :start], i, t[:, start:]], axis=1), text, image
        )

    def choose(image, text):
        mask = route.reshape(route.shape + (1,) * (image.ndim - 2))
        return jnp.where(mask, image, text)

    return jax.tree.map(choose, vision(x), language(x))


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

    def _part(self, name, route, x):
        route = route if name in self.expert_parts else None
        language = functools.partial(self.language.part, name)
        return by_expert(route, language, functools.partial(self.vision.part, name), x)

    def __call__(self, x, angles, route: Route, spans, dropout=None):
        """[B, T, W] -> ([B, T, W], (key, value) [B, T, K, D] each, rotated).

        Args:
          angles: of `rope_angles`.
          spans: of `attention`; what else is seen is causal.
          dropout: of `attention.drop`, with keys of this block's own.
        """
        query, key, value = self._part("qkv", route, self.norm1(x))
        query, key = rotate(query, angles), rotate(key, angles)
        of_weights, of_output = fold_in(dropout, 0), fold_in(dropout, 1)
        heads = attention(query, key, value, causal=True, spans=spans, dropout=of_weights)
        x = x + drop(self._part("out", route, heads), of_output)
        return x + self._part("mlp", route, self.norm2(x)), (key, value)

    def decode(self, x, angles, cache, lengths):
        """As `__call__` for one new language token [B, 1, W] behind a cache (key, value)."""
        query, key, value = self._part("qkv", None, self.norm1(x))
        query, key = rotate(query, angles), rotate(key, angles)
        heads = attention_over_cache(query, key, value, *cache, lengths)
        x = x + self._part("out", None, heads)
        return x + self._part("mlp", None, self.norm2(x)), (key, value)


class Llama(nn.Module):
    """Causal language model; token embeddings and the output layer are not tied.

    Blocks are stacked under "blocks": "norm1", "norm2", "language" and, with experts, "vision",
    whose leading axis is shorter where not every block has an expert.

    Attributes:
      kv_heads: heads of keys and values; None is `heads`.
      rope_base: wavelength base of the rotary embeddings.
      pad_id: id whose embedding gets no gradient; None: all get one.
      expert_parts: what the visual experts have of their own, out of EXPERT_PARTS; () for none.
      expert_every: n: blocks 0, n, 2n, ... have an expert. (Most of one in the last block would
        get no gradient: no image token predicts.)
      expert_qkv_bias: CogVLM2's experts have a bias at query, key and value.
      dropout: share that `__call__` with `dropout_keys` drops of the attention's probabilities and
        of what the attention adds.
      unroll, remat: how the blocks are executed, see `models.layers.transformer.Transformer`.
    """

    tensor_axes = outputs("head", must=False)  # by tokens, as a classifier by classes

    vocab_size: int
    width: int
    layers: int
    heads: int
    mlp_dim: int
    kv_heads: int | None = None
    rope_base: float = 10000.0
    norm_epsilon: float = 1e-5
    pad_id: int | None = 0
    expert_parts: tuple[str, ...] = ()
    expert_every: int = 1
    expert_qkv_bias: bool = False
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    unroll: bool | int = False
    remat: str | None = None

    def setup(self):
        kv_heads = self.kv_heads or self.heads
        if self.width % self.heads or self.heads % kv_heads or self.width // self.heads % 2:
            raise ValueError(
                f"width={self.width}, heads={self.heads}, kv_heads={kv_heads}: kv_heads must "
                "divide heads, and heads the width into even parts."
            )
        unknown = [part for part in self.expert_parts if part not in EXPERT_PARTS]
        if unknown:
            raise ValueError(f"expert_parts has {unknown}; choose out of {EXPERT_PARTS}.")
        if self.expert_every < 1 or self.layers % self.expert_every:
            raise ValueError(f"expert_every={self.expert_every} must divide layers={self.layers}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1.")
        self.token_embedding = nn.Embed(self.vocab_size, self.width, embedding_init=INIT)
        self.blocks = blocks_of(self, self._init_blocks)
        self.norm = RMSNorm(self.norm_epsilon, self.dtype)
        self.head = Head(self.vocab_size, use_bias=False, dtype=self.dtype, kernel_init=INIT)

    @property
    def _block(self):
        # No parent: the block is a pure function of its slice of the stacked parameters.
        return DecoderBlock(
            self.heads,
            self.kv_heads or self.heads,
            self.width,
            self.mlp_dim,
            self.norm_epsilon,
            self.expert_parts,
            self.expert_qkv_bias,
            self.dtype,
            parent=None,
        )

    def _init_blocks(self, rng):
        x = jnp.zeros((1, 1, self.width))
        angles = self._angles(jnp.zeros((1, 1), jnp.int32))
        route = jnp.ones((1, 1), bool)  # creates both experts
        blocks = init_blocks(rng, self._block, self.layers, x, angles, route, None)
        if "vision" in blocks:
            blocks["vision"] = jax.tree.map(lambda a: a[:: self.expert_every], blocks["vision"])
        return blocks

    @property
    def _shared(self):
        """What all blocks have: everything but the visual experts."""
        return {name: value for name, value in self.blocks.items() if name != "vision"}

    def _angles(self, positions):
        return rope_angles(positions, self.width // self.heads, self.rope_base)

    def embed(self, tokens):
        """Ids i32[B, T] -> [B, T, W]."""
        x = self.token_embedding(tokens)
        if self.pad_id is not None:
            x = jnp.where((tokens == self.pad_id)[..., None], jax.lax.stop_gradient(x), x)
        return x.astype(self.dtype)

    def __call__(
        self,
        x,
        positions,
        route: Route = None,
        spans=None,
        keep_cache: bool = False,
        dropout_keys=None,
    ):
        """Embedded tokens [B, T, W] -> ([B, T, W] after the final norm, cache).

        Sows "block_outputs" [L, B, T, W], before that norm, where this is asked for.

        Args:
          positions: ids i32[B, T].
          route: which tokens the visual experts handle, see `Route`.
          spans: which tokens see later ones, too, see `attention`; None: none do.
          keep_cache: else the cache is None; it is {"key", "value"} [L, B, T, K, D].
          dropout_keys: for training, a key a row, see `attention.drop`; None: without dropout.
        """
        use_dropout = self.dropout > 0 and dropout_keys is not None
        if use_dropout and jnp.shape(dropout_keys)[:1] != x.shape[:1]:
            raise ValueError(
                f"dropout_keys of shape {jnp.shape(dropout_keys)} do not fit {x.shape[0]} rows: "
                "give one key a row, as of jax.random.split(key, rows)."
            )
        dropout = (self.dropout, dropout_keys) if use_dropout else None
        block, angles = self._block, self._angles(positions)
        keep_outputs = self.is_mutable_collection("intermediates")

        def layer(x, params, number, route):
            of_layer = fold_in(dropout, number)
            x, cache = block.apply({"params": params}, x, angles, route, spans, of_layer)
            kept = {"key": cache[0], "value": cache[1]} if keep_cache else {}
            return x, kept | ({"x": x} if keep_outputs else {})

        # The routes differ in a group, and may be Python's numbers, which a checkpoint would trace.
        with_expert, without = (
            rematerialised(functools.partial(layer, route=r), self.remat, self.unroll)
            for r in (route, None)
        )

        def group(x, params):
            shared, numbers, experts = params
            outputs = []
            layers = unstack((shared, numbers), self.expert_every)
            for i, (of_layer, number) in enumerate(layers):
                x = meshes.keep_over_batch(x)
                if i == 0:
                    x, output = with_expert(x, of_layer | experts, number)
                else:
                    x, output = without(x, of_layer, number)
                outputs.append(output)
            return x, jax.tree.map(lambda *pieces: jnp.stack(pieces), *outputs)

        groups = self.layers // self.expert_every
        experts = {name: value for name, value in self.blocks.items() if name == "vision"}
        grouped = jax.tree.map(
            lambda a: a.reshape(groups, self.expert_every, *a.shape[1:]),
            (self._shared, jnp.arange(self.layers)),
        )
        x, outputs = run_blocks(group, x, (*grouped, experts), groups, self.unroll)
        outputs = jax.tree.map(lambda a: a.reshape(self.layers, *a.shape[2:]), outputs)
        if keep_outputs:
            self.sow("intermediates", "block_outputs", outputs.pop("x"))
        return self.norm(x), outputs or None

    def logits(self, x):
        """[..., W] after the final norm -> f32[..., vocab_size]."""
        return self.head(x)

    def decode(self, cache, token, position, lengths):
        """One step of generation.

        Args:
          cache: {"key", "value"} [L, B, S, K, D], S > lengths.
          token: ids i32[B], language.
          position: its position id i32[B].
          lengths: i32[B], filled positions of each row's cache; the token's key goes behind them.

        Returns:
          (logits of the next token f32[B, vocab_size], cache with this token).
        """
        block, angles = self._block, self._angles(position[:, None])

        def body(x, inputs):
            params, key, value = inputs
            return block.apply(
                {"params": params}, x, angles, (key, value), lengths, method="decode"
            )

        x = self.embed(token[:, None])
        inputs = (self._shared, cache["key"], cache["value"])
        x, (key, value) = run_blocks(body, x, inputs, self.layers, self.unroll)
        rows = jnp.arange(token.shape[0])
        cache = {
            name: cache[name].at[:, rows, lengths].set(new[:, :, 0])
            for name, new in (("key", key), ("value", value))
        }
        return self.logits(self.norm(x))[:, 0], cache


def extend_cache(cache, length: int):
    """A cache [L, B, T, K, D] with room for `length` positions."""
    return jax.tree.map(
        lambda a: jnp.pad(a, ((0, 0), (0, 0), (0, length - a.shape[2]), (0, 0), (0, 0))), cache
    )
