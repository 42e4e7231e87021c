"""Losses, in fp32; the contrastive ones over global batches, on the devices of the ambient mesh.

There each device holds some rows of the batch. No device ever holds a [batch, batch] matrix: the
softmax losses gather one side once and work through their own rows in rematerialised blocks, the
sigmoid loss passes the texts around a ring. Without a mesh (`jax.set_mesh`) there is one device.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from big_vlp.parallel.meshes import AXES, BATCH_AXES

# Logits that exist at once on a device: 64 MiB in fp32.
BLOCK_LOGITS = 2**24
# Of a language model's logits those of one row that exist at once: 16 MiB in fp32.
ROW_LOGITS = 2**22


def info_nce_pairs(x, y, scale):
    """Symmetric InfoNCE of every view of `x` against every view of `y` (arXiv 2103.00020).

    `y` is what devices gather: give the side with fewer views there.

    Args:
      x: unit vectors f32[B, V, D].
      y: unit vectors f32[B, W, D]; row b of both belongs to sample b.
      scale: scalar, the inverse temperature.

    Returns:
      f32[V, W]: (CE over rows + CE over columns) / 2, mean over the batch.
    """
    batch = x.shape[0]

    def on_device(x, y, scale):  # own rows: [b, V, D], [b, W, D]
        own, views, width = x.shape
        # One matrix product per block needs the views outermost.
        x, y = jnp.moveaxis(x, 1, 0), jnp.moveaxis(y, 1, 0)
        candidates = jax.lax.all_gather(y, BATCH_AXES, axis=1, tiled=True)  # [W, B, D]
        rows = _block_rows(own, candidates.shape[0] * candidates.shape[1])

        def block(x):  # [r, D], one view of r samples
            logits = scale * jnp.einsum("rd,wcd->rwc", x, candidates, precision="float32")
            return jax.nn.logsumexp(logits, axis=2), jax.nn.logsumexp(logits, axis=0)

        blocks = x.reshape(-1, rows, width)  # [V * b / r, r, D]
        # In a loop XLA cannot merge the recomputation away, so it needs no barrier.
        over_y, over_x = jax.lax.map(jax.checkpoint(block, prevent_cse=False), blocks)
        over_y = over_y.reshape(views, own, -1)  # [V, b, W], complete
        over_x = over_x.reshape(views, own // rows, *over_x.shape[1:])  # a part per block
        over_x = _logsumexp_of_devices(jax.nn.logsumexp(over_x, axis=1))  # [V, W, B]
        positives = scale * jnp.einsum("vbd,wbd->vw", x, y, precision="float32")
        own_terms = jnp.sum(over_y, axis=1) / 2 - positives
        return (jax.lax.psum(own_terms, BATCH_AXES) + jnp.sum(over_x, axis=2) / 2) / batch

    return _shard_map(on_device, (P(BATCH_AXES), P(BATCH_AXES), P()), P())(x, y, scale)


def softmax_loss(image, text, scale):
    """CLIP's loss for unit vectors f32[B, D] each."""
    return info_nce_pairs(image[:, None], text[:, None], scale)[0, 0]


@jax.custom_vjp
def sigmoid_loss(image, text, scale, bias):
    """SigLIP's loss (arXiv 2303.15343, Algorithm 1): all pairs, summed over text, mean over images.

    Args:
      image, text: unit vectors f32[B, D].
      scale, bias: scalars.
    """
    return _sigmoid_ring(image, text, scale, bias)[0]


