"""Several devices and processes give the values and files of one."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from tests.evaluators.answers import toy_text

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(values, folder of the files) of one device."""
    folder = tmp_path_factory.mktemp("alone")
    return toy_text.evaluate_all(folder=folder), folder


def started(*args, devices, **env):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.evaluators.answers.toy_text", *map(str, args)],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"} | env,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_same(process, devices, alone, folder):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    count, values = json.loads(out.splitlines()[-1])
    assert count == devices and values.keys() == alone[0].keys()
    for name, metrics in alone[0].items():
        assert values[name] == pytest.approx(metrics, abs=1e-6), name
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files == {path.name: path.read_bytes() for path in alone[1].iterdir()}
    assert files.keys() == {f"{name}.json" for name in toy_text.WRITTEN}
    return err


@pytest.mark.slow
def test_eight_devices(alone, tmp_path):
    values = alone[0]
    assert values == toy_text.evaluate_all(batch_size=19)
    assert 0 < values["vqa"]["exact_match"] < 1 and 0 < values["referring"]["mean_iou"] < 1
    assert 0 < values["pointing"]["accuracy"] < 1 and 0 < values["choice_loss"]["accuracy"] < 1
    assert 0 < values["multiple_choice"]["accuracy_circular"] < 1
    assert_same(started(2, tmp_path, devices=8), 8, alone, tmp_path)


@pytest.mark.parametrize("tensor", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_processes(tensor, alone, tmp_path):
    """With "tensor" 2 every row lies on two devices. What one device has written before is taken:
    the first batches of one evaluation."""
    with toy_text.ending_after(2):
        toy_text.evaluate_all(folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["captions.json.parts"]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    both = [
        started(tensor, tmp_path, devices=2, PROCESS=str(i), COORDINATOR=place) for i in range(2)
    ]
    errors = [assert_same(process, 4, alone, tmp_path) for process in both]
    assert ["answers are there already" in error for error in errors] == [True, False]
