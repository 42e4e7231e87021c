"""Where the time of a run goes, by a clock of the test's; and that a run's log has it."""

import threading
import time

import jax
import jax.numpy as jnp
import pytest

from big_vlp.telemetry.meter import CLOCKED, Meter, _Compiling


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds

    def pass_(self, seconds):
        self.seconds += seconds


class Output:
    """Of a step that the devices have done when the test says so."""

    def __init__(self):
        self._done = threading.Event()

    def block_until_ready(self):
        assert self._done.wait(60)

    def done(self):
        self._done.set()


class Flops:
    peak = 1e12

    def of(self, image_size):
        return 1e10 * image_size


@pytest.fixture
def clock():
    return Clock()


def meter_of(clock, **given):
    return Meter(clock=clock, now=clock, **given)


def step(meter, clock, wait=0.0, seconds=1.0, examples=10, image_size=1):
    """The loop waits for a batch, then the devices work on it."""
    with meter.waiting():
        clock.pass_(wait)
    output = Output()
    meter.dispatched(output, examples, image_size)
    clock.pass_(seconds)
    output.done()
    meter._dispatched.join()


def test_a_line_says_what_steps_took(clock):
    with meter_of(clock, devices=2, model_flops=Flops()) as meter:
        clock.pass_(50)  # to set up
        for seconds in (1.0, 1.0, 1.0, 5.0):
            step(meter, clock, wait=0.5, seconds=seconds)
        values = meter.read(0)
    assert values.keys() <= CLOCKED
    assert values["input_wait"] == pytest.approx(1.5 / 9.5)  # the first wait is part of the start
    assert values["examples_per_s"] == pytest.approx(40 / 9.5)
    assert values["step_seconds_p50"] == pytest.approx(1.5)
    assert values["step_seconds_max"] == pytest.approx(5.5)
    assert 1.5 < values["step_seconds_p90"] < 5.5
    assert values["model_tflops"] == pytest.approx(40 * 1e10 / 9.5 / 2 / 1e12)
    assert values["mfu"] == pytest.approx(values["model_tflops"])  # the peak is 1 TFLOP/s
    assert values["run_seconds"] == pytest.approx(60)
    assert values["goodput"] == pytest.approx(8 / 60)


def test_a_loop_that_waits_while_devices_work_loses_nothing(clock):
    """It runs ahead of them."""
    with meter_of(clock) as meter:
        step(meter, clock)
        first, second = Output(), Output()
        with meter.waiting():
            pass
        meter.dispatched(first, 10, 1)
        with meter.waiting():
            clock.pass_(3)  # while the devices have the step before
        meter.dispatched(second, 10, 1)
        first.done()
        while meter._dispatched.unfinished_tasks > 1:
            time.sleep(0.001)
        clock.pass_(2)
        second.done()
        values = meter.read(0)
    assert values["input_wait"] == 0
    assert values["step_seconds_max"] == pytest.approx(3)
    assert "mfu" not in values and "model_tflops" not in values


def test_what_is_no_training_counts_apart(clock):
    with meter_of(clock) as meter:
        step(meter, clock)
        with meter.pausing("evaluation"):
            clock.pass_(7)
        with meter.pausing("checkpoint"):
            clock.pass_(2)
        step(meter, clock)
        values = meter.read(0)
        assert (values["evaluation_seconds"], values["checkpoint_seconds"]) == (7, 2)
        assert values["step_seconds_max"] == 1 and values["examples_per_s"] == 10
        assert values["goodput"] == pytest.approx(2 / 11)
        step(meter, clock)
        assert not {"evaluation_seconds", "checkpoint_seconds"} & meter.read(0).keys()


def test_compilation_is_no_step(clock):
    with meter_of(clock) as meter:
        for compiled in (30, 0):
            with meter.waiting():
                clock.pass_(1)
            clock.pass_(compiled)
            if compiled:
                meter._compiling._note("/jax/core/compile/backend_compile_duration", compiled)
            output = Output()
            meter.dispatched(output, 10, 1)
            clock.pass_(2)
            output.done()
            meter._dispatched.join()
        values = meter.read(0)
    assert values["compile_seconds"] == 30
    assert values["step_seconds_max"] == 3 and values["step_seconds_p50"] == 2.5
    assert values["goodput"] == pytest.approx(4 / 36)


def test_traces_within_a_trace_count_once_and_other_threads_not():
    clock = Clock()
    compiling = _Compiling(clock)
    compiling.start()
    compiling.stop()
    clock.pass_(10)
    compiling._note("/jax/core/compile/jaxpr_trace_duration", 4)  # from 106 on
    compiling._note("/jax/core/compile/jaxpr_trace_duration", 6)  # from 104 on: holds it
    clock.pass_(3)
    compiling._note("/jax/core/compile/backend_compile_duration", 3)
    compiling._note("/jax/another/event", 50)
    other = threading.Thread(target=compiling._note, args=("/jax/core/compile/x", 50))
    other.start()
    other.join()
    assert compiling.seconds() == 9


def test_jax_says_what_it_compiles():
    with Meter() as meter:
        with meter.waiting():
            pass
        meter.dispatched(jax.jit(lambda x: x * 3 + 2)(jnp.ones(5)), 1, 1)
        assert meter.read(0)["compile_seconds"] > 0
        compiled = meter._compiling.seconds()
    jax.jit(lambda x: x * 5 + 2)(jnp.ones(5))
    assert meter._compiling.seconds() == compiled


def line(step, time, values):
    return {"step": step, "time": time, "split": "train", "values": values}


def test_goodput_is_of_the_time_since_the_first_start(clock):
    """Steps that are made again count once; those that no line tells of as the others."""
    with meter_of(clock) as meter:
        for i in range(10):
            step(meter, clock, wait=1.0, seconds=1.0)
            if i in (0, 4):
                values = meter.read(0)
                log = [line(i, clock(), values)]
    assert values["goodput"] == pytest.approx(0.5)
    log.append(line(8, clock(), {**values, "goodput": 0.1}))  # after the checkpoint
    log.insert(0, line(0, 101.0, {"loss": 1.0}))  # of an older version
    clock.pass_(60)  # away
    with meter_of(clock) as meter:
        meter.goes_on(log, first_step=6, refused=3)
        for _ in range(4):
            step(meter, clock, wait=0.0, seconds=1.0)
        values = meter.read(refused=4)
    # Steps 0 to 4, step 5 at their median, then four of which one changed nothing.
    assert values["run_seconds"] == pytest.approx(20 + 60 + 4)
    assert values["goodput"] == pytest.approx((5 + 1 + 3) / 84)


def test_a_step_that_fails_is_the_loops_to_tell(clock):
    class Failing:
        def block_until_ready(self):
            raise RuntimeError("out of memory")

    with meter_of(clock) as meter:
        with meter.waiting():
            pass
        meter.dispatched(Failing(), 10, 1)
        assert meter.read(0)["input_wait"] == 0
