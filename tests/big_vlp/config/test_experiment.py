"""Configs into parts: every wrong key is one error that names the section and the key."""

import dataclasses
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import ml_collections
import numpy as np
import pytest
from jax.sharding import AxisType

from big_vlp.experiment import ConfigError, Experiment, ScheduledEvaluator, config_changes
from big_vlp.methods import Method
from big_vlp.parallel import processes
from big_vlp.parallel.meshes import AXES
from big_vlp.recipes import CATLIP_RULES, SCENES_VOCABULARY
from input_pipeline.words.vocabulary import Vocabulary
from tests.big_vlp.config.toy_config import build, changed, error, make_config, with_value


@pytest.mark.parametrize("method", ["cosmos", "clip"])
def test_parts_fit_together(tmp_path, method):
    mesh, made, optimizer, loader, evaluators = build(make_config(method), tmp_path)
    assert dict(mesh.shape) == {"data": jax.device_count(), "fsdp": 1, "tensor": 1}
    model, averaged = jax.eval_shape(made.init, jax.random.key(0))
    assert optimizer.is_trainable(model)("logit_scale")
    assert bool(averaged) == (method == "cosmos")
    batch = loader.batch(0)
    assert {k: (x.shape[1:], x.dtype) for k, x in batch.items()} == loader.views[16].spec()
    assert {len(x) for x in batch.values()} == {4}
    assert optimizer.total_steps == loader.total_steps == 6
    assert evaluators["held_out"].weights == ("averaged" if averaged else "model")


SECTIONS = [
    "preprocess", "data", "views", "loader", "method", "method.model", "method.model.image",
    "method.model.text", "method.photometric", "method.photometric.local", "optim", "mesh",
    "checkpoint", "evals.held_out", "evals.held_out.data",
]  # fmt: skip


@pytest.mark.parametrize("section", SECTIONS)
def test_unknown_key_in_a_section(tmp_path, section):
    message = error(changed(f"{section}.typo", 3), tmp_path)
    assert "typo" in message
    named = {"evals.held_out.data": "evals.held_out"}.get(section, section.split(".model")[0])
    assert f"config.{named.split('.photometric')[0]}" in message


def test_unknown_key_at_the_top(tmp_path):
    message = error(changed("typo", 3), tmp_path)
    assert "config:" in message
    assert "typo" in message


@pytest.mark.parametrize("key", ["model.pooler_heads", "ema_decay"])
def test_keys_of_another_method_are_unknown(tmp_path, key):
    message = error(changed(f"method.{key}", 2, method="clip"), tmp_path)
    assert "config.method" in message
    assert key.split(".")[-1] in message


@pytest.mark.parametrize(
    "key",
    ["views.image_size", "views.context_length", "views.tokenizer", "loader.seed",
     "loader.global_batch", "optim.total_steps", "method.preprocess", "data.where", "mesh.fn"],
)  # fmt: skip
def test_a_key_that_is_set_elsewhere_is_unknown_here(tmp_path, key):
    message = error(changed(key, 3), tmp_path)
    section, name = key.split(".")
    assert f"config.{section}" in message
    assert name in message


@pytest.mark.parametrize(
    "key",
    ["total_steps", "data", "preprocess.image_size", "data.name", "views.name",
     "method.name", "method.ema_decay", "method.model.embed_dim", "method.model.image.width",
     "method.model.image", "method.photometric.local", "optim.learning_rate",
     "evals.held_out.evaluator", "evals.held_out.every_steps", "evals.held_out.caption_field",
     "evals.held_out.data.name"],
)  # fmt: skip
def test_missing_key(tmp_path, key):
    message = error(changed(key, None), tmp_path)
    *section, name = key.split(".")
    assert ".".join(["config", *section[:1]]) in message
    assert f"'{name}'" in message


@pytest.mark.parametrize(
    "key, value, parts",
    [
        ("on_nonfinite", "ignore", ["config.on_nonfinite", "'ignore'", "stop", "skip"]),
        ("data.name", "imagenet", ["config.data", "'imagenet'", "scenes"]),
        ("data.split", "dev", ["config.data", "'dev'"]),
        ("views.name", "dino", ["config.views", "'dino'"]),
        ("views.caption_mode", "shuffled", ["config.views", "shuffled"]),
        ("method.name", "blip", ["config.method", "'blip'", "cosmos"]),
        ("method.dtype", "bf16", ["config.method", "bf16"]),
        ("method.attention", "falsh", ["config.method", "'falsh'", "'flash'"]),
        ("method.remat", "some", ["config.method", "'some'", "dots"]),
        ("method.model.image.pool", "max", ["config.method", "'max'", "cls"]),
        ("method.model.image.heads", 3, ["config.method", "3 heads"]),
        ("method.model.text.activation", "relu", ["config.method", "'relu'", "quick_gelu"]),
        ("preprocess.resize", "squish", ["config.preprocess", "'squish'", "squash"]),
        ("preprocess.image_size", 20, ["config", "20", "patch size 8"]),
        ("optim.warmup_steps", 7, ["config.optim", "warmup_steps (7)"]),
        ("mesh.data", 3, ["config.mesh", "data=3"]),
        ("evals.held_out.evaluator", "bleu", ["config.evals.held_out", "'bleu'", "retrieval"]),
        ("evals.held_out.weights", "ema", ["config.evals.held_out", "'ema'", "averaged"]),
        ("evals.held_out.every_steps", 0, ["config.evals.held_out", "every_steps=0"]),
        ("log_every_steps", 0, ["config.log_every_steps=0"]),
        ("evals.held_out.caption_field", "alt", ["config.evals.held_out", "'alt'", "caption"]),
    ],
)
def test_bad_value(tmp_path, key, value, parts):
    message = error(changed(key, value), tmp_path)
    for part in parts:
        assert part in message


