"""Plans: what each step shows is a function of the step, and the published sizes come out."""

import pytest

from input_pipeline.plans import make_plan
from input_pipeline.plans.constant import Plan as Constant
from input_pipeline.plans.switch import Plan as Switch
from input_pipeline.plans.variable import Plan as Variable
from input_pipeline.plans.variable import catlip_sizes

# Image sizes and batches per GPU of the published pretraining (arXiv 2404.15653), 64 GPUs.
PUBLISHED = {128: 3136, 144: 2477, 160: 2007, 176: 1658, 192: 1393, 208: 1187, 224: 1024,
             240: 892, 256: 784, 272: 694, 288: 619, 304: 555, 320: 501}  # fmt: skip


def variable(**changes):
    options = dict(image_size=224, global_batch=65_536, total_steps=200, seed=3)
    options |= dict(sizes=catlip_sizes(128, 320, 25, base=224, multiple=16), batch_multiple=64)
    return Variable(**options | changes)


def switch(**changes):
    options = dict(image_size=490, global_batch=24, total_steps=200, seed=3)
    return make_plan("switch", **options | dict(first_size=224, at_step=150) | changes)


def test_published_sizes():
    assert dict(variable().shapes) == {size: 64 * batch for size, batch in PUBLISHED.items()}
    assert len(catlip_sizes(128, 320, 7, base=224, multiple=32)) == 7
    assert len(catlip_sizes(256, 768, 25, base=512, multiple=16)) == 25


@pytest.mark.parametrize("plan", [variable(), Constant(32, 24, 200, 3), switch()])
def test_positions_follow_each_other_without_gap(plan):
    expected = 0
    for step in range(200):
        size, batch, first = plan(step)
        assert (size, batch) in plan.shapes
        assert first == expected
        expected += batch


def test_sizes_are_drawn_uniformly_and_by_seed_alone():
    plan = variable(total_steps=13_000)
    drawn = [plan(step)[0] for step in range(13_000)]
    assert all(850 < drawn.count(size) < 1150 for size in PUBLISHED)
    assert drawn[:200] == [variable()(step)[0] for step in range(200)]  # of any length
    assert drawn[:200] != [variable(seed=4)(step)[0] for step in range(200)]


def test_a_switch_changes_the_size_alone():
    plan = switch()
    assert isinstance(plan, Switch) and plan.shapes == [(224, 24), (490, 24)]
    assert [plan(step) for step in (0, 149, 150, 199)] == [
        (224, 24, 0),
        (224, 24, 149 * 24),
        (490, 24, 150 * 24),
        (490, 24, 199 * 24),
    ]
    # Of the step alone: in any order, and in a plan made anew.
    expected = [plan(step) for step in range(200)]
    assert [switch(seed=4)(step) for step in reversed(range(200))] == expected[::-1]


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(first_size=490), r"first_size=490: give a size in pixels other than image_size"),
        (dict(first_size=0), "first_size=0"),
        (dict(at_step=0), "at_step=0 must lie within the run's 200 steps"),
        (dict(at_step=200), "at_step=200 must lie within"),
    ],
)
def test_switches_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        switch(**changes)


def test_batches_are_multiples_of_the_devices():
    for multiple in (1, 8, 512):
        for size, batch in variable(batch_multiple=multiple).shapes:
            assert batch % multiple == 0
            assert abs(batch * size**2 / (65_536 * 224**2) - 1) < 0.02
    assert variable(global_batch=8, batch_multiple=8).shapes[-1] == (320, 8)  # never empty


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(sizes=()), "give each image size once"),
        (dict(sizes=(32, 32)), "give each image size once"),
        (dict(batch_multiple=0), "batch_multiple=0 must lie in"),
        (dict(batch_multiple=100_000), "batch_multiple=100000 must lie in"),
    ],
)
def test_plans_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        variable(**changes)


def test_unknown_plan():
    with pytest.raises(ValueError, match=r"Unknown plan .linear"):
        make_plan("linear")