def _sigmoid_ring(image, text, scale, bias):
    """(loss, its gradients). The ring computes both at once: it passes each text block around with
    the gradient collected so far, where differentiating a ring would keep every block of it."""
    batch = image.shape[0]

    def on_device(image, text, scale, bias):  # own rows [b, D]
        # Every device has its own part of the scalars' gradients, to be summed at the end.
        scale, bias = (jax.lax.pcast(x, BATCH_AXES, to="varying") for x in (scale, bias))
        devices = jax.lax.axis_size(BATCH_AXES)
        to_next = [(i, (i + 1) % devices) for i in range(devices)]
        rows = _block_rows(image.shape[0], text.shape[0])

        def block_loss(image, text, scale, bias, first_row, is_own):
            logits = scale * jnp.einsum("bd,cd->bc", image, text, precision="float32") + bias
            row, column = jnp.ogrid[: logits.shape[0], : logits.shape[1]]
            same = jnp.where(is_own & (row + first_row == column), 1, -1)
            return -jnp.sum(jax.nn.log_sigmoid(same * logits)) / batch

        loss_and_grads = jax.value_and_grad(block_loss, argnums=(0, 1, 2, 3))
        image_blocks = image.reshape(-1, rows, image.shape[1])
        first_rows = jnp.arange(0, image.shape[0], rows)

        def ring_step(carry, i):
            text, text_grad, totals, image_grad = carry

            def add_block(sums, block):
                image, first_row = block
                value, (d_image, d_text, *d_scalars) = loss_and_grads(
                    image, text, scale, bias, first_row, i == 0
                )
                return jax.tree.map(jnp.add, sums, (d_text, (value, *d_scalars))), d_image

            (text_grad, totals), d_image = jax.lax.scan(
                add_block, (text_grad, totals), (image_blocks, first_rows)
            )
            text, text_grad = jax.lax.ppermute((text, text_grad), BATCH_AXES, to_next)
            return (text, text_grad, totals, image_grad + d_image), None

        carry = (text, *jax.tree.map(jnp.zeros_like, (text, (scale, scale, bias), image_blocks)))
        (_, text_grad, totals, image_grad), _ = jax.lax.scan(ring_step, carry, jnp.arange(devices))
        loss, *scalar_grads = jax.lax.psum(totals, BATCH_AXES)
        return loss, (image_grad.reshape(image.shape), text_grad, *scalar_grads)

    rows, whole = P(BATCH_AXES), P()
    ring = _shard_map(on_device, (rows, rows, whole, whole), (whole, (rows, rows, whole, whole)))
    return ring(image, text, scale, bias)


sigmoid_loss.defvjp(
    _sigmoid_ring, lambda grads, outer: jax.tree.map(lambda grad: outer * grad, grads)
)


def cosmos_losses(student, teacher, scale, distill_scale, num_global):
    """COSMOS' objective (arXiv 2412.01814, section 3): L_clip + L_distill.

    Args:
      student: dict of unit vectors f32: image and cross_image [B, V, D] (global views first),
        text and cross_text [B, C, D].
      teacher: dict of unit vectors f32: image [B, V_g, D], text [B, C_g, D].
      scale, distill_scale: scalars, the two inverse temperatures.
      num_global: V_g. The CLIP term leaves local image crops out; local captions take part.

    Returns:
      (loss, dict of the five [V, W] pair tables and the two terms).
    """
    global_images = student["image"][:, :num_global]
    pairs = {"clip": info_nce_pairs(student["text"], global_images, scale).T}
    # One call for all of the teacher's pairs: its features are gathered once.
    names = ("image", "text")
    students = jnp.concatenate([student[f"cross_{name}"] for name in names], axis=1)
    targets = jnp.concatenate([teacher[name] for name in names], axis=1)
    table = info_nce_pairs(students, targets, distill_scale)
    num_views, num_targets = student["cross_image"].shape[1], teacher["image"].shape[1]
    for name, part in zip(names, jnp.split(table, [num_views], axis=0)):
        for target, quadrant in zip(names, jnp.split(part, [num_targets], axis=1)):
            pairs[f"{name}_to_teacher_{target}"] = quadrant
    clip = pairs["clip"].mean()
    distill = sum(p.mean() for name, p in pairs.items() if name != "clip") / 4
    return clip + distill, {"pairs": pairs, "clip": clip, "distill": distill}


def _logsumexp_of_devices(x):
    """log(sum over devices of exp(x)), elementwise."""
    largest = jax.lax.pmax(jax.lax.stop_gradient(x), BATCH_AXES)
    return largest + jnp.log(jax.lax.psum(jnp.exp(x - largest), BATCH_AXES))


def _block_rows(own: int, logits_per_row: int) -> int:
    """The largest divisor of `own` whose block of logits stays within BLOCK_LOGITS."""
    most = max(1, BLOCK_LOGITS // logits_per_row)
    return next(rows for rows in range(min(own, most), 0, -1) if own % rows == 0)


def _shard_map(fn, in_specs, out_specs):
    mesh = jax.sharding.get_abstract_mesh()
    return jax.shard_map(
        fn, mesh=_one_device() if mesh.empty else mesh, in_specs=in_specs, out_specs=out_specs
    )


@functools.cache
def _one_device() -> Mesh:
    return Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES, (AxisType.Auto,) * len(AXES))


def multi_label_targets(labels, num_classes: int):
    """Label ids i32[B, K], padded with -1, in any order and number -> bool[B, num_classes].

    Compared instead of scattered, so that each device can make its own rows and classes.
    """
    return (labels[:, :, None] == jnp.arange(num_classes)).any(axis=1)


