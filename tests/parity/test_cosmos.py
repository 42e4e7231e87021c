"""COSMOS against numbers of the reference implementation, for every fixture at hand.

All sizes come from the fixture. The step and the loss are the ones the training loop uses, once
plainly and once with scanned, rematerialised blocks, accumulation, losses in row blocks, and local
captions in groups by length.
"""

import json
import random
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp import losses, trees
from big_vlp.convert import cosmos as convert
from big_vlp.methods.cosmos import Method
from big_vlp.methods.shared import pairs
from big_vlp.models.layers.positions import resize_grid
from big_vlp.models.towers.vit import DINO_EXCESS
from big_vlp.run import step
from big_vlp.run.optim import make_optimizer
from evaluators.maps.zeroshot_segmentation import resized_bilinear
from evaluators.pairs.zeroshot import zeroshot_weights
from evaluators.shared import dense, pamr
from evaluators.shared.windows import stretched, windows
from input_pipeline.text.captions import sample, sample_captions, split_sentences
from input_pipeline.text.tokenizers import make_tokenizer
from tests.evaluators.pairs.toy_matrix import retrieval_metrics
from tests.parity.fixtures import fixtures, micro_batches

TOLERANCE = 3e-5  # of an array's largest magnitude
EXECUTIONS = {
    "plain": {"unroll": True, "remat": None},
    # And micro-batches; some local captions fit their group.
    "scan_remat": {"unroll": False, "remat": "full", "text_groups": ((0.3, 6), (0.3, 9))},
}
# What a step is made of is looked at in one execution, and the step itself in both.
as_trained = pytest.mark.parametrize("case", ["scan_remat"], indirect=True)


class Case(NamedTuple):
    arrays: dict
    info: dict
    student: dict
    teacher: dict
    method: Method
    batch: dict
    features: tuple  # (student, teacher)


def close(actual, expected, name=""):
    expected = np.asarray(expected)
    actual = np.asarray(actual).reshape(expected.shape)
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=TOLERANCE * max(np.abs(expected).max(), 1e-30), err_msg=name
    )


def view_major(x):
    """[B, V, ...] -> [V * B, ...], the reference's order of rows."""
    x = np.asarray(x)
    return np.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])


def sample_major(x):
    """Images [V, B, C, H, W] -> [B, V, H, W, C]."""
    return jnp.asarray(np.transpose(x, (1, 0, 3, 4, 2)))


@pytest.fixture(scope="module", params=fixtures("cosmos_*.npz"), ids=lambda p: p.stem)
def loaded(request):
    with np.load(request.param) as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, json.loads(request.param.with_suffix(".json").read_text())


@pytest.fixture(scope="module", params=EXECUTIONS)
def case(loaded, request):
    arrays, info = loaded
    plain = request.param == "plain"
    with pytest.MonkeyPatch.context() as patch:
        if not plain:
            patch.setattr(losses, "BLOCK_LOGITS", 2 * info["batch"])
        yield make_case(arrays, info, request.param)


def make_case(arrays, info, execution):
    checkpoint = {
        net: {k.removeprefix(f"{net}/"): v for k, v in arrays.items() if k.startswith(f"{net}/")}
        for net in ("student", "teacher")
    }
    config = info["config"]
    student, teacher, model, preprocess = convert.from_reference(
        checkpoint,
        head_dim=config["vision_cfg"]["head_width"],
        text_heads=config["text_cfg"]["heads"],
        pooler_heads=info["cross_pool_heads"],
    )
    method = Method(
        preprocess=preprocess,
        model=model,
        ema_decay=info["hyper"]["momentum"],
        dtype="float32",
        accumulate_steps=1 if execution == "plain" else micro_batches(info["batch"]),
        **EXECUTIONS[execution],
    )
    batch = {
        "global_images": sample_major(arrays["in/global_images"]),
        "local_images": sample_major(arrays["in/local_images"]),
        "tokens": jnp.asarray(arrays["in/texts"], jnp.int32),
    }
    with jax.default_matmul_precision("highest"):
        features = jax.jit(method.features)(student, teacher, batch, jax.random.key(0))
    return Case(arrays, info, student, teacher, method, batch, features)


@pytest.fixture(autouse=True)
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


