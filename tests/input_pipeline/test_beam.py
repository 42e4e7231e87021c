"""Tasks on Beam: results as of this machine's processes, whatever is tried again or fails."""

import pickle
import threading
import time

import pytest
from etils import epath
from rich.console import Console

from input_pipeline import beam
from input_pipeline.files import outages
from input_pipeline.workers import run_all
from tests.input_pipeline import beam_tasks
from tests.input_pipeline.beam_tasks import Label

pytest.importorskip("apache_beam", reason="the extra [beam] is not installed")
from apache_beam.runners.direct.direct_runner import SwitchingDirectRunner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.prism_runner import PrismRunner


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(outages, "_WAITS", (0, 0))


@pytest.fixture
def run(tmp_path):
    """run(function, tasks, *options) -> {name: result}, on Beam in this process."""

    def run(function, arguments, *options):
        runner = beam.Runner("Direct", list(options), tmp_path / "out" / ".beam")
        tasks = [(Label(str(number)), (number, *more)) for number, *more in arguments]
        found = list(runner.run_all(function, tasks, "tasks", Console()))
        assert len({label for label, _ in found}) == len(found), "a task gave two results"
        return {label.name: result for label, result in found}

    yield run
    assert not (tmp_path / "out" / ".beam").exists()


def test_results_are_those_of_processes(run, tmp_path, monkeypatch):
    monkeypatch.setattr(beam, "_TASKS_PER_FILE", 4)
    numbers = [(number, str(tmp_path)) for number in range(11)]
    found = run(beam_tasks.square, numbers)
    assert found == {str(number): number**2 for number in range(11)}
    tasks = [(Label("3"), (3, str(tmp_path)))]
    [(_, here)] = run_all(beam_tasks.square, tasks, 1, "tasks", Console())
    assert here == found["3"]
    assert run(beam_tasks.square, []) == {}


def test_a_bundle_that_is_tried_again_calls_nothing_twice(run, tmp_path):
    numbers = [(number, str(tmp_path)) for number in range(5)]
    assert len(run(beam_tasks.square, numbers, "--direct_runner_bundle_repeat", "2")) == 5
    assert [path.read_text() for path in tmp_path.glob("*.calls")] == ["x"] * 5


def test_an_outage_is_outlasted(run, tmp_path):
    assert run(beam_tasks.reach, [(n, str(tmp_path)) for n in range(3)]) == {
        str(n): n for n in range(3)
    }
    assert len(list(tmp_path.glob("*.reached"))) == 3


def test_a_lasting_outage_is_raised(monkeypatch):
    calls = []

    @outages.outlasting
    def fail():
        calls.append(0)
        raise outages.Unreachable("503")

    with pytest.raises(outages.Unreachable):
        fail()
    assert len(calls) == 3


def test_what_a_call_raises_is_raised_here(run):
    with pytest.raises(ValueError) as error:
        run(beam_tasks.refuse, [(n,) for n in range(4)])
    assert str(error.value) == "number 2 is not to be had"


def test_the_last_command_goes_on(run, tmp_path):
    with pytest.raises(ValueError, match="Another command with this --output has begun"):
        run(beam_tasks.take_over, [(n, str(tmp_path / "out" / ".beam")) for n in range(3)])


def test_what_an_ended_command_left_is_removed(run, tmp_path):
    left = tmp_path / "out" / ".beam" / "left"
    left.mkdir(parents=True)
    (left / "0.result").write_bytes(pickle.dumps((True, "of another command")))
    assert run(beam_tasks.refuse, [(0,), (1,)]) == {"0": 0, "1": 1}


def test_workers_that_see_another_disk_are_one_error(run, monkeypatch):
    monkeypatch.setattr(beam, "_LATE_SECONDS", 0)
    monkeypatch.setattr(beam, "_work", lambda task, folder: None)
    with pytest.raises(ValueError, match="3 of 3 tasks left no result: do all its workers see"):
        run(beam_tasks.refuse, [(n,) for n in range(3)])


def test_a_job_that_fails_is_one_error(run, monkeypatch):
    def fail(task, folder):
        raise RuntimeError("no memory\nis left")

    monkeypatch.setattr(beam, "_work", fail)
    with pytest.raises(ValueError, match="failed with 3 of 3 tasks to do: RuntimeError: ") as error:
        run(beam_tasks.refuse, [(n,) for n in range(3)])
    assert "\n" not in str(error.value) and "Run the same command" in str(error.value)