def binary_cross_entropy(logits, labels, positive_weight: float = 1.0):
    """Multi-label loss: over the classes summed, per example (arXiv 2404.15653, section 3).

    An example without labels counts as one of which nothing is true.

    Args:
      logits: [B, C].
      labels: i32[B, K], the true classes, padded with -1.
      positive_weight: factor of the terms of true classes.

    Returns:
      f32[B].
    """
    logits = logits.astype(jnp.float32)
    true = multi_label_targets(labels, logits.shape[1])
    # -log sigmoid(z) = softplus(-z) where true, -log(1 - sigmoid(z)) = softplus(z) where not.
    terms = jax.nn.softplus(jnp.where(true, -logits, logits))
    return (terms * jnp.where(true, positive_weight, 1.0)).sum(axis=1)


def cross_entropy(logits, label, smoothing: float = 0.0):
    """Softmax loss with label smoothing (arXiv 1512.00567), per example.

    Args:
      logits: [B, C].
      label: i32[B].
      smoothing: the share of the target that is spread over all classes.

    Returns:
      f32[B].
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    target = (jnp.arange(logits.shape[1]) == label[:, None]) * (1 - smoothing)
    return -((target + smoothing / logits.shape[1]) * log_probabilities).sum(axis=1)


def pixel_cross_entropy(logits, labels):
    """Softmax loss over the pixels that have a label, per image.

    The mean over a batch is the sum of all losses divided by that of all counts: a mean of means
    would weigh the pixels of sparsely labelled images higher.

    Args:
      logits: [B, H, W, C].
      labels: integers [B, H, W], -1 where a pixel does not count.

    Returns:
      (f32[B], i32[B]): the sum over pixels, and how many count.
    """
    logits = logits.astype(jnp.float32)
    is_label = jnp.arange(logits.shape[-1]) == labels[..., None]  # compared, not scattered
    counted = labels >= 0
    loss = jax.nn.logsumexp(logits, axis=-1) - jnp.where(is_label, logits, 0).sum(axis=-1)
    return jnp.where(counted, loss, 0).sum(axis=(1, 2)), counted.sum(axis=(1, 2))


def cosine(x, y):
    """Cosines f32[...] of vectors [..., D]; 0 for a zero vector."""
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    squares = jnp.square(x).sum(axis=-1) * jnp.square(y).sum(axis=-1)
    return (x * y).sum(axis=-1) * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


def next_tokens(hidden, head, params, tokens, mask):
    """Softmax loss of a language model, per row.

    Where the logits of a row are many they are made in blocks of positions, one after the other,
    and again in the backward pass.

    Args:
      hidden: [B, T, W], what the logits are made of.
      head: (params, [B, t, W]) -> f32[B, t, V], any number of positions.
      tokens: ids i32[B, T] that they predict.
      mask: bool[B, T], which of them count.

    Returns:
      (f32[B] summed losses, i32[B] number of tokens that count).
    """

    def summed(params, hidden, tokens, mask):
        logits = head(params, hidden).astype(jnp.float32)
        is_token = jnp.arange(logits.shape[-1]) == tokens[..., None]  # compared, not scattered
        chosen = jnp.where(is_token, logits, 0).sum(axis=-1)
        loss = jax.nn.logsumexp(logits, axis=-1) - chosen
        return jnp.where(mask, loss, 0).sum(axis=1)

    batch, length = tokens.shape
    vocabulary = jax.eval_shape(head, params, hidden[:, :1]).shape[-1]
    count = -(-length * vocabulary // ROW_LOGITS)
    counted = mask.sum(axis=1, dtype=jnp.int32)
    if count <= 1:
        return summed(params, hidden, tokens, mask), counted
    size = -(-length // count)
    # Gradients of parameters are sums over the blocks, made in fp32.
    exact = jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), params)

    def blocks(x):  # [B, T, ...] -> [blocks, B, size, ...]
        x = jnp.pad(x, ((0, 0), (0, count * size - length)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, count, size, *x.shape[2:]), 1, 0)

    # In a loop XLA cannot merge the recomputation away, so it needs no barrier.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def of_block(block):
        return summed(jax.tree.map(lambda x, y: x.astype(y.dtype), exact, params), *block)

    return jax.lax.map(of_block, tuple(map(blocks, (hidden, tokens, mask)))).sum(axis=0), counted