@as_trained
def test_state_dict_round_trip(case):
    for net, params in (("student", case.student), ("teacher", case.teacher)):
        state = convert.to_reference(params)
        assert sorted(state) == sorted(case.info["param_names_in_order"])
        for key, value in state.items():
            np.testing.assert_array_equal(value, case.arrays[f"{net}/{key}"], key)


@as_trained
def test_intermediates(case):
    """Every activation of the towers, in the reference's layout."""
    towers, batch = case.method.network, case.batch

    @jax.jit
    def capture(params, *views):
        return towers.apply(
            {"params": params}, *views, method="encode_views", capture_intermediates=True
        )

    _, captured = capture(
        case.student, batch["global_images"], batch["local_images"], batch["tokens"]
    )
    found = trees.flatten(captured["intermediates"])
    arrays = case.arrays
    image, text = "image_tower", "text_tower"
    # One entry per call of the tower: first the global views, then the local ones.
    rows = case.info["batch"] * case.info["n_global"]

    def rows_of(x, views):  # [B * V, ...] -> view-major
        return view_major(x.reshape(case.info["batch"], views, *x.shape[1:]))

    n_global, n_local = case.info["n_global"], case.info["n_local_img"]
    n_text = arrays["in/texts"].shape[1]
    pre = found[f"{image}/norm_pre/__call__"]
    close(rows_of(pre[0], n_global), arrays["mid/vis_ln_pre_global"])
    close(rows_of(pre[1], n_local), arrays["mid/vis_ln_pre_local"])
    block = found[f"{image}/transformer/block_outputs"][0][0]  # the first of L
    assert block.shape[0] == rows
    close(rows_of(block, n_global).swapaxes(0, 1), arrays["mid/vis_block0_global_LND"])
    post = found[f"{image}/norm_post/__call__"][0][:, 1:]
    close(rows_of(post, n_global), arrays["mid/patch_tokens_global_postln"])
    raw = [
        rows_of(found[f"{image}/proj/__call__"][i], views)
        for i, views in enumerate((n_global, n_local))
    ]
    close(np.concatenate(raw), arrays["mid/image_features_raw"])
    block = found[f"{text}/transformer/block_outputs"][0][0]
    close(rows_of(block, n_text).swapaxes(0, 1), arrays["mid/text_block0_LND"])
    close(rows_of(found[f"{text}/norm_post/__call__"][0], n_text), arrays["mid/text_ln_final"])
    close(rows_of(found[f"{text}/proj/__call__"][0], n_text), arrays["mid/text_features_raw"])
    batch_rows = case.info["batch"]
    close(
        found["image_token_mapping/__call__"][0],
        arrays["mid/image_tokens_mapped"][:batch_rows],
    )
    close(found["text_token_mapping/__call__"][0], arrays["mid/text_tokens_mapped"][:batch_rows])
    pooled = found["text_pooler/__call__"][0]
    close(view_major(pooled), arrays["mid/txt_pooled_for_images"])
    close(view_major(found["image_pooler/__call__"][0]), arrays["mid/img_pooled_for_texts"])


def test_features(case):
    student, teacher = case.features
    arrays = case.arrays
    close(view_major(student["image"]), arrays["out/student_image_features"])
    close(view_major(student["text"]), arrays["out/student_text_features"])
    close(view_major(student["cross_image"]), arrays["out/student_img_crossmodal"])
    close(view_major(student["cross_text"]), arrays["out/student_txt_crossmodal"])
    close(view_major(teacher["image"]), arrays["out/teacher_image_features"])
    close(view_major(teacher["text"]), arrays["out/teacher_text_features"])


@as_trained
def test_predict_fns(case):
    predict = {name: jax.jit(fn) for name, fn in case.method.predict_fns().items()}
    batch = {
        "image": case.batch["global_images"][:, 0],
        "tokens": case.batch["tokens"][:, 0],
    }
    close(predict["encode_image"](case.student, batch), case.arrays["eval/student_image_features"])
    close(predict["encode_text"](case.student, batch), case.arrays["eval/student_text_features"])


