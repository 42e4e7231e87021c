"""CogVLM's method with a small model, a batch of rows with answers of all lengths, weights."""

import contextlib
import functools

import jax
import numpy as np

from big_vlp import trees
from big_vlp.methods import make_method
from big_vlp.models.layout import LANGUAGE, PADDING, VISION
from input_pipeline.preprocess import Preprocess

PREPROCESS = Preprocess(
    image_size=16, resize="squash", tokenizer="llama:scenes", context_length=7, image_token_size=8
)
TEXT_ONLY = Preprocess(image_size=16, resize="squash", tokenizer="llama:scenes", context_length=7)
TEXT = {"vocab_size": 40, "width": 16, "layers": 2, "heads": 2, "mlp_dim": 24}
MODEL = {
    "image": {
        "image_size": 16,
        "patch_size": 8,
        "width": 16,
        "layers": 2,
        "heads": 2,
        "mlp_dim": 24,
    },
    "text": TEXT,
    "adapter_mlp_dim": 24,
}
ROWS, SLOTS, LENGTH, EOS = 4, 6, 7, 2
SPANS = ((0, 7), (2, 7), (3, 5), (6, 7))  # of each row's answer in its text
# As in pretraining: experts and adapter learn.
EXPERTS = (
    (r"language/(?!blocks/vision).*|vision/.*", 0.0, 0.0),
    (r"language/blocks/vision/.*|adapter/.*", 1.0, 0.0),
)

# Compiles in a third of the time.
fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def make(preprocess=PREPROCESS, **changes):
    options = {"model": MODEL, "dtype": "float32", **changes}
    return make_method("cogvlm", preprocess=preprocess, **options)


def make_batch(slots=SLOTS, image_size=16):
    """Rows of the static layout; without slots, of text."""
    rng = np.random.default_rng(0)
    start = 1 + slots
    types = np.full((ROWS, start + LENGTH), LANGUAGE, np.int32)
    types[:, 1:start] = VISION
    tokens = rng.integers(3, TEXT["vocab_size"], types.shape, dtype=np.int32)
    loss_mask = np.zeros(types.shape, bool)
    for row, (first, stop) in enumerate(SPANS):
        loss_mask[row, start + first if slots else 1 : start + stop] = True
        tokens[row, start + stop :], types[row, start + stop :] = 0, PADDING
    batch = {"tokens": tokens, "token_types": types, "loss_mask": loss_mask}
    if slots:
        shape = (ROWS, 1, image_size, image_size, 3)
        batch["images"] = rng.integers(0, 256, shape, dtype=np.uint8)
    return batch


def make_model(method, seed=1):
    """All values different from zero, so that boi, eoi, biases and LoRA matter."""
    rng = np.random.default_rng(seed)
    flat = trees.flatten(method.shapes[0])
    flat = {path: rng.normal(0.05, 0.3, x.shape).astype(np.float32) for path, x in flat.items()}
    for path in flat:
        if path.endswith("/var"):
            flat[path] = np.abs(flat[path]) + 0.5
    return trees.unflatten(flat)


def compiled_loss(method, is_trainable=None):
    """fn(model, batch, seed=0) -> the loss, or (loss, gradients of what is trainable)."""

    def of(trainable, frozen, statistics, batch, seed):
        key = jax.random.key(seed)
        return method.loss(trainable, frozen, {}, statistics, batch, rng=key, step=0)[0]

    run = fast_jit(of if is_trainable is None else jax.value_and_grad(of))

    def fn(model, batch, seed=0):
        parameters, statistics = trees.split_statistics(model)
        trainable, frozen = trees.split(parameters, is_trainable or (lambda path: True))
        return run(trainable, frozen, statistics, batch, seed)

    return fn


def loss_and_gradients(method, model, batch, is_trainable=lambda path: True):
    return compiled_loss(method, is_trainable)(model, batch)


def log_probabilities(method, model, batch, layout="general"):
    """log p of each token given those before it: f32[B, T - 1], from the model's own call."""
    images = None
    if "images" in batch:
        pre = method.preprocess
        images = np.float32((batch["images"] / np.float32(255) - pre.mean) / pre.std)
    apply = functools.partial(method.network.apply, trees.variables(model))
    logits = fast_jit(apply, static_argnums=3)(
        images, batch["tokens"], batch["token_types"], layout
    )
    log_p = np.asarray(jax.nn.log_softmax(logits[:, :-1]))
    return np.take_along_axis(log_p, batch["tokens"][:, 1:, None], axis=-1)[..., 0]


def mean_loss(method, model, batch):
    """The loss by its formula: the mean over all tokens that the loss mask marks."""
    return -log_probabilities(method, model, batch)[batch["loss_mask"][:, 1:]].mean()


def written(method, model, batch, steps, lora=None):
    """What continues each row most probably, i32[B, steps], by running all of it for each token."""
    pre, rows = method.preprocess, np.arange(ROWS)
    images = (batch["images"] / np.float32(255) - pre.mean) / pre.std
    more = ((0, 0), (0, steps))
    tokens = np.pad(batch["tokens"], more)
    types = np.pad(batch["token_types"], more, constant_values=PADDING)
    lengths = (types != PADDING).sum(axis=1)

    @fast_jit
    def run(model, tokens, types):
        with contextlib.nullcontext() if lora is None else lora.active():
            return method.network.apply(trees.variables(model), np.float32(images), tokens, types)

    for i in range(steps):
        last = np.asarray(run(model, tokens, types))[rows, lengths - 1 + i]
        tokens[rows, lengths + i], types[rows, lengths + i] = last.argmax(axis=-1), LANGUAGE
    new = tokens[rows[:, None], lengths[:, None] + np.arange(steps)]
    ended = np.cumsum(new == EOS, axis=1) - (new == EOS) > 0
    return np.where(ended, 0, new)