@pytest.mark.parametrize("what", ["simplejpeg", "processor"])
def test_a_worker_of_another_version_is_refused(what, tmp_path, monkeypatch):
    assert beam._write_tasks(beam_tasks.refuse, [(0,)], tmp_path / "x") == 1
    [task] = beam._tasks(0, str(tmp_path / "x"))
    here = beam._versions()
    assert here[what]
    monkeypatch.setattr(beam, "_versions", lambda: here | {what: "0.1"})
    beam._work(task, str(tmp_path / "x"))
    is_value, error = pickle.loads((tmp_path / "x" / "0.result").read_bytes())
    assert not is_value and f"a worker has {what} 0.1, and the command" in str(error)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Sparc", [], "Unexpected pipeline runner: SparcRunner"),
        ("my_lab.Runner", [], "No module named 'my_lab'"),
        ("Direct", ["--captoins", "txt"], "neither this command nor Beam has --captoins"),
        ("Dataflow", [], "Dataflow: its workers see no disk of this machine, where .*/out is"),
    ],
)
def test_bad_runners_and_options_are_one_clear_error(name, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        beam.Runner(name, options, tmp_path / "out" / ".beam")
    assert not list(tmp_path.iterdir())


def test_what_workers_read_must_be_where_they_see_it(tmp_path):
    folder = epath.Path("gs://bucket/out/.beam")
    with pytest.raises(ValueError, match=r"machine, where a/\*\.tar is: give one"):
        beam.Runner("dataflow", [], folder, ["gs://bucket/b", "a/*.tar"])
    beam.Runner("Direct", [], tmp_path / ".beam", ["a/*.tar"])


def test_direct_is_the_runner_that_knows_the_direct_options(run, monkeypatch):
    """Beam's own choice would download another."""
    found = []
    run_pipeline = FnApiRunner.run_pipeline

    def note(self, pipeline, options):
        found.append(options.get_all_options()["runner"])
        return run_pipeline(self, pipeline, options)

    def refuse(self, pipeline, options):
        raise AssertionError("another runner")

    monkeypatch.setattr(FnApiRunner, "run_pipeline", note)
    monkeypatch.setattr(SwitchingDirectRunner, "run_pipeline", refuse)
    monkeypatch.setattr(PrismRunner, "run_pipeline", refuse)
    assert run(beam_tasks.refuse, [(0,)]) == {"0": 0}
    assert found == ["apache_beam.runners.portability.fn_api_runner.FnApiRunner"]


def test_an_outage_while_the_command_waits_is_outlasted(run, monkeypatch):
    look, calls = beam._look, []

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) < 4:
            raise outages.Unreachable("503: come again")
        return look(*arguments)

    monkeypatch.setattr(beam, "_look", fail)
    assert run(beam_tasks.refuse, [(0,), (1,)]) == {"0": 0, "1": 1}
    assert len(calls) >= 4
    calls.clear()
    monkeypatch.setattr(beam, "_OUTAGE_SECONDS", 0)
    with pytest.raises(outages.Unreachable):
        run(beam_tasks.refuse, [(0,), (1,)])


def test_a_task_of_an_ended_command_is_not_begun(tmp_path):
    exchange = tmp_path / "x"
    beam._write_tasks(beam_tasks.square, [(0, str(tmp_path)), (1, str(tmp_path))], exchange)
    first, second = beam._tasks(0, str(exchange))
    beam._work(first, str(exchange))  # so that the process knows the function
    (exchange / "function").unlink()
    with pytest.raises(FileNotFoundError, match="the command of this job has ended"):
        beam._work(second, str(exchange))
    assert [path.name for path in tmp_path.glob("*.calls")] == ["0.calls"]


@pytest.mark.slow
def test_a_killed_worker_ends_the_job_and_its_other_workers(tmp_path):
    options = ["--direct_running_mode", "multi_processing", "--direct_num_workers", "2"]
    runner = beam.Runner("Direct", options, tmp_path / ".beam")
    tasks = [(Label(str(number)), (number, str(tmp_path))) for number in range(6)]
    with pytest.raises(ValueError, match="a worker process was killed"):
        list(runner.run_all(beam_tasks.end_worker, tasks, "tasks", Console()))
    deadline = time.monotonic() + 30
    while any(thread.name == "run_worker" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    found = dict(runner.run_all(beam_tasks.end_worker, tasks, "tasks", Console()))
    assert sorted(found.values()) == list(range(6))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "OSError: no reason given"),
        ("a\nb", "OSError: b"),
        (
            "Traceback\n  File\nlab.TypeError: wrong\n\tat java.lang\n\t... 1 more",
            "lab.TypeError: wrong",
        ),
    ],
)
def test_the_reason_of_a_failure_is_one_line(text, reason):
    assert beam._reason(OSError(text)) == reason
