"""LLaMA (arXiv 2302.13971), whose blocks may have visual experts."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vlp.models.decoder import (
    EXPERT_PARTS,
    INIT,
    DecoderBlock,
    RMSNorm,
    Route,
    apart,
    together,
)
from big_vlp.models.layers.attention import fold_in
from big_vlp.models.layers.axes import outputs
from big_vlp.models.layers.head import Head
from big_vlp.models.layers.remat import rematerialised
from big_vlp.models.layers.rope import rope_angles
from big_vlp.models.layers.stack import blocks_of, init_blocks, run_blocks, unstack
from big_vlp.parallel import meshes


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

    def _block(self, expert_parts: tuple[str, ...]) -> DecoderBlock:
        # No parent: the block is a pure function of its slice of the stacked parameters.
        return DecoderBlock(
            self.heads,
            self.kv_heads or self.heads,
            self.width,
            self.mlp_dim,
            self.norm_epsilon,
            expert_parts,
            self.expert_qkv_bias,
            self.dtype,
            parent=None,
        )

    def _init_blocks(self, rng):
        x, route = jnp.zeros((1, 1, self.width)), (0, 1)  # two streams create both experts
        angles = self._angles(jnp.zeros((1, 1), jnp.int32))
        block = self._block(self.expert_parts)
        blocks = init_blocks(rng, block, self.layers, apart(route, x), angles, route, None)
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
        segments=None,
    ):
        """Embedded tokens [B, T, W] -> ([B, T, W] after the final norm, cache).

        Sows "block_outputs" [L, B, T, W], before that norm, where this is asked for.

        Args:
          positions: ids i32[B, T].
          route: which tokens the visual experts handle, see `Route`.
          spans: which tokens see later ones, too, see `attention`; None: none do.
          keep_cache: else the cache is None; it is that of `empty_cache`, filled.
          dropout_keys: for training, a key a row, see `attention.drop`; None: without dropout.
          segments: which tokens of a row may see each other, see `attention`; None: all.
        """
        use_dropout = self.dropout > 0 and dropout_keys is not None
        if use_dropout and jnp.shape(dropout_keys)[:1] != x.shape[:1]:
            raise ValueError(
                f"dropout_keys of shape {jnp.shape(dropout_keys)} do not fit {x.shape[0]} rows: "
                "give one key a row, as of jax.random.split(key, rows)."
            )
        dropout = (self.dropout, dropout_keys) if use_dropout else None
        angles = self._angles(positions)
        keep_outputs = self.is_mutable_collection("intermediates")
        route = route if self.expert_parts else None

        def layer(expert_parts):
            block = self._block(expert_parts)

            def run(streams, params, number):
                of_layer = fold_in(dropout, number)
                streams, (key, value) = block.apply(
                    {"params": params}, streams, angles, route, spans, segments, of_layer
                )
                return streams, {"key": key, "value": value} if keep_cache else None

            return rematerialised(run, self.remat, self.unroll)

        with_expert, without = layer(self.expert_parts), layer(())

        def group(carry, params):
            (streams, cache), (shared, numbers, experts) = carry, params
            outputs = []
            layers = unstack((shared, numbers), self.expert_every)
            for i, (of_layer, number) in enumerate(layers):
                streams = tuple(map(meshes.keep_over_batch, streams))
                if i == 0:
                    streams, new = with_expert(streams, of_layer | experts, number)
                else:
                    streams, new = without(streams, of_layer, number)
                if keep_cache:
                    cache = jax.tree.map(
                        lambda a, b, at=number: jax.lax.dynamic_update_index_in_dim(a, b, at, 0),
                        *(cache, new),
                    )
                if keep_outputs:
                    outputs.append(together(route, streams))
            return (streams, cache), jnp.stack(outputs) if keep_outputs else None

        groups = self.layers // self.expert_every
        experts = {name: value for name, value in self.blocks.items() if name == "vision"}
        grouped = jax.tree.map(
            lambda a: a.reshape(groups, self.expert_every, *a.shape[1:]),
            (self._shared, jnp.arange(self.layers)),
        )
        carry = apart(route, x), self.empty_cache(*x.shape[:2]) if keep_cache else None
        inputs = (*grouped, experts)
        (streams, cache), outputs = run_blocks(group, carry, inputs, groups, self.unroll)
        if keep_outputs:
            outputs = outputs.reshape(self.layers, *outputs.shape[2:])
            self.sow("intermediates", "block_outputs", outputs)
        return self.norm(together(route, streams)), cache

    def empty_cache(self, rows: int, length: int):
        """{"key", "value"}: zeros [L, rows, length, K, D], split over an ambient mesh by rows and
        heads where it divides these."""
        kv_heads = self.kv_heads or self.heads
        shape = (self.layers, rows, length, kv_heads, self.width // self.heads)
        return {
            name: meshes.keep(jnp.zeros(shape, self.dtype), None, meshes.BATCH_AXES, None, "tensor")
            for name in ("key", "value")
        }

    def logits(self, x):
        """[..., W] after the final norm -> f32[..., vocab_size]."""
        return self.head(x)

    def decode(self, prompts, written, token, position, lengths, step):
        """One step of generation. The prompts' cache is only read; the other is for new tokens.

        Args:
          prompts: {"key", "value"} [L, P, S, K, D], where P divides B: B / P consecutive rows go on
            from the same prompt.
          written: of `empty_cache`, [L, B, N, K, D]; all rows have filled `step` positions of N.
          token: ids i32[B], language.
          position: its position id i32[B].
          lengths: i32[P], without padding, of each prompt.
          step: i32[], below N.

        Returns:
          (logits of the next token f32[B, vocab_size], `written` with this token).
        """
        block, angles = self._block(()), self._angles(position[:, None])

        def body(x, inputs):
            params, *caches = inputs
            return block.apply(
                {"params": params}, x, angles, *caches, lengths, step, method="decode"
            )

        x = meshes.keep(self.embed(token[:, None]), "data")
        inputs = (self._shared, prompts, written)
        x, new = run_blocks(body, x, inputs, self.layers, self.unroll)
        written = jax.tree.map(
            lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, step, axis=2), written, new
        )
        # By tokens, as the kernel of the last layer is, which stays where it is.
        logits = self.logits(meshes.keep(self.norm(x), "data"))[:, 0]
        return meshes.keep(logits, "data", ("fsdp", "tensor")), written