def test_no_evaluator_waits_for_an_average_that_never_comes(tmp_path):
    message = error(changed("evals.held_out.weights", "averaged", method="clip"), tmp_path)
    assert "config.evals.held_out" in message
    assert "averaged" in message


def test_config_as_json():
    experiment = Experiment.from_config(make_config())
    data = experiment.as_json()
    assert json.loads(json.dumps(data)) == data
    again = Experiment.from_config(ml_collections.ConfigDict(data))
    assert again.as_json() == data
    assert data["method"]["model"]["image"]["patch_size"] == 8
    with_numpy = make_config()
    with_numpy.method.ema_decay = np.float64(0.5)
    with with_numpy.ignore_type():
        with_numpy.preprocess.image_size = np.int64(16)
    assert Experiment.from_config(with_numpy).as_json()["preprocess"]["image_size"] == 16


class Recorder:
    def run(self, model):
        yield "a", 1.0
        yield "parameters", sorted(model)


def test_scheduled_evaluator():
    evaluator = ScheduledEvaluator(Recorder(), every_steps=4)
    assert [i for i in range(11) if evaluator.is_due(i, total_steps=10)] == [4, 8, 10]
    state = {"model": {"x": 1}, "averaged": {}, "frozen": {"y": 2}}
    assert evaluator.run(state) == {"a": 1.0, "parameters": ["x", "y"]}
    with pytest.raises(ConfigError, match="no averaged weights"):
        ScheduledEvaluator(Recorder(), every_steps=4, weights="averaged").run(state)


def test_config_changes_name_every_difference():
    old = {"step": 3, "config": {"seed": 0, "evals": {}, "optim": {"a": 1, "b": [1, 2]}}}
    new = {"step": 9, "config": {"seed": 1, "evals": {"x": {"k": 1}}, "optim": {"b": [1, 2]}}}
    assert config_changes(old, old) == []
    assert config_changes({**old, "step": 8}, old) == []
    changes = config_changes(old, new)
    assert "config.seed: 0 -> 1" in changes
    assert "config.optim.a: 1 -> absent" in changes
    assert "config.evals.x.k: absent -> 1" in changes
    assert all("object" not in line and "Node" not in line for line in changes)
    assert len(changes) <= 4


def test_a_vocabulary_smaller_than_the_tokenizers(tmp_path):
    config = make_config("clip")
    config.method.model.text.vocab_size = 1000
    with pytest.raises(ConfigError, match="vocab_size must be at least 49408"):
        build(config, tmp_path)


class OtherMethod(Method):
    """A method with a text input of its own kind; it says itself how many ids it knows."""

    def init(self, rng):
        return {}, {}


@pytest.mark.parametrize("ids, refused", [(1000, True), (49_408, False), (None, False)])
def test_the_method_says_how_many_ids_it_knows(monkeypatch, ids, refused):
    method = OtherMethod()
    if ids is not None:
        method.vocab_size = ids
    monkeypatch.setattr("big_vlp.experiment.make_method", lambda name, **given: method)
    config = make_config("clip")
    config.method = dict(name="mine")
    experiment = Experiment.from_config(config)
    if refused:
        with pytest.raises(ConfigError, match=r"config\.method: vocab_size must be at least 49408"):
            experiment.make_method()
    else:
        assert experiment.make_method() is method


@pytest.mark.parametrize("bug", [KeyError("key"), TypeError("1 + 'a'"), IndexError(3)])
def test_a_bug_inside_a_model_is_not_a_wrong_config(monkeypatch, bug):
    def init(self, rng):
        raise bug

    monkeypatch.setattr(OtherMethod, "init", init)
    monkeypatch.setattr("big_vlp.experiment.make_method", lambda name, **given: OtherMethod())
    config = make_config("clip")
    config.method = dict(name="mine")
    with pytest.raises(type(bug)) as error:
        Experiment.from_config(config).make_method()
    assert error.value is bug


