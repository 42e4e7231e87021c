"""A whole COSMOS training step against the same towers run naively, on this CPU, in fp32.

Both sides train the same parameters on the same pixels and captions, with the same optimizer and
teacher update, and give the same loss (shown). Ours is the step the loop runs. The naive side is
written like the formulas (arXiv 2412.01814, section 3): every view goes through its tower in a call
of its own, the poolers get a copy of the first view's tokens for each query and project each copy,
and each of the 16 + 64 pairs of views has its own [batch, batch] logits. Its towers, poolers, pairs
and update are compiled, the order of their calls is Python's, as in an eager framework. Widths,
heads, crops and captions are those of ViT-B/32; depth and batch are cut for a laptop.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from big_vlp import recipes, trees
from big_vlp.methods import cosmos
from big_vlp.methods.shared import pairs as shared_pairs
from big_vlp.models.two_towers import l2_normalise
from big_vlp.run import step
from big_vlp.run.optim import make_optimizer
from input_pipeline.preprocess import Preprocess
from tests.benchmarks.clip_step import ADAMW
from tests.benchmarks.common import interleaved

END_OF_TEXT = 49_407


def measure(
    batch: int = 4, layers: int = 2, short: int = 32, repeats: int = 2, tiny: bool = False
) -> list[dict]:
    """Args: samples; blocks of each tower; tokens of the local captions in the row where ours
    computes no more; steps that count; tiny=true for towers of width 32 on 64 pixels."""
    naive = method_of(Naive, layers, (), tiny)
    groups = {77: (), short: ((1.0, short),)}
    samples = {n: samples_of(naive.preprocess.image_size, batch, n) for n in groups}
    sides = {
        n: training_step(method_of(cosmos.Method, layers, groups[n], tiny), samples[n])
        for n in groups
    }
    # It knows whole captions only, so one naive step stands for both lengths.
    sides["naive"] = naive_step(naive, samples[77])
    loss = {name: side() for name, side in sides.items()}
    times = interleaved(sides, repeats)
    return [
        {
            "case": f"local captions of {length} tokens",
            "ours_wall_s": times[length]["wall_s"],
            "naive_wall_s": times["naive"]["wall_s"],
            "wall_ratio": times["naive"]["wall_s"] / times[length]["wall_s"],
            "cpu_ratio": times["naive"]["cpu_s"] / times[length]["cpu_s"],
            "loss": loss[length],
            "naive_loss": loss["naive"] if length == 77 else "(other captions)",
        }
        for length in groups
    ]


def method_of(cls, layers: int, text_groups: tuple, tiny: bool):
    widths = ({"width": 32, "heads": 2}, {"width": 32, "heads": 2}) if tiny else ({}, {})
    return cls(
        preprocess=Preprocess(image_size=64 if tiny else 224, tokenizer="clip", context_length=77),
        model={
            "image": {**recipes.IMAGE_TOWERS["vitb32"], "layers": layers, **widths[0]},
            "text": {**recipes.TEXT_TOWER, "layers": layers, **widths[1]},
            "embed_dim": 32 if tiny else 512,
        },
        ema_decay=0.999,
        dtype="float32",
        text_groups=text_groups,
    )


def samples_of(image_size: int, batch: int, longest: int) -> dict[str, np.ndarray]:
    """Random views; global captions are full, the longest local one has `longest` tokens."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, END_OF_TEXT - 1, (batch, 8, 77), dtype=np.int32)
    tokens[:, :2, -1] = END_OF_TEXT
    tokens[:, 2:, longest - 1], tokens[:, 2:, longest:] = END_OF_TEXT, 0

    def pixels(views, size):
        return rng.integers(0, 256, (batch, views, size, size, 3), dtype=np.uint8)

    return {
        "global_images": pixels(2, image_size),
        "local_images": pixels(6, 96 if image_size > 96 else 32),
        "tokens": tokens,
    }


def training_step(method, samples):
    """A function that makes one training step and returns its loss."""
    optimizer = make_optimizer(**ADAMW, total_steps=1000, warmup_steps=100)
    key = jax.random.key(0)
    state = [jax.jit(step.make_init(method, optimizer))(key)]
    train_step = jax.jit(step.make_train_step(method, optimizer), donate_argnums=0)
    samples = jax.tree.map(jnp.asarray, samples)

    def run():
        state[0], metrics = train_step(state[0], samples, 0, key)
        jax.block_until_ready(state[0])
        return float(metrics["loss"])

    return run