@as_trained
def test_attention_maps(case):
    """Every caption over the patches of global view 0, every view over the words of caption 0."""
    towers, arrays, info = case.method.network, case.arrays, case.info
    predict = jax.jit(case.method.predict_fns()["attention_maps"])
    first_image = case.batch["global_images"][:, 0]
    maps = []
    for caption in range(case.batch["tokens"].shape[1]):
        over_patches, over_words = predict(
            case.student, {"image": first_image, "tokens": case.batch["tokens"][:, caption]}
        )
        maps.append(over_patches)
        if caption == 0:
            close(over_words, arrays["attn/text_map_heads"][: info["batch"]])
    heads = np.concatenate(maps)
    close(heads, arrays["attn/image_map_heads"])
    close(heads.mean(1), arrays["attn/image_map_mean"])

    def text_maps(model):
        words = model.text_token_mapping(model.text_tower(case.batch["tokens"][:, 0])[0])
        views = [case.batch[k] for k in ("global_images", "local_images")]
        features = [
            model.image_tower(x.reshape(-1, *x.shape[2:]))[1].reshape(*x.shape[:2], -1)
            for x in views
        ]
        return model.text_pooler(words, jnp.concatenate(features, 1), return_weights=True)

    weights = jax.jit(lambda params: towers.apply({"params": params}, method=text_maps))(
        case.student
    )  # [B, heads, V, T]
    heads = view_major(np.moveaxis(weights, 1, 2))
    close(heads, arrays["attn/text_map_heads"])
    close(heads.mean(1), arrays["attn/text_map_mean"])


def test_losses(case):
    arrays = case.arrays
    scale, distill_scale = (
        jnp.exp(case.student[k]) for k in ("logit_scale", "distill_logit_scale")
    )
    close(scale, arrays["out/logit_scale_exp"])
    close(distill_scale, arrays["out/distill_logit_scale_exp"])
    total, terms = jax.jit(losses.cosmos_losses, static_argnums=4)(
        *case.features, scale, distill_scale, case.info["n_global"]
    )
    names = {
        "clip": "clip",
        "image_to_teacher_image": "img_timg",
        "image_to_teacher_text": "img_ttxt",
        "text_to_teacher_image": "txt_timg",
        "text_to_teacher_text": "txt_ttxt",
    }
    for ours, theirs in names.items():
        close(terms["pairs"][ours], arrays[f"loss/pairs_{theirs}"], theirs)
        if ours != "clip":
            term = "loss/distill_" + theirs.replace("_t", "_vs_t", 1)
            close(terms["pairs"][ours].mean(), arrays[term], term)
    close(terms["clip"], arrays["loss/clip"])
    close(terms["distill"], arrays["loss/distill"])
    close(total, arrays["loss/total"])


def test_gradients(case):
    def loss(student):
        return case.method.loss(
            student, {}, case.teacher, {}, case.batch, rng=jax.random.key(0), step=0
        )[0]

    value, grads = jax.jit(jax.value_and_grad(loss))(case.student)
    close(value, case.arrays["loss/total"])
    state = convert.to_reference(grads)
    compared = [k for k in case.arrays if k.startswith("grad/")]
    assert compared
    for name in compared:
        close(state[name.removeprefix("grad/")], case.arrays[name], name)
    norms = [
        np.linalg.norm(state[name].astype(np.float64)) for name in case.info["param_names_in_order"]
    ]
    close(norms, case.arrays["gradnorm/values"])


