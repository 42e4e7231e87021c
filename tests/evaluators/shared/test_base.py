"""How evaluators are made, and equality of their values on any number of devices."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from evaluators.shared.base import Evaluator, find_evaluator, make_evaluator, row_of
from input_pipeline.checks import parts
from input_pipeline.checks.arguments import ArgumentError
from tests.evaluators.answers import toy_text
from tests.evaluators.shared import toy

MODULE = "tests.evaluators.shared.toy"


def assert_same(values, expected):
    assert values.keys() == expected.keys()
    for name in expected:
        assert values[name] == pytest.approx(expected[name], abs=1e-6), name


def test_eight_devices_give_the_values_of_one():
    expected = toy.evaluate_all()
    assert 0 < expected["retrieval"]["text_to_image_R@5"] < 1  # or equality would say little
    assert expected == toy.evaluate_all(batch_size=19)
    count, values = toy.result(toy.start(MODULE, "2", devices=8))
    assert count == 8
    assert_same(values, expected)


def test_two_processes_give_the_values_of_one():
    for process in toy.start_two(MODULE, "1", devices=2):
        count, values = toy.result(process)
        assert count == 4
        assert_same(values, toy.evaluate_all())


def test_missing_parts_are_named():
    source, model = toy.uneven_world(), toy.random_model()
    with pytest.raises(ValueError, match="retrieval"):
        toy.evaluate("retreival", source, model)
    with pytest.raises(ValueError, match=r"encode_text.*generate"):
        fns = {"encode_image": None, "generate": None}
        toy.evaluate("hard_negatives", source, model, predict_fns=fns)
    textless = dataclasses.replace(toy.PREPROCESS, tokenizer=None, context_length=0)
    with pytest.raises(ValueError, match="needs text, but the model has no tokenizer"):
        toy.evaluate("hard_negatives", source, model, preprocess=textless)
    with pytest.raises(ValueError, match="no records"):
        toy.evaluate("retrieval", toy.ToySource({"caption": []}), model, caption_field="caption")


@pytest.mark.parametrize("name", parts.known("evaluators"))
def test_each_evaluator_takes_the_keys_it_lists(name):
    evaluator = find_evaluator(name)
    assert issubclass(evaluator, Evaluator)
    functions = evaluator.needs or ("encode_image", "features")
    for function in functions:
        needed = evaluator.needed(dict.fromkeys(evaluator.needs or (function,)))
        assert needed and all(row_of(name, toy_text.PREPROCESS) for name in needed)
    arguments = (name, {}, toy.PREPROCESS, toy.mesh())
    with pytest.raises(ArgumentError, match=r"unexpected keyword argument 'colour'.*'data'"):
        make_evaluator(*arguments, data={}, colour="red")
    with pytest.raises(ArgumentError, match="the key 'data' is missing"):
        make_evaluator(*arguments)


def test_one_from_outside_need_not_derive_from_the_base(tmp_path, monkeypatch):
    code = """class Evaluator:
    def __init__(self, predict_fns, preprocess, mesh, *, size: int):
        self.size = size
    """
    (tmp_path / "outside_evaluator.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ("outside_evaluator", {}, toy.PREPROCESS, toy.mesh())
    assert make_evaluator(*arguments, size=3).size == 3
    with pytest.raises(ArgumentError, match="did you mean 'size'"):
        make_evaluator(*arguments, sise=3)


def test_scenes_serve_every_evaluator():
    data = {"name": "scenes", "split": "val", "size": 12}
    model = {"word": toy.random_model()["word"], "image": np.eye(3, 16, dtype=np.float32)}

    def encode_image(model, batch):
        colour = batch["image"].astype(np.float32).mean(axis=(1, 2)) @ model["image"]
        return colour / jnp.linalg.norm(colour, axis=-1, keepdims=True)

    fns = {"encode_image": encode_image, "encode_text": toy.encode_text}
    preprocess = dataclasses.replace(toy.PREPROCESS, image_size=32, context_length=32)
    config = {"retrieval": {"caption_field": "caption"}, "hard_negatives": {}, "zeroshot": {}}
    for name, args in config.items():
        evaluator = make_evaluator(name, fns, preprocess, toy.mesh(), data=data, **args)
        values = dict(evaluator.run(model))
        assert all(np.isfinite(value) for value in values.values())
        assert values == dict(evaluator.run(model))
