"""Peaks by device, and FLOPs that a thread counts. How many they are, test_compile.py shows."""

import threading
import time
import types

import numpy as np
import pytest

from big_vlp.telemetry import devices, flops

KINDS = {
    ("NVIDIA H200", "bfloat16"): 989.4,
    ("NVIDIA H100 80GB HBM3", "bfloat16"): 989.4,
    ("NVIDIA H100 PCIe", "bfloat16"): 756.0,
    ("NVIDIA A100-SXM4-40GB", "bfloat16"): 312.0,
    ("NVIDIA A100-SXM4-40GB", "float32"): 19.5,
    ("NVIDIA B200", "bfloat16"): 2250.0,
    ("NVIDIA GB200", "bfloat16"): 2500.0,
    ("TPU v4", "bfloat16"): 275.0,
    ("TPU v5 lite", "bfloat16"): 197.0,
    ("TPU v5", "bfloat16"): 459.0,
    ("TPU v6 lite", "bfloat16"): 918.0,
    ("TPU v6 lite", "float32"): None,
    ("cpu", "bfloat16"): None,
    ("NVIDIA GeForce GTX 1080", "bfloat16"): None,
}


@pytest.mark.parametrize("kind, dtype", KINDS)
def test_peaks(kind, dtype):
    assert devices.peak_tflops(kind, dtype) == KINDS[kind, dtype]


def mesh_of(kind):
    return types.SimpleNamespace(devices=np.array([types.SimpleNamespace(device_kind=kind)]))


def test_they_are_counted_once_for_each_size_while_the_run_goes_on(monkeypatch):
    asked, may_end = [], threading.Event()

    def count(experiment, image_size):
        asked.append((experiment, image_size))
        assert may_end.wait(60)
        return 2.0 * image_size

    monkeypatch.setattr(flops, "flops_per_sample", count)
    found = flops.ModelFlops("experiment", mesh_of("TPU v4"), "bfloat16")
    assert found.peak == 275e12
    assert [found.of(size) for size in (16, 32, 16)] == [None] * 3
    may_end.set()
    while None in (found.of(16), found.of(32)):
        time.sleep(0.001)
    assert (found.of(16), found.of(32)) == (32.0, 64.0)
    assert sorted(asked) == [("experiment", 16), ("experiment", 32)]


def test_nothing_is_counted_without_a_peak_or_a_log(monkeypatch):
    monkeypatch.setattr(flops, "flops_per_sample", lambda *_: pytest.fail("it was counted"))
    assert flops.ModelFlops(None, mesh_of("cpu"), "bfloat16").of(16) is None
    monkeypatch.setattr("jax.process_index", lambda: 1)
    assert flops.ModelFlops(None, mesh_of("TPU v4"), "bfloat16").of(16) is None


def test_what_cannot_be_counted_is_left_out(monkeypatch):
    failed = threading.Event()

    def fail(*_):
        failed.set()
        raise TypeError("a method of my own")

    monkeypatch.setattr(flops, "flops_per_sample", fail)
    found = flops.ModelFlops(None, mesh_of("TPU v4"), "bfloat16")
    found.of(16)
    assert failed.wait(60) and found.of(16) is None