@pytest.mark.parametrize(
    "case", ["plain", pytest.param("scan_remat", marks=pytest.mark.slow)], indirect=True
)
def test_two_training_steps(case):
    """The loop's own step: AdamW, warm-up, weight decay by name, teacher before student."""
    hyper = case.info["hyper"]
    optimizer = make_optimizer(
        learning_rate=hyper["lr"],
        total_steps=hyper["total_steps"],
        warmup_steps=hyper["warmup"],
        weight_decay=hyper["wd"],
        beta1=hyper["beta1"],
        beta2=hyper["beta2"],
        epsilon=hyper["eps"],
    )
    decayed = {k for k, (_, wd) in optimizer.assign(case.student).items() if wd}
    marked = {
        k: np.full(np.shape(v), float(k in decayed)) for k, v in trees.flatten(case.student).items()
    }
    marked = convert.to_reference(trees.unflatten(marked))
    assert {k for k, v in marked.items() if v.all()} == set(case.info["weight_decayed_params"])
    close(optimizer.schedule(jnp.arange(hyper["total_steps"])), case.info["lr_steps"])

    state = jax.jit(step.make_init(case.method, optimizer))(jax.random.key(0))
    state |= {"model": case.student, "averaged": case.teacher}
    train_step = jax.jit(step.make_train_step(case.method, optimizer))
    for i in range(2):
        state, metrics = train_step(state, case.batch, i, jax.random.key(0))
        logged = case.info["log_lines"][i]
        for key, name in (("Distill_loss", "distill_loss"), ("Clip_loss", "clip_loss")):
            shown = float(logged.split(f"{key}: ")[1].split()[0])
            assert abs(float(metrics[name]) - shown) < 1e-4, (i, name)
    for net, params in (("student", state["model"]), ("teacher", state["averaged"])):
        reference = convert.to_reference(params)
        compared = [k for k in case.arrays if k.startswith(f"step2/{net}/")]
        assert compared
        for name in compared:
            close(reference[name.removeprefix(f"step2/{net}/")], case.arrays[name], name)
        names = case.info["param_names_in_order"]
        norms = [np.linalg.norm(reference[k].astype(np.float64)) for k in names]
        close(norms, case.arrays[f"step2/{net}_norms"])
    _, metrics = train_step(state, case.batch, 2, jax.random.key(0))  # its loss is before it
    close(metrics["distill_loss"], case.arrays["step2/loss_distill"])
    close(metrics["clip_loss"], case.arrays["step2/loss_clip"])


def test_momentum_schedule(case):
    steps = case.info["hyper"]["total_steps"]
    method = Method(
        preprocess=case.method.preprocess,
        model=case.method.model,
        ema_decay=case.info["hyper"]["momentum"],
        ema_decay_steps=steps,
    )
    found = [method.ema_decay_at(i) for i in range(steps)]
    close(found, case.info["momentum_schedule_if_not_fixed"])
    assert method.ema_decay_at(2 * steps) == 1


def test_position_tables(case):
    table = case.student["image_tower"]["position_embedding"]
    local = case.info["local_size"] // case.method.model["image"]["patch_size"]
    names = {k for k in case.arrays if k.startswith("eval/posemb_")}
    assert f"eval/posemb_{local}x{local}_local" in names
    for name in names:
        rows, cols = map(int, name.removeprefix("eval/posemb_").split("_")[0].split("x"))
        close(resize_grid(table, (rows, cols), DINO_EXCESS), case.arrays[name], name)


def test_rectangular_image(case):
    """The image of the segmentation fixture, whose grid is neither square nor the trained one."""
    image = jnp.asarray(np.transpose(case.arrays["in/seg_image"], (0, 2, 3, 1)))
    tokens, pooled = jax.jit(
        lambda params: case.method.network.apply(
            {"params": params}, method=lambda model: model.image_tower(image)
        )
    )(case.student)
    close(tokens, case.arrays["eval/seg_tokens_csa0"])
    close(pooled, case.arrays["eval/seg_pooled_csa0"])


@pytest.fixture(scope="module")
def window_maps(case):
    """f32[2, names, 4, 4] of each window of the segmentation fixture's image."""
    arrays, seg = case.arrays, case.info["seg"]
    image = np.transpose(arrays["in/seg_image"], (0, 2, 3, 1))[0]
    places = windows(0, image.shape[:2], seg["crop"], seg["stride"])
    cut = [image[y : y + seg["crop"], x : x + seg["crop"]] for _, y, x in places]
    names = arrays["in/seg_query_features"].T
    predict = case.method.predict_fns()["encode_patches"]
    with jax.default_matmul_precision("highest"):
        found = jax.jit(predict)(case.student, {"image": np.stack(cut)})
        return list(jnp.einsum("bkhwd,dn->bknhw", found, names))


@as_trained
def test_segmentation_of_windows(case, window_maps):
    arrays, seg = case.arrays, case.info["seg"]
    size, output = arrays["in/seg_image"].shape[2:], seg["ori_shape"]
    rows, columns = dense.axes(window_maps, size, output, seg["crop"], seg["stride"])
    scores = [
        dense.stretch(rows, dense.lines(window_maps, way, rows, columns))[
            :, : output[0], : output[1]
        ]
        for way in range(2)
    ]
    for way in range(2):
        close(scores[way], arrays[f"seg/slide_logits_csa{way}"])
    image = np.transpose(arrays["in/seg_image"], (0, 2, 3, 1))[0]
    refined = pamr.refine(scores[1], resized_bilinear(image, output), output, steps=10)
    close(refined[:, ::4, ::4], arrays["seg/pamr10"])


