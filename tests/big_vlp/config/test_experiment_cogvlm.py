"""Configs of CogVLM into parts: a plan with two sizes, text alone, several warm starts."""

import pytest

from big_vlp.experiment import Experiment
from tests.big_vlp.config.toy_config import build, error, make_config, with_value


def make_cogvlm():
    config = make_config("clip")
    config.preprocess = dict(
        image_size=32,
        image_token_size=8,
        resize="squash",
        tokenizer="llama:scenes",
        context_length=64,
    )
    config.plan = dict(name="switch", first_size=16, at_step=2)
    config.views = dict(name="cogvlm", caption_fields=("caption",))
    text = dict(vocab_size=640, width=16, layers=1, heads=2, mlp_dim=8)
    image = dict(image_size=32, patch_size=8, width=8, layers=1, heads=1, mlp_dim=8)
    model = dict(text=text, image=image, adapter_mlp_dim=8)
    config.method = dict(name="cogvlm", model=model, dtype="float32")
    config.optim.rules = ((".*", 1.0, 0.0),)
    config.evals = dict()
    return config


def test_parts_of_a_run_that_switches_its_size(tmp_path):
    _, method, optimizer, loader, _ = build(make_cogvlm(), tmp_path)
    assert optimizer.dead == method.dead_parameters() != {}
    assert loader.views.keys() == {16, 32}
    slots = {16: 4 + 2, 32: 16 + 2}
    batches = list(loader.iterate(0))
    for i, batch in enumerate(batches):
        size = 16 if i < 2 else 32
        assert batch["images"].shape == (4, 1, size, size, 3)
        assert batch["tokens"].shape == (4, 1 + slots[size] + 64)
        assert {k: (x.shape[1:], x.dtype) for k, x in batch.items()} == loader.views[size].spec()
    # A run that goes on in the middle sees the same.
    for resumed in (1, 2, 4):
        for batch, expected in zip(loader.iterate(resumed), batches[resumed:], strict=True):
            assert all((batch[name] == value).all() for name, value in expected.items())


def test_a_language_model_has_no_images(tmp_path):
    config = make_cogvlm()
    config.plan = dict(name="constant")
    del config.preprocess.image_token_size, config.method.model.image
    config.method.model.expert_parts = ()
    _, method, optimizer, loader, _ = build(config, tmp_path)
    assert method.network.image is None and optimizer.dead == {}
    assert loader.batch(0).keys() == {"tokens", "token_types", "loss_mask"}
    assert loader.batch(0)["tokens"].shape == (4, 65)


def test_warm_starts_go_by_name():
    parts = {"language": "language", "language/blocks/vision": None}
    config = make_cogvlm()
    config.init = dict(text=dict(model="b", parts=parts), image=dict(model="a", step=3))
    starts = Experiment.from_config(config).make_warm_starts()
    assert [start.model for start in starts] == ["a", "b"]
    assert starts[1].parts == parts and starts[0].parts is None and starts[0].step == 3
    assert Experiment.from_config(make_cogvlm()).make_warm_starts() == []


@pytest.mark.parametrize(
    "key, value, named",
    [
        ("plan.first_size", 20, "config.views: image_size=20 must be a multiple of"),
        ("plan.first_size", 32, "config.plan: first_size=32"),
        ("plan.at_step", 6, "config.plan: at_step=6 must lie within the run's 6 steps"),
        (
            "preprocess.image_token_size",
            16,
            "config.method: preprocess.image_token_size=16 must be 8",
        ),
        ("preprocess.resize", "shortest", "resize='squash'"),
        ("method.model.tower", "resnet", "config.method: Unknown tower 'resnet'; choose one of"),
        ("method.image_loss", -1.0, "config.method: image_loss=-1.0"),
        ("views.image_token_size", 8, "config.views: ['image_token_size'] cannot be set here"),
        ("optim.dead", {}, "config.optim: ['dead'] cannot be set here"),
    ],
)
def test_wrong_values_of_a_cogvlm(tmp_path, key, value, named):
    assert named in error(with_value(make_cogvlm(), key, value), tmp_path)
