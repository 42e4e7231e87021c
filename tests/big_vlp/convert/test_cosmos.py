"""The COSMOS converter: exact round trip, and one error that names everything that does not fit."""

import jax
import numpy as np
import pytest

from big_vlp import trees
from big_vlp.convert.__main__ import main
from big_vlp.convert.cosmos import ConversionError, check, from_reference, to_reference
from big_vlp.convert.files import read_parts, write_file
from big_vlp.methods.cosmos import Method
from big_vlp.storage.model_dir import open_model, save_model
from input_pipeline.preprocess import Preprocess

SIZES = {"head_dim": 4, "text_heads": 3, "pooler_heads": 5}
PREPROCESS = Preprocess(image_size=12, tokenizer="clip", context_length=6)
MODEL = {
    "image": {"patch_size": 4, "width": 8, "layers": 3, "heads": 2, "activation": "gelu"},
    "text": {"vocab_size": 20, "width": 12, "layers": 2, "heads": 3, "activation": "gelu"},
    "embed_dim": 10,
    "pooler_heads": 5,
}


def arbitrary(seed, model=MODEL):
    method = Method(preprocess=PREPROCESS, model=model, ema_decay=0.9)
    shapes = jax.eval_shape(lambda: method.init(jax.random.key(0))[0])
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)


@pytest.fixture(scope="module")
def models():
    """(parameters, teacher parameters), all values different."""
    return arbitrary(0), arbitrary(1)


@pytest.fixture
def checkpoint(models):
    return {name: to_reference(params) for name, params in zip(("student", "teacher"), models)}


def same(found, expected):
    found, expected = trees.flatten(found), trees.flatten(expected)
    assert found.keys() == expected.keys()
    for path in expected:
        assert found[path].dtype == expected[path].dtype
        np.testing.assert_array_equal(found[path], expected[path], err_msg=path)


def test_round_trip(models, checkpoint):
    student, teacher, model, preprocess = from_reference(checkpoint, **SIZES)
    same(student, models[0])
    same(teacher, models[1])
    assert model == MODEL
    assert preprocess == PREPROCESS
    same(to_reference(student), checkpoint["student"])


def test_layout_of_the_reference(models, checkpoint):
    """One key per tensor and block; a fused input projection, rows q, k, v, head after head."""
    params, state = models[0], checkpoint["student"]
    assert len(state) == 19 + 12 * (3 + 2) + 8 * 2
    assert sum(x.size for x in state.values()) == sum(x.size for x in jax.tree.leaves(params))
    qkv = params["image_tower"]["transformer"]["blocks"]["attn"]["qkv"]["kernel"]
    weight = state["visual.transformer.resblocks.2.attn.in_proj_weight"]
    assert weight.shape == (24, 8)
    for part, head in np.ndindex(3, 2):
        rows = slice(8 * part + 4 * head, 8 * part + 4 * head + 4)
        np.testing.assert_array_equal(weight[rows], qkv[2, :, part, head].T)
    np.testing.assert_array_equal(
        state["visual.conv1.weight"][5, 2], params["image_tower"]["patch"]["kernel"][:, :, 2, 5]
    )
    np.testing.assert_array_equal(state["visual.proj"], params["image_tower"]["proj"]["kernel"])
    np.testing.assert_array_equal(
        state["image_token_mapping.weight"], params["image_token_mapping"]["kernel"].T
    )
    pooler = params["text_pooler"]
    fused = state["text_attn_cross_pool.attn.in_proj_weight"]
    np.testing.assert_array_equal(fused[:10], pooler["query"]["kernel"].reshape(10, 10).T)
    np.testing.assert_array_equal(fused[20:], pooler["key_value"]["kernel"][:, 1].reshape(10, 10).T)


def test_prefix_of_distributed_training(models, checkpoint):
    checkpoint["student"] = {f"module.{k}": v for k, v in checkpoint["student"].items()}
    student, teacher, *_ = from_reference(checkpoint, **SIZES)
    same(student, models[0])
    same(teacher, models[1])


def test_one_error_names_every_key_of_both_nets(checkpoint):
    student, teacher = checkpoint["student"], checkpoint["teacher"]
    del student["ln_final.bias"], student["transformer.resblocks.1.mlp.c_fc.weight"]
    student["visual.head.weight"] = np.zeros((3, 2), np.float32)
    del teacher["visual.proj"]
    teacher["logit_scale"] = np.zeros(1, np.float32)
    teacher["extra"] = np.zeros((), np.float32)
    with pytest.raises(ConversionError) as caught:
        from_reference(checkpoint, **SIZES)
    message = str(caught.value)
    for text in (
        "missing: ln_final.bias (12,)",
        "missing: transformer.resblocks.1.mlp.c_fc.weight (48, 12)",
        "unexpected: visual.head.weight (3, 2)",
        "missing: visual.proj (8, 10)",
        "wrong shape: logit_scale is (1,), should be ()",
        "unexpected: extra ()",
    ):
        assert text in message
    # It is clear which of the two nets a line speaks of.
    student_part, teacher_part = message.split("teacher", 1)
    assert "ln_final.bias" in student_part
    assert "visual.proj" in teacher_part


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["student"], "no .'student', 'teacher'. weights.*outer dict"),
        (lambda c: {"student": c["student"]}, "no .'teacher'. weights"),
        (lambda c: {"student": {}, "teacher": {}}, "visual.conv1.weight"),
        (lambda c: {"student": {"fc": np.zeros(2)}, "teacher": {}}, r"Found \['fc'\]"),
    ],
)
def test_other_files_are_refused(checkpoint, change, message):
    with pytest.raises(ConversionError, match=message):
        from_reference(change(checkpoint), **SIZES)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"head_dim": 3}, "multiple of"),
        ({"head_dim": 16}, "multiple of"),
        ({"text_heads": 5}, "multiple of the 5 heads"),
        ({"pooler_heads": 4}, "multiple of the 4 heads"),
    ],
)
def test_heads_must_fit_the_weights(checkpoint, sizes, message):
    with pytest.raises(ValueError, match=message):
        from_reference(checkpoint, **{**SIZES, **sizes})