def naive_step(method, samples):
    """The same for the naive side."""
    optimizer = make_optimizer(**ADAMW, total_steps=1000, warmup_steps=100)
    key = jax.random.key(0)
    state = [jax.jit(step.make_init(method, optimizer))(key)]
    samples = jax.tree.map(jnp.asarray, samples)

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state, grads):
        old, averaged, opt = (state[name] for name in ("model", "averaged", "opt"))
        new, moments = optimizer.update(grads, opt["moments"], old, 0)
        new, averaged = method.after_update(old, new, averaged, 0)
        return {**state, "model": new, "averaged": averaged, "opt": {**opt, "moments": moments}}

    def run():
        def loss(model):
            rng = jax.random.fold_in(key, 0)
            return method.loss(model, {}, state[0]["averaged"], {}, samples, rng=rng, step=0)[0]

        value, grads = jax.value_and_grad(loss)(state[0]["model"])
        state[0] = update(state[0], grads)
        jax.block_until_ready(state[0])
        return float(value)

    return run


@dataclasses.dataclass(frozen=True)
class Naive(cosmos.Method):
    """COSMOS written like its formulas, a compiled program for each of its parts."""

    @functools.cached_property
    def call(self):
        @functools.partial(jax.jit, static_argnums=1)
        def call(params, module, *args):
            return shared_pairs.apply(
                self.network, params, lambda model: getattr(model, module)(*args)
            )

        return call

    @functools.cached_property
    def images(self):
        return jax.jit(self.model_images)

    def loss(self, trainable, frozen, averaged, state, batch, *, rng, step):
        del step
        student, teacher = trees.merge(trainable, frozen), trees.merge(averaged, frozen)
        call, images = self.call, self.images(batch, shared_pairs.with_keys(batch, rng)["key"])
        crops = [x for kind in images.values() for x in jnp.moveaxis(kind, 1, 0)]
        captions = list(jnp.moveaxis(batch["tokens"], 1, 0))
        image = [call(student, "image_tower", x) for x in crops]
        text = [call(student, "text_tower", x) for x in captions]
        patches = call(student, "image_token_mapping", image[0][0])
        words = call(student, "text_token_mapping", text[0][0])

        def cross(pooler, tokens, views):
            queries = jnp.concatenate([pooled for _, pooled in views])[:, None]  # [V * B, 1, D]
            tokens = jnp.tile(tokens, (len(views), 1, 1))  # [V * B, N, D]
            pooled = jnp.split(call(student, pooler, tokens, queries)[:, 0], len(views))
            return [l2_normalise(view[1] + x) for view, x in zip(views, pooled)]

        def unit(views):
            return [l2_normalise(pooled) for _, pooled in views]

        cross_image = cross("text_pooler", words, image)
        cross_text = cross("image_pooler", patches, text)
        teacher_image = unit(call(teacher, "image_tower", x) for x in crops[:2])
        teacher_text = unit(call(teacher, "text_tower", x) for x in captions[:2])

        scale, distill = (jnp.exp(student[k]) for k in ("logit_scale", "distill_logit_scale"))
        pairs = {
            "clip": mean_of_pairs(unit(image[:2]), unit(text), scale),
            "distill": sum(
                mean_of_pairs(views, targets, distill)
                for views in (cross_image, cross_text)
                for targets in (teacher_image, teacher_text)
            )
            / 4,
        }
        return pairs["clip"] + pairs["distill"], (state, {})


def mean_of_pairs(views, others, scale):
    """Mean over all pairs of two lists of views f32[B, D] of the symmetric cross-entropy."""
    return jnp.mean(jnp.stack([info_nce(x, y, scale) for x in views for y in others]))


@jax.jit
def info_nce(x, y, scale):
    logits = scale * (x @ y.T)
    rows, columns = (jnp.diagonal(jax.nn.log_softmax(logits, axis=a)) for a in (1, 0))
    return -(rows + columns).mean() / 2
