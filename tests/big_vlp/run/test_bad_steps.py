"""Refused updates: each new one is reported once, stop means stop, skip has a limit."""

import json

import pytest

from big_vlp.run.bad_steps import BadSteps, NonFiniteError


class Run:
    """Steps with or without a refused update, and what is looked at after each `every`."""

    def __init__(self, workdir, on_nonfinite="skip", limit=3, count=0):
        self.count, self.said = count, []
        self.bad = BadSteps(
            count, workdir, on_nonfinite, limit, lambda step: [f"r{step}"], self.said.append
        )

    def steps(self, first, refused, every=1):
        for step, is_bad in enumerate(refused, first):
            self.count += is_bad
            self.bad.note(step, self.count)
            if (step + 1) % every == 0:
                self.bad.look()


def report(workdir):
    return json.loads((workdir / "nonfinite.json").read_text())


@pytest.mark.parametrize("every", [1, 4])
def test_every_new_one_is_recorded(tmp_path, every):
    Run(tmp_path).steps(0, [0, 1, 0, 0, 0, 1, 1, 0], every)
    assert report(tmp_path) == {
        "first_bad_step": 1,
        "record_ids": ["r1"],
        "later": [{"step": 5, "record_ids": ["r5"]}, {"step": 6, "record_ids": ["r6"]}],
    }


def test_good_steps_leave_no_record(tmp_path):
    run = Run(tmp_path)
    run.steps(0, [0] * 8, 4)
    assert not list(tmp_path.iterdir()) and not run.said


def test_stop_is_for_new_ones_only(tmp_path):
    run = Run(tmp_path, "stop")
    with pytest.raises(NonFiniteError, match="of step 2 was not finite"):
        run.steps(0, [0, 0, 1, 0], 4)
    resumed = Run(tmp_path, "stop", count=run.count)
    resumed.steps(4, [0] * 4, 2)
    with pytest.raises(NonFiniteError, match="of step 9"):
        resumed.steps(8, [0, 1])
    assert [report(tmp_path)["first_bad_step"], report(tmp_path)["later"][0]["step"]] == [2, 9]


@pytest.mark.parametrize("every", [1, 2, 10])
def test_skip_ends_at_the_limit_in_a_row(tmp_path, every):
    """However often it is looked at, also when the row has ended in between."""
    run = Run(tmp_path, "skip", limit=3)
    run.steps(0, [1, 1, 0, 0, 1, 1, 0, 1, 0, 0], every)
    with pytest.raises(NonFiniteError, match=r"3 in a row, config\.max_bad_steps is 3"):
        run.steps(10, [0, 1, 1, 1, 0, 0, 0, 0, 0, 0], every)


def test_the_record_stays_short(tmp_path):
    Run(tmp_path, limit=10**6).steps(0, [1] * 500, 50)
    assert len(report(tmp_path)["later"]) < 30


def test_a_step_that_is_made_again_is_recorded_once(tmp_path):
    """A run that was killed goes on from before it."""
    for _ in range(2):
        Run(tmp_path).steps(0, [0, 1, 0])
    assert "later" not in report(tmp_path)
