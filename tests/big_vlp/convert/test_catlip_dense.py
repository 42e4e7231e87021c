"""The converters of dense CatLIP models: exact round trips, the reference's layout, one error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp import trees
from big_vlp.convert.catlip import FUSED_OUT, PLAIN_OUT
from big_vlp.convert.catlip_dense import (
    EVALUATION,
    IMAGE_ONLY,
    fpn_from_reference,
    fpn_to_reference,
    segmentation_from_reference,
    segmentation_to_reference,
)
from big_vlp.convert.common import ConversionError
from big_vlp.methods.segmentation import Method
from big_vlp.models.heads.dense import Pyramid
from big_vlp.models.towers.catlip_vit import Tower as CatlipViT
from input_pipeline.preprocess import Preprocess

TOWER = {"width": 8, "layers": 2, "heads": 2, "mlp_dim": 24, "num_positions": 9}
TOWER |= {"class_token": False}
SIZES = {"head_dim": 4, "rates": (1, 2)}
PREPROCESS = Preprocess(**EVALUATION, **IMAGE_ONLY)
ASPP = "seg_head.aspp.aspp_layer"
PREFIX = "model.backbone.encoder."


def fill(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)


def segmenter(augment=None):
    arguments = {
        "num_classes": 5,
        "model": {**TOWER, "output_stride": 8},
        "head": {"channels": 6, "rates": (1, 2)},
        **({} if augment is None else {"augment": augment}),
    }
    method = Method(preprocess=PREPROCESS, **arguments)
    return fill(jax.eval_shape(lambda: method.init(jax.random.key(0))[0])), arguments


def backbone(classes=None):
    images = jnp.zeros((1, 32, 32, 3))
    variables = jax.eval_shape(Pyramid(CatlipViT(**TOWER)).init, jax.random.key(0), images)
    model = fill({**variables["params"], "batch_stats": variables["batch_stats"]})
    if classes is not None:
        shape = {"kernel": np.zeros((8, classes), np.float32), "bias": np.zeros(classes)}
        model["classifier"] = fill(shape)
    return model


def same(found, expected):
    found, expected = trees.flatten(found), trees.flatten(expected)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert found[path].dtype == value.dtype
        np.testing.assert_array_equal(found[path], value, err_msg=path)


@pytest.mark.parametrize("augment", [None, {"total_steps": 1}])
@pytest.mark.parametrize("out", [FUSED_OUT, PLAIN_OUT])
def test_segmentation_round_trip(augment, out):
    model, expected = segmenter(augment)
    state = segmentation_to_reference(model, out)
    found, arguments, preprocess = segmentation_from_reference(state, **SIZES)
    same(found, model)
    assert arguments == expected and preprocess == PREPROCESS
    same(segmentation_to_reference(found, out), state)


def test_segmentation_layout_of_the_reference():
    model, _ = segmenter()
    state = segmentation_to_reference(model)
    head = model["head"]
    for key, name in (
        ("convs.0.block", "point"),
        ("convs.1.block", "dilated_0"),
        ("convs.2.block", "dilated_1"),
        ("convs.3.aspp_pool.conv_1x1.block", "pool"),
        ("project.block", "project"),
    ):
        weight = state[f"{ASPP}.{key}.conv.weight"]
        np.testing.assert_array_equal(weight.transpose(2, 3, 1, 0), head[name]["conv"]["kernel"])
        for theirs, ours in (("weight", "scale"), ("bias", "bias")):
            found = state[f"{ASPP}.{key}.norm.{theirs}"]
            np.testing.assert_array_equal(found, head[name]["norm"][ours])
        variance = model["batch_stats"]["head"][name]["norm"]["var"]
        np.testing.assert_array_equal(state[f"{ASPP}.{key}.norm.running_var"], variance)
        counter = state[f"{ASPP}.{key}.norm.num_batches_tracked"]
        assert counter.shape == () and counter.dtype == np.int64
    assert state["seg_head.classifier.block.conv.weight"].shape == (5, 6, 1, 1)
    rest = {key.partition(".")[0] for key in state}
    assert rest == {"encoder", "seg_head"}


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_pyramid_round_trip(classes, prefix):
    model = backbone(classes)
    state = fpn_to_reference(model, prefix=prefix)
    found, tower = fpn_from_reference(state, head_dim=4, prefix=prefix)
    assert tower == TOWER
    same(found, model)
    same(fpn_to_reference(found, prefix=prefix), state)


def test_pyramid_layout_of_the_reference():
    """Kernels of transposed convolutions: [in, out, h, w] there; here turned round, inputs last."""
    model = backbone()
    state = fpn_to_reference(model)
    for key, name, shape in (
        ("out_l2.0", "l2_up0", (8, 4, 2, 2)),
        ("out_l2.1", "l2_up1", (4, 2, 2, 2)),
        ("out_l3", "l3_up", (8, 4, 2, 2)),
    ):
        weight = state[f"simple_fpn.{key}.block.conv.weight"]
        assert weight.shape == shape
        for y, x in np.ndindex(2, 2):
            kernel = model["fpn"][name]["kernel"][1 - y, 1 - x]
            np.testing.assert_array_equal(weight[:, :, y, x], kernel)


def test_the_rest_of_a_detector_is_not_read():
    model = backbone()
    state = fpn_to_reference(model, prefix=PREFIX)
    state["model.rpn.head.cls_logits.weight"] = np.zeros((3, 4), np.float32)
    found, _ = fpn_from_reference(state, head_dim=4, prefix=PREFIX)
    same(found, model)
    with pytest.raises(ConversionError, match=r"Not the weights of a CatLIP tower"):
        fpn_from_reference(state, head_dim=4)


def test_one_error_names_every_key_of_a_segmentation_model():
    state = segmentation_to_reference(segmenter()[0])
    del state[f"{ASPP}.project.block.conv.weight"], state["encoder.patch_emb.2.block.conv.bias"]
    state[f"{ASPP}.convs.1.block.conv.weight"] = np.zeros((6, 8, 1, 1), np.float32)
    state["seg_head.aux_head.weight"] = np.zeros(2, np.float32)
    with pytest.raises(ConversionError) as caught:
        segmentation_from_reference(state, **SIZES)
    for text in (
        f"missing: {ASPP}.project.block.conv.weight (6, 24, 1, 1)",
        "missing: encoder.patch_emb.2.block.conv.bias (8,)",
        f"wrong shape: {ASPP}.convs.1.block.conv.weight is (6, 8, 1, 1), should be (6, 8, 3, 3)",
        "unexpected: seg_head.aux_head.weight (2,)",
    ):
        assert text in str(caught.value)


def test_one_error_names_every_key_of_a_pyramid():
    state = fpn_to_reference(backbone(3))
    del state["simple_fpn.out_l3.block.conv.bias"], state["classifier.bias"]
    state["simple_fpn.out_l2.0.block.norm.weight"] = np.zeros(8, np.float32)
    state["simple_fpn.out_l6.weight"] = np.zeros(1, np.float32)
    with pytest.raises(ConversionError) as caught:
        fpn_from_reference(state, head_dim=4)
    for text in (
        "missing: simple_fpn.out_l3.block.conv.bias (4,)",
        "missing: classifier.bias (3,)",
        "wrong shape: simple_fpn.out_l2.0.block.norm.weight is (8,), should be (4,)",
        "unexpected: simple_fpn.out_l6.weight (1,)",
    ):
        assert text in str(caught.value)


@pytest.mark.parametrize(
    "change, sizes, message",
    [
        (lambda s: s, {"rates": (12, 24, 36)}, r"2 dilated branches; give as many rates"),
        (lambda s: s, {"head_dim": 3}, "width 8 must be a multiple of head_dim=3"),
        (lambda s: {}, {}, "Not the weights of a CatLIP tower"),
        (
            lambda s: {k: x for k, x in s.items() if not k.startswith("seg_head")},
            {},
            "not a segmentation model",
        ),
    ],
)
def test_other_weights_are_refused(change, sizes, message):
    state = change(segmentation_to_reference(segmenter()[0]))
    with pytest.raises(ConversionError, match=message):
        segmentation_from_reference(state, **{**SIZES, **sizes})
