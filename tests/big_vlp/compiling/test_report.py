"""The compile command: what it reports for devices of this machine."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import pytest

from big_vlp import compile as command
from big_vlp.compiling import programs
from big_vlp.compiling.evaluation import evaluator_programs
from big_vlp.compiling.setup import Setup, held, make_mesh
from big_vlp.experiment import ConfigError, Experiment
from big_vlp.telemetry.flops import flops_per_sample

CONFIG = Path(__file__).parents[2] / "tiny_config.py"


@pytest.fixture(scope="module")
def config():
    spec = importlib.util.spec_from_file_location("tiny_config", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config("method=clip")


@pytest.fixture(scope="module")
def setup(config):
    experiment = Experiment.from_config(config)
    return Setup.of(experiment, experiment.make_mesh())


def test_report(config, capsys, monkeypatch):
    config = config.copy_and_resolve_references()
    config.evals.retrieval.data = dict(name="prepared", path="is/not/read")
    opened = []
    monkeypatch.setattr(command, "open_compile_cache", lambda: opened.append(True))
    command.show(config, topology=None)
    assert opened
    text = capsys.readouterr().out
    assert "image_tower/patch/kernel" in text
    assert "On each of 1 devices (data=1, fsdp=1, tensor=1):" in text
    assert "A step of 8 examples at 16 pixels:" in text
    assert "1.00 times as many" in text  # nothing is computed twice
    # Parameters and two moments, in fp32; the tokens' embedding alone has 790,528.
    state_mib = float(text.split("training state")[1].split("MiB")[0])
    assert 3 * 4 * 790_528 / 2**20 < state_mib < 11
    assert "Evaluators, each beside the training state:" in text
    for function in ("encode_image", "encode_text"):
        _, found = text.split(f"  retrieval: {function} of 4 rows\n    weights       ")
        assert float(found.split("MiB")[0]) == pytest.approx(state_mib / 3, abs=0.1)
        assert float(found.split("its work")[1].split("MiB")[0]) < 1


def test_an_evaluator_that_does_not_fit(setup):
    """Beside the training state, all of it."""
    full = dataclasses.replace(setup, memory=held(setup.state) + 100)
    what = r"config.evals.retrieval \(encode_image of 4 rows\) does not fit: .* Lower "
    with pytest.raises(programs.TooLargeError, match=rf"{what}config.evals.retrieval.batch_size"):
        next(evaluator_programs(full))


def test_weights_in_another_form_count(setup, monkeypatch):
    """Those that a predict function has made for itself, if they are not arrays of the model."""

    class Predict:
        def __call__(self, model, batch):
            (dtype,) = {x.dtype for x in jax.tree.leaves(model["text_tower"])}
            assert dtype == self.dtype and model["logit_scale"].dtype == "float32"
            return batch["tokens"] * model["logit_scale"]

        def weights(self, model):
            texts = jax.tree.map(lambda x: x.astype(self.dtype), model["text_tower"])
            return {**model, "text_tower": texts}

    monkeypatch.setattr(type(setup.method), "predict_fns", lambda self: {"encode_text": predict})
    predict, work = Predict(), {}
    for predict.dtype in ("float32", "bfloat16"):
        report = programs.compile_predict(setup, "encode_text", 4, "model", "it", "")
        work[predict.dtype] = report.work_bytes
    copies = held(setup.state["model"]["text_tower"]) / 2
    assert work["bfloat16"] - work["float32"] == pytest.approx(copies, rel=0.01)


def test_evaluators_that_are_not_known(config, setup, tmp_path, monkeypatch):
    """Nothing is compiled of what does not say what it needs, or of what row."""
    config = config.copy_and_resolve_references()
    code = "class Evaluator:\n    needs = ('encode_maps',)\n    batch_size = 3\n"
    (tmp_path / "of_maps.py").write_text(code)
    (tmp_path / "of_nothing.py").write_text("class Evaluator:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    config.evals = dict(a=dict(evaluator="of_nothing", every_steps=1))
    setup = dataclasses.replace(setup, experiment=Experiment.from_config(config))
    assert list(evaluator_programs(setup)) == []
    config.evals = dict(a=dict(evaluator="of_maps", every_steps=1))
    setup = dataclasses.replace(setup, experiment=Experiment.from_config(config))
    with pytest.raises(ConfigError, match=r"config.evals.a: .*needs .*\['encode_maps'\]"):
        list(evaluator_programs(setup))
    config.evals = dict(a=dict(evaluator="retrieval", weights="averaged", every_steps=1))
    setup = dataclasses.replace(setup, experiment=Experiment.from_config(config))
    with pytest.raises(ConfigError, match="averages nothing"):
        list(evaluator_programs(setup))


def test_flops_do_not_depend_on_how_blocks_are_executed(config):
    plain = flops_per_sample(Experiment.from_config(config))
    config.method.update(remat="full", unroll=False, accumulate_steps=2)
    assert flops_per_sample(Experiment.from_config(config)) == plain
    config.method.model.image.layers = 4
    assert flops_per_sample(Experiment.from_config(config)) > 1.05 * plain


def test_flops_of_methods_without_accumulation():
    config = configs_module("segmentation").get_config("data=scenes")
    assert flops_per_sample(Experiment.from_config(config)) > 1e6


def configs_module(name):
    path = CONFIG.parents[1] / "configs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_topology_that_is_none(config):
    with pytest.raises(ConfigError, match="written as v5e:4x4, and needs libtpu"):
        make_mesh(Experiment.from_config(config), "no such thing")


def test_a_topology_has_the_slices_of_the_mesh(config, monkeypatch):
    asked = []

    def describe(**given):
        asked.append(given)
        raise RuntimeError("no libtpu here")

    monkeypatch.setattr("big_vlp.compiling.setup.topologies.get_topology_desc", describe)
    config = config.copy_and_resolve_references()
    for slices in (1, 2):
        config.mesh.slices = slices
        with pytest.raises(ConfigError, match="no libtpu here"):
            make_mesh(Experiment.from_config(config), "v5e:4x4")
    v5e = {"platform": "tpu", "topology_name": "v5e:4x4"}
    assert asked == [{**v5e, "num_slices": 1}, {**v5e, "num_slices": 2}]


def test_what_evaluators_of_features_need_is_compiled(setup, monkeypatch):
    """Of a method that has text, and of one that has not."""
    asked = {"knn": {"evaluator": "knn", "every_steps": 1, "batch_size": 4}}
    experiment = dataclasses.replace(setup.experiment, evals=asked)
    setup = dataclasses.replace(setup, experiment=experiment)
    monkeypatch.setattr(programs, "compile_predict", lambda *_: None)
    for functions, expected in (
        ({"encode_image": abs, "features": abs}, "encode_image"),
        ({"features": abs}, "features"),
    ):
        monkeypatch.setattr(type(setup.method), "predict_fns", lambda *_, f=functions: f)
        [program] = evaluator_programs(setup)
        assert (program.evaluator, program.function) == ("knn", expected)
    monkeypatch.setattr(type(setup.method), "predict_fns", lambda *_: {"classify": abs})
    with pytest.raises(ConfigError, match=r"config\.evals\.knn: .*'encode_image' or 'features'"):
        list(evaluator_programs(setup))
