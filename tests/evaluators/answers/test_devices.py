"""Every evaluator of text gives the same values and files on any number of devices, by one process
or by two."""

import pytest

from input_pipeline.checks import parts
from tests.evaluators.answers import toy_text
from tests.evaluators.shared import toy

MODULE = "tests.evaluators.answers.toy_text"


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """(values, files) of this process, with one device."""
    folder = tmp_path_factory.mktemp("one")
    return toy_text.evaluate_all(folder=folder), files(folder)


def test_the_toys_are_all_there_and_right_now_and_then(expected):
    values, written = expected
    there = {name for name in parts.known("evaluators.answers")}
    assert values.keys() == there
    assert len(written) == 5
    main = {"vqa": "exact_match", "captions": "bleu_1", "referring": "mean_iou"}
    for name in there - {"caption_loss"}:
        assert 0 < values[name][main.get(name, "accuracy")] < 1, name


def test_the_size_of_batches_does_not_show(expected, tmp_path):
    assert toy_text.evaluate_all(batch_size=19, folder=tmp_path) == expected[0]
    assert files(tmp_path) == expected[1]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_devices_and_processes_do_not_show(expected, processes, tmp_path):
    if processes == 1:
        started = [toy.start(MODULE, "2", str(tmp_path), devices=8)]
    else:
        started = toy.start_two(MODULE, "1", str(tmp_path), devices=2)
    for process in started:
        count, values = toy.result(process)
        assert count == 8 // processes
        assert values.keys() == expected[0].keys()
        for name, metrics in expected[0].items():
            assert values[name] == pytest.approx(metrics, abs=1e-6), name
    assert files(tmp_path) == expected[1]