def test_weights_of_another_rank_are_refused(checkpoint):
    checkpoint["student"]["visual.conv1.weight"] = np.zeros((8, 48), np.float32)
    with pytest.raises(ConversionError, match=r"visual.conv1.weight.*\(8, 48\)"):
        from_reference(checkpoint, **SIZES)


# With the numbers of heads that released models have.
WIDE = {
    "image": {"patch_size": 4, "width": 64, "layers": 1, "heads": 1, "activation": "gelu"},
    "text": {"vocab_size": 20, "width": 64, "layers": 1, "heads": 8, "activation": "gelu"},
    "embed_dim": 64,
    "pooler_heads": 8,
}


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_the_command_imports_and_exports(tmp_path, capsys, suffix):
    nets = {"student": arbitrary(0, WIDE), "teacher": arbitrary(1, WIDE)}
    state = {f"{net}.{k}": v for net, x in nets.items() for k, v in to_reference(x).items()}
    released, model = tmp_path / f"released.{suffix}", tmp_path / "model"
    if suffix == "safetensors":
        write_file(released, {**state, "student.attn_mask": np.zeros((6, 6), np.float32)})
    else:
        torch = pytest.importorskip("torch")
        tensors = lambda x: {f"module.{k}": torch.tensor(v) for k, v in to_reference(x).items()}  # noqa: E731
        torch.save({**{net: tensors(x) for net, x in nets.items()}, "epoch": 3}, released)
    assert main(["import", "cosmos", str(released), str(model)]) == 0
    told = capsys.readouterr().out
    others = [x.size for p, x in trees.flatten(nets["student"]).items() if "_tower/" not in p]
    assert len(others) == 26 and f"others       {sum(others):13,} parameters" in told
    left_out = "attn_mask" if suffix == "safetensors" else "nothing"
    assert f"left out     {left_out}\n" in told
    same(open_model(model, "model").load(), nets["student"])
    same(open_model(model, "averaged").load(), nets["teacher"])
    back = tmp_path / f"back.{suffix}"
    assert main(["export", "cosmos", str(model), str(back)]) == 0
    found = read_parts(back, "student", "teacher")
    found = {f"{net}.{k}": np.asarray(v) for net, x in found.items() for k, v in x.items()}
    same(found, state)
    one = tmp_path / "one.safetensors"
    write_file(one, {k: v for k, v in state.items() if k.startswith("student")})
    assert main(["import", "cosmos", str(one), str(tmp_path / "x")]) == 1
    assert "has no 'teacher'; found ['student']" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image": {"activation": "quick_gelu"}}, "image.activation is quick_gelu, that of COSMOS"),
        ({"text": {"norm_epsilon": 1e-6}}, "text.norm_epsilon is 1e-06"),
        ({"image": {"pool": "mean"}}, "image.pool is mean"),
        ({"image": {"heads": 2}}, "image.heads is 2, that of COSMOS' reference 1"),
        ({"text": {"causal": False}}, "text.causal is False"),
        ({"image": {"mlp_dim": 65}}, "image.mlp_dim is 65"),
        ({"zero_attention": True}, "zero_attention=True"),
        ({"pooler_heads": 4}, "pooler_heads=4"),
    ],
)
def test_models_that_the_reference_computes_otherwise(change, message):
    """It would load their weights strictly."""
    model = {
        k: {**v, **change.get(k, {})} if k in ("image", "text") else v for k, v in WIDE.items()
    }
    model |= {k: v for k, v in change.items() if k not in ("image", "text")}
    check(Method(preprocess=PREPROCESS, model=WIDE, ema_decay=0.9))
    with pytest.raises(ConversionError, match="The reference computes otherwise") as caught:
        check(Method(preprocess=PREPROCESS, model=model, ema_decay=0.9))
    assert message in str(caught.value)


def test_a_model_that_the_reference_has_not_is_not_written(tmp_path, capsys):
    """Its names would be missing, too: a mean needs no class token."""
    model = {**WIDE, "image": {**WIDE["image"], "pool": "mean"}}
    nets = {net: arbitrary(0, model) for net in ("model", "averaged")}
    section = {"name": "cosmos", "model": model, "ema_decay": 0.9}
    save_model(tmp_path / "mean", nets, section, PREPROCESS, None)
    assert main(["export", "cosmos", str(tmp_path / "mean"), str(tmp_path / "x.npz")]) == 1
    assert "image.pool is mean, that of COSMOS' reference cls" in capsys.readouterr().err
    assert not (tmp_path / "x.npz").exists()


def test_a_released_name_is_held_to_what_it_says(tmp_path, capsys):
    """Such as a B/32 that was renamed to B/16, which has misled users."""
    nets = {net: to_reference(arbitrary(0, WIDE)) for net in ("student", "teacher")}
    path = tmp_path / "cosmos_vitb16_cc3m.safetensors"
    write_file(path, {f"{net}.{k}": v for net, x in nets.items() for k, v in x.items()})
    assert main(["import", "cosmos", str(path), str(tmp_path / "x")]) == 1
    told = capsys.readouterr().err
    assert "image.patch_size is 4, that of cosmos_vitb16_cc3m 16" in told
    assert not (tmp_path / "x").exists()
