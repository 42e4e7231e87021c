"""FLOPs that a model needs, and what a device can do and hold."""

import dataclasses
import re
import threading

import jax
from absl import logging

from big_vlp.run import products, step

# Dense TFLOP/s of one device by what jax calls its kind, the first that fits: (bf16, fp32). From
# the makers' data sheets: NVIDIA's of H100, H200, A100, L40S, HGX B200 and GB200, half of what is
# given "with sparsity"; Google's "system architecture" pages of Cloud TPU.
_PEAKS = (
    ("H100 PCIe", 756.0, 51.0),
    ("H100 NVL|H200 NVL", 835.0, 60.0),
    ("H100|H200|GH200", 989.4, 66.9),
    ("A100", 312.0, 19.5),
    ("L40S", 362.0, 91.6),
    ("GB200", 2500.0, 80.0),
    ("B200", 2250.0, 75.0),
    ("TPU v4", 275.0, None),
    ("TPU v5 ?(lite|e)", 197.0, None),
    ("TPU v5", 459.0, None),
    ("TPU v6", 918.0, None),
)

# GiB of one device's memory that programs can use, as libtpu says it for described devices.
_MEMORIES = (
    ("TPU v4", 15.25),
    ("TPU v5 ?(lite|e)", 15.75),
    ("TPU v5", 95.74),
    ("TPU v6", 31.25),
)


def peak_tflops(kind: str, dtype: str = "bfloat16") -> float | None:
    """Dense TFLOP/s of a device of this kind in "bfloat16", "float16" or full-precision "float32";
    None where it is not known."""
    for pattern, half, single in _PEAKS:
        if re.search(pattern, kind):
            return single if dtype == "float32" else half
    return None


def memory_bytes(device) -> int | None:
    """What programs can use of a device's memory; None where nobody says it.

    Args:
      device: of this machine, or a described one.
    """
    try:
        stats = device.memory_stats() or {}
    except jax.errors.JaxRuntimeError:  # it is described, or another process'
        stats = {}
    known = (gib for kind, gib in _MEMORIES if re.search(kind, device.device_kind))
    return stats.get("bytes_limit") or next((int(gib * 2**30) for gib in known), None)


def flops_per_sample(experiment, image_size: int | None = None) -> float:
    """FLOPs of a training step as the model needs them, without recomputation.

    Counted on the program of one device with every block written out: a loop counts once.

    Args:
      experiment: an `Experiment`.
      image_size: default: the recipe's.
    """
    method = as_needed(experiment.make_method(), unroll=True)
    train_step, arguments = _on_one_device(experiment, method, image_size)
    cost = jax.jit(train_step).lower(*arguments).cost_analysis()
    return cost["flops"] / experiment.global_batch


def products_per_sample(experiment, method) -> float:
    """FLOPs of the products alone of a training step with this method, recomputation included.

    Args:
      method: the experiment's, or what else it may run with.
    """
    train_step, arguments = _on_one_device(experiment, method)
    return products.flops(train_step, *arguments) / experiment.global_batch


def as_needed(method, **more):
    """The method without what computes things twice to save memory, and with `more`, where it has
    such fields."""
    return with_settings(method, remat=None, accumulate_steps=1, **more)


def with_settings(method, **given):
    """The method with these values of fields, where it has such fields."""
    fields = {field.name for field in dataclasses.fields(method)}
    return dataclasses.replace(method, **{k: v for k, v in given.items() if k in fields})


def _on_one_device(experiment, method, image_size: int | None = None):
    """(a training step, its abstract arguments), with XLA's attention: calls of other kernels count
    nothing."""
    method = with_settings(method, attention="xla")
    optimizer = experiment.make_optimizer(method)
    state = jax.eval_shape(step.make_init(method, optimizer), jax.random.key(0))
    image_size = image_size or experiment.preprocess_record.image_size
    batch = abstract_batch(experiment, image_size, experiment.global_batch)
    return step.make_train_step(method, optimizer), (state, batch, 0, jax.random.key(0))


def abstract_batch(experiment, image_size: int, size: int, placement=None) -> dict:
    """Shapes of a global batch of so many examples, its text whole."""
    return abstract_rows(experiment.make_views(image_size).spec(), size, placement)


def abstract_rows(row: dict, size: int, placement=None) -> dict:
    """Shapes of so many rows.

    Args:
      row: name -> (shape, dtype) of one.
    """
    return {
        name: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=placement)
        for name, (shape, dtype) in row.items()
    }


class ModelFlops:
    """FLOPs of a run's samples, which a thread counts while the run goes on, and its devices' peak.

    Nothing is counted where no peak is known, nor on another process than 0, which writes the log.

    Args:
      experiment: an `Experiment`.
      mesh: of the run.
      dtype: of the computation.

    Attributes:
      peak: FLOP/s of one device, or None.
    """

    def __init__(self, experiment, mesh, dtype: str):
        tflops = peak_tflops(mesh.devices.flat[0].device_kind, dtype)
        self.peak = None if tflops is None or jax.process_index() else 1e12 * tflops
        self._experiment, self._found = experiment, {}

    def of(self, image_size: int) -> float | None:
        """Of a sample of this size; None at first, and where it cannot be counted."""
        if self.peak is not None and image_size not in self._found:
            self._found[image_size] = None
            threading.Thread(target=self._count, args=(image_size,), daemon=True).start()
        return self._found.get(image_size)

    def _count(self, image_size: int) -> None:
        try:
            self._found[image_size] = flops_per_sample(self._experiment, image_size)
        except Exception as error:  # of a method of the user's own; the run needs no such number
            logging.warning("FLOPs of a sample could not be counted: %s", error)
