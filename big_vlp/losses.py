"""Contrastive losses over global batches, in fp32, in their plain dense form."""

import jax
import jax.numpy as jnp


def info_nce_pairs(x, y, scale):
    """Symmetric InfoNCE of every view of `x` against every view of `y` (arXiv 2103.00020).

    Args:
      x: unit vectors f32[B, V, D].
      y: unit vectors f32[B, W, D]; row b of both belongs to sample b.
      scale: scalar, the inverse temperature.

    Returns:
      f32[V, W]: (CE over rows + CE over columns) / 2, mean over the batch.
    """
    logits = scale * jnp.einsum("bvd,cwd->vwbc", x, y, precision="float32")
    positives = jnp.diagonal(logits, axis1=2, axis2=3)  # [V, W, B]
    over_y = jax.nn.logsumexp(logits, axis=3)
    over_x = jax.nn.logsumexp(logits, axis=2)
    return jnp.mean((over_y + over_x) / 2 - positives, axis=-1)


def softmax_loss(image, text, scale):
    """CLIP's loss for unit vectors f32[B, D] each."""
    return info_nce_pairs(image[:, None], text[:, None], scale)[0, 0]


def sigmoid_loss(image, text, scale, bias):
    """SigLIP's loss (arXiv 2303.15343, Algorithm 1): all pairs, summed over text, mean over images.

    Args:
      image, text: unit vectors f32[B, D].
      scale, bias: scalars.
    """
    logits = scale * jnp.einsum("bd,cd->bc", image, text, precision="float32") + bias
    same = 2 * jnp.eye(logits.shape[0]) - 1
    return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(same * logits), axis=1))


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
    pairs = {
        "clip": info_nce_pairs(student["image"][:, :num_global], student["text"], scale),
    }
    for modality in ("image", "text"):
        for target in ("image", "text"):
            pairs[f"{modality}_to_teacher_{target}"] = info_nce_pairs(
                student[f"cross_{modality}"], teacher[target], distill_scale
            )
    clip = pairs["clip"].mean()
    distill = sum(p.mean() for name, p in pairs.items() if name != "clip") / 4
    return clip + distill, {"pairs": pairs, "clip": clip, "distill": distill}
