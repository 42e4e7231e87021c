"""FLOPs that a model needs."""

import dataclasses
import threading

import jax
from absl import logging

from big_vlp.run import step
from big_vlp.telemetry import products
from big_vlp.telemetry.devices import peak_tflops


def flops_per_sample(experiment, image_size: int | None = None) -> float:
    """FLOPs of the products of a training step as the model needs them, without recomputation.

    Args:
      experiment: an `Experiment`.
      image_size: default: the recipe's.
    """
    return products_per_sample(experiment, as_needed(experiment.make_method()), image_size)


def products_per_sample(experiment, method, image_size: int | None = None) -> float:
    """FLOPs of the products of a training step with this method, recomputation included, but for
    that of attention.

    Args:
      method: the experiment's, or what else it may run with.
    """
    train_step, arguments = _on_one_device(experiment, method, image_size)
    return products.flops(train_step, *arguments) / experiment.global_batch


def as_needed(method):
    """The method without what computes things twice to save memory, where it has such fields."""
    return with_settings(method, remat=None, accumulate_steps=1)


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
