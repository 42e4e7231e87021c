"""What is ranked, thresholded or goes into a loss is in fp32, also in a half-precision model."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp.models.cogvlm import CogVLM
from big_vlp.models.heads.classifier import Classifier
from big_vlp.models.heads.cross_attention import CrossPool
from big_vlp.models.heads.dense import DeepLabV3
from big_vlp.models.layers.head import Head
from big_vlp.models.text import TextTransformer
from big_vlp.models.towers.shared import base
from big_vlp.models.towers.vit import Tower as ViT
from evaluators.labels.average_precision import average_precision
from evaluators.shared.ranking import rank_of_label

HALF = jnp.bfloat16
ROWS, WIDTH, CLASSES = 2000, 64, 1000


class Given(base.Tower):
    """A tower that gives what it is given."""

    dtype: jnp.dtype = HALF

    def encode(self, tokens):
        return None, tokens


@pytest.fixture(scope="module")
def classified():
    """(logits of a bf16 classifier, the same in fp64, labels): logits of 8 to 16 and more."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, CLASSES, ROWS)
    kernel = np.asarray(rng.normal(size=(WIDTH, CLASSES)), HALF)
    features = np.asarray(kernel.T[label] * 0.15 + rng.normal(size=(ROWS, WIDTH)) * 0.4, HALF)
    bias = rng.normal(-3, 0.3, CLASSES).astype(np.float32)
    params = {"params": {"classifier": {"kernel": np.float32(kernel), "bias": bias}}}
    logits = jax.jit(Classifier(Given(), CLASSES).apply)(params, jnp.asarray(features))
    return logits, np.float64(features) @ np.float64(kernel) + bias, label


def test_a_classifier_ranks_as_exact_logits_do(classified):
    logits, exact, label = classified
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, exact, atol=1e-4)
    expected = (exact > exact[np.arange(ROWS), label, None]).sum(axis=1)
    np.testing.assert_array_equal(rank_of_label(logits, label), expected)
    rounded = np.float32(np.asarray(exact, HALF))
    lost = rank_of_label(rounded, label) > 0
    assert 0.2 < (expected > 0).mean() < 0.8
    assert lost.mean() > (expected > 0).mean() + 0.001  # what rounded logits would say


def test_average_precision_sees_every_score(classified):
    logits, exact, label = classified
    right = label[:, None] == np.arange(CLASSES)
    of_exact, found = (average_precision(x, right) for x in (exact, np.asarray(logits)))
    assert abs(found - of_exact) < 1e-6
    rounded = average_precision(np.float32(np.asarray(exact, HALF)), right)
    assert abs(rounded - of_exact) > 1e-5


def applied(module, *args, **options):
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **options))
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda x: np.abs(rng.normal(size=x.shape)).astype(x.dtype), variables)
    return jax.jit(lambda variables: module.apply(variables, *args, **options))(variables)


TOWER = dict(width=8, layers=1, heads=2, dtype=HALF)
WIDE = np.random.default_rng(3).normal(size=(4, 5, 8)).astype(np.float32)
IMAGES = np.random.default_rng(2).normal(size=(8, 8, 8, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "outputs",
    [
        lambda: applied(ViT(8, 4, embed_dim=6, **TOWER), IMAGES)[1],
        lambda: applied(ViT(8, 4, embed_dim=8, pool="map", **TOWER), IMAGES)[1],
        lambda: applied(
            TextTransformer(9, 4, embed_dim=6, **TOWER), np.arange(16).reshape(4, 4) % 9
        )[1],
        lambda: applied(CrossPool(2, HALF), WIDE, WIDE[:, :3]),
        lambda: applied(DeepLabV3(3, channels=4, rates=(1,), dtype=HALF), IMAGES),
        lambda: applied(
            CogVLM(
                dict(vocab_size=9, width=8, layers=1, heads=2, mlp_dim=8),
                dict(image_size=8, patch_size=4, width=8, layers=1, heads=2, mlp_dim=8),
                adapter_mlp_dim=8,
                image_head=True,
                dtype=HALF,
            ),
            IMAGES[:, :1, :8],
            method="predict_features",
        ),
    ],
    ids=[
        "image embedding",
        "image embedding (map)",
        "text embedding",
        "pooler",
        "segmentation",
        "features",
    ],
)
def test_outputs_are_not_rounded_to_half(outputs):
    found = np.asarray(outputs())
    assert found.dtype == np.float32
    assert (found != np.float32(np.asarray(found, HALF))).mean() > 0.5


def test_a_head_is_a_dense_layer_in_fp32():
    """To the bit, under the same names, with gradients in the parameters' dtypes."""
    x = np.random.default_rng(0).normal(size=(5, 3, 8)).astype(np.float32)
    ours, theirs = Head(7), nn.Dense(7)
    params = theirs.init(jax.random.key(0), x)
    assert jax.tree.structure(params) == jax.tree.structure(ours.init(jax.random.key(0), x))
    np.testing.assert_array_equal(ours.apply(params, x), theirs.apply(params, x))
    half = Head(7, dtype=HALF)
    kernel, grads = jax.grad(lambda x, p: half.apply(p, x).sum(), (0, 1))(
        jnp.asarray(x, HALF), params
    )
    assert kernel.dtype == HALF
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype(jnp.float32)}