@pytest.mark.parametrize(
    "key, value, message",
    [
        (
            "optim.learning_rat",
            1.0,
            "config.optim: got an unexpected keyword argument 'learning_rat'; did you mean 'learni",
        ),
        ("optm", {}, "config: got an unexpected keyword argument 'optm'; did you mean 'optim'"),
        (
            "views.flip_probe",
            1,
            "config.views: got an unexpected keyword argument 'flip_probe'; did you mean 'flip",
        ),
        (
            "data.splt",
            "val",
            "config.data: got an unexpected keyword argument 'splt'; did you mean 'split'",
        ),
        ("data.name", "scene", "config.data: Unknown data source 'scene'; did you mean 'scenes'"),
        ("method.name", "cosmo", "config.method: Unknown method 'cosmo'; did you mean 'cosmos'"),
        (
            "method.ema_deacy",
            1,
            "config.method: got an unexpected keyword argument 'ema_deacy'; did you mean 'ema_d",
        ),
        (
            "method.model.txt",
            {},
            "config.method: model: got an unexpected keyword argument 'txt'; did you mean 'text'",
        ),
        ("method.model.image.patchsize", 8, "did you mean 'patch_size'"),
        (
            "method.photometric.local.hu",
            0,
            "config.method: photometric.local: got an unexpected keyword argument 'hu'",
        ),
        ("method.model.image", 3, "config.method: model: image=3; give a section of keys"),
        ("method.model", 3, "config.method: model=3; give a section of keys"),
        ("method.unroll", 0, "config.method: unroll=0: give True, False, or 1 or more layers"),
        ("method.model.text.causal", 1, "causal=1; give True or False"),
        ("method.dtype", "bfloat61", "config.method: Unknown dtype 'bfloat61'; did you mean 'bflo"),
        ("evals.held_out.evaluator", "retrival", "'retrival'; did you mean 'retrieval'"),
        (
            "evals.held_out.batchsize",
            1,
            "config.evals.held_out: got an unexpected keyword argument 'batchsize'; did you",
        ),
        (
            "evals.held_out.data.siz",
            1,
            "config.evals.held_out: got an unexpected keyword argument 'siz'; did you mean",
        ),
        ("evals.held_out.data", 1, "config.evals.held_out: data=1; give a section of keys"),
        ("evals.held_out", 1, "config.evals.held_out needs the key 'evaluator'"),
        ("optim.rules", (("[", 1.0, 1.0),), "config.optim: '[' is no regex: unterminated"),
        ("optim.rules", ((".*", 1.0),), "config.optim: rules=(('.*', 1.0),); give a list of rows"),
        ("optim", 3, "config: optim=3; give a section of keys"),
    ],
)
def test_a_wrong_key_is_told_with_the_nearest(tmp_path, key, value, message):
    config = make_config()
    with config.ignore_type():
        message_found = error(with_value(config, key, value), tmp_path)
    assert message in message_found and "\n" not in message_found


def test_optimizer_rules_that_leave_parameters_out(tmp_path):
    config = make_config("clip")
    config.optim.rules = ((".*kernel", 1.0, 1.0),)
    with pytest.raises(ConfigError, match=r"config\.optim.*\n.*no rule covers"):
        build(config, tmp_path)


def test_a_mesh_that_cannot_hold_the_model_names_each_parameter_once():
    experiment = Experiment.from_config(make_config())
    method = experiment.make_method()
    optimizer = experiment.make_optimizer(method)
    mesh = jax.sharding.AbstractMesh((1, 1, 4), AXES, axis_types=(AxisType.Auto,) * 3)
    with pytest.raises(ConfigError, match=r"config\.mesh: The mesh cannot hold") as error:
        experiment.abstract_state(method, optimizer, mesh)
    name = "image_tower/transformer/blocks/attn/qkv/kernel (1, 16, 3, 2, 8)"
    assert str(error.value).count(name) == 1
    assert "axis 3 is split over tensor=4, which must divide 2" in str(error.value)


@pytest.mark.parametrize(
    "groups, message",
    [
        (((0.5, 8),), "ascending whole lengths below the context length 8"),
        (((0.5, 6), (0.2, 4)), "ascending whole lengths"),
        (((0.5, 2.5),), "ascending whole lengths"),
        (((0.5, 4), (0.6, 6)), "shares above 0 that add up to 1 at most"),
        ((4, 6), "give a list of rows of 2 numbers"),
        (((0.0, 4),), "above 0"),
    ],
)
def test_text_groups_that_cannot_be(groups, message):
    config = make_config()
    config.method.text_groups = groups
    with pytest.raises(ConfigError, match=rf"config\.method: text_groups=.*{message}"):
        Experiment.from_config(config).make_method()