@as_trained
@pytest.mark.parametrize("name", ["plain", "voc21", "obj"])
def test_label_maps(case, window_maps, name):
    arrays, seg = case.arrays, case.info["seg"]
    rule = dense.Rule(
        tuple(seg["class_index"]),
        (False,) * len(seg["words"]),
        logit_scale=seg[name]["logit_scale"],
        probability_threshold=seg[name]["prob_thd"],
        area_threshold=seg[name]["area_thd"],
    )
    size = arrays["in/seg_image"].shape[2:]
    found = dense.label_map(
        window_maps, 1, size, seg["ori_shape"], seg["crop"], seg["stride"], rule
    )
    np.testing.assert_array_equal(found, arrays[f"seg/pred_{name}"][0])
    scores = jnp.asarray(arrays["seg/slide_logits_csa1"][0, :, ::4, ::4])
    if name != "voc21":  # whose probabilities are those after its areas
        close(dense.class_probabilities(scores, rule), arrays[f"seg/prob_{name}"])


@as_trained
def test_patches_of_a_whole_image(case):
    """And the tokens they are made of, with both kinds of attention."""
    image = jnp.asarray(np.transpose(case.arrays["in/seg_image"], (0, 2, 3, 1)))

    @jax.jit
    def capture(params):
        return case.method.network.apply(
            {"params": params}, image, method="encode_patches", capture_intermediates=True
        )

    patches, captured = capture(case.student)
    [tokens] = trees.flatten(captured["intermediates"])["image_tower/norm_post/__call__"]
    for way in range(2):
        close(tokens[way, :, 1:], case.arrays[f"eval/seg_tokens_csa{way}"])
        maps = jnp.moveaxis(patches[0, way] @ case.arrays["in/seg_query_features"].T, -1, 0)
        size = image.shape[1:3]
        rows, columns = (stretched(a, b) for a, b in zip(maps.shape[1:], size, strict=True))
        whole = jnp.einsum("yi,nij,xj->nyx", rows, maps, columns)
        close(whole, case.arrays[f"seg/forward_feature_csa{way}"])


def test_zeroshot_weights(case):
    ids = case.arrays["in/zs_token_ids"]
    classes = case.arrays["eval/zeroshot_weights"].shape[1]
    features = jax.jit(case.method.predict_fns()["encode_text"])(case.student, {"tokens": ids})
    weights = zeroshot_weights(features, classes)
    close(weights, case.arrays["eval/zeroshot_weights"])


def test_clamp():
    clamped = pairs.clamp_scales({"logit_scale": jnp.float32(9), "distill_logit_scale": -1.0})
    np.testing.assert_allclose(clamped["logit_scale"], np.log(100), rtol=1e-6)
    assert clamped["distill_logit_scale"] == 0


def test_retrieval_metrics(loaded):
    arrays, info = loaded
    similarity = arrays["in/retrieval_sim"]
    owner = np.arange(similarity.shape[1]) // (similarity.shape[1] // similarity.shape[0])
    found = retrieval_metrics(similarity, owner)
    for name, value in info["retrieval"]["metrics"].items():
        assert found[name] == pytest.approx(value, abs=1e-6), name


def test_sentence_splitting(loaded):
    for example in loaded[1]["text"]["split"]:
        assert split_sentences(example["inp"]) == example["out"]


def test_tokens(loaded):
    tokenizer = make_tokenizer("clip")
    for example in loaded[1]["text"]["tokens"]:
        ids = tokenizer([example["inp"]], len(example["ids"]))[0]
        assert ids.tolist() == example["ids"], example["inp"]


def test_caption_sampling(loaded):
    text = loaded[1]["text"]
    rng = random.Random(0)
    golden = text["sampler_seed0"]
    for expected in golden["out"]:
        assert sample_captions(golden["lists"], "textcrop", len(expected), rng) == expected

    rng = random.Random(0)
    golden = text["sampler_pixelprose_seed0"]
    captions = {k: [v] for k, v in golden["sample"].items()}
    for expected in golden["out"]:
        found = sample_captions(captions, "textcrop_pixelprose", len(expected), rng)
        assert found == expected

    golden = text["oversample_seed0"]
    assert sample(golden["list"], golden["k"], random.Random(0)) == golden["out"]