def test_texts_whose_padding_matters_cannot_be_grouped():
    config = make_config()
    config.method.text_groups = ((0.5, 4),)
    config.method.model.text.causal = False
    with pytest.raises(ConfigError, match="text_groups needs a causal text tower"):
        Experiment.from_config(config).make_method()


def catlip_config(**views):
    config = make_config("clip")
    config.preprocess = dict(image_size=32, mean=(0.0,) * 3, std=(1.0,) * 3)
    config.data.size = 20
    config.plan = dict(name="variable", sizes=(16, 32, 48), batch_multiple=2)
    config.views = dict(name="catlip", vocabulary=SCENES_VOCABULARY, **views)
    model = dict(width=16, layers=1, heads=2, num_positions=4)
    config.method = dict(name="catlip", model=model, dtype="float32")
    config.optim.rules = CATLIP_RULES[:2]
    config.evals = dict()
    return config


def test_parts_of_a_classifier_fit_together(tmp_path):
    _, method, optimizer, loader, _ = build(catlip_config(), tmp_path)
    assert method.num_classes == len(Vocabulary.load(SCENES_VOCABULARY)) == 37
    labels = Experiment.from_config(catlip_config()).labels(loader)
    assert labels.names[0] == "large.n.01" and labels.keys[0] == "n5096191"
    seen = {size: batch["image"].shape for size, batch in
            ((loader.plan(i)[0], loader.batch(i)) for i in range(6))}  # fmt: skip
    assert all(shape[1:] == (size, size, 3) for size, shape in seen.items())
    assert all(shape[0] == dict(loader.plan.shapes)[size] for size, shape in seen.items())
    assert (
        optimizer.describe(method.shapes[0])["batch_stats/tower/stem/norm0/mean"]
        == "running statistic"
    )


def test_stored_labels_must_be_of_the_vocabulary(tmp_path):
    message = error(catlip_config(stored=True), tmp_path)
    assert "config.views.stored" in message and "--labels" in message
    config = catlip_config(stored=True)
    config.data = dict(name="mined_labels", data=config.data, vocabulary=SCENES_VOCABULARY)
    build(config, tmp_path)
    config.views.vocabulary_size = 5
    assert "config.views.stored" in error(config, tmp_path)


@pytest.mark.parametrize(
    "key, value, named",
    [
        ("plan.name", "linear", "config.plan: Unknown plan 'linear'"),
        ("plan.sizes", (), "config.plan: sizes=()"),
        ("plan.batch_multiple", 0, "config.plan: batch_multiple=0"),
        ("method.accumulate_steps", 16, "does not divide the batches"),
        ("views.vocabulary", "nowhere.tsv", "config.views: There is no vocabulary nowhere.tsv"),
        ("method.prior", 2.0, "config.method: prior=2.0"),
        ("method.num_classes", 3, "config.method: ['num_classes'] cannot be set here"),
        ("init", dict(old=dict(model="x", classifier="old")), "config.init.old: classifier='old'"),
        ("init", dict(old=dict(modle="x")), "config.init.old"),
        ("init", dict(model="x"), "config.init holds sections by name"),
        ("init", None, "config.init holds sections by name"),
    ],
)
def test_wrong_values_of_a_classifier(tmp_path, key, value, named):
    config = catlip_config()
    if key == "init":
        config.init = value
    else:
        config.update_from_flattened_dict({key: value})
    with pytest.raises(ConfigError) as caught:
        build(config, tmp_path)
        Experiment.from_config(config).make_warm_starts()
    assert named in str(caught.value)


def test_processes_with_different_configs_end_in_one_line(monkeypatch):
    """Such as where one machine lacks a data set, which its recipe leaves out."""
    made = Experiment.from_config(make_config("clip"))
    other = dataclasses.replace(made, seed=1, evals=made.evals | {"more": {"evaluator": "knn"}})
    turn, given = threading.Barrier(2, timeout=20), {}

    def exchange(value):  # threads as processes
        given[threading.get_ident()] = value
        turn.wait()
        found = list(given.values())
        turn.wait()
        return found

    def check(experiment):
        try:
            return experiment.check_agreed()
        except ConfigError as error:
            return error

    monkeypatch.setattr(processes, "exchange", exchange)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(check, [made, dataclasses.replace(made)])) == [None, None]
        errors = list(pool.map(check, [made, other]))
    for found in errors:
        assert "they differ in config.evals.more, config.seed. Give" in str(found)
        assert processes.is_agreed(found) and "\n" not in str(found)


def test_results_have_their_step_by_its_name():
    config = make_config("clip")
    config.evals = {"step": {"evaluator": "knn", "every_steps": 1}}
    made = Experiment.from_config(config)
    with pytest.raises(ConfigError, match=r"config\.evals\.step needs another name"):
        made.planned_evaluators(made.make_method())
