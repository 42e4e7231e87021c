"""Training steps as runs execute them, on random batches that live on the device."""

import gc
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from big_vlp.experiment import Experiment
from big_vlp.parallel import meshes, placing
from big_vlp.run import step
from big_vlp.telemetry.flops import abstract_batch
from tests.benchmarks.accelerator.models import COUNTED, GIB, WARM_UP, make_config, towers


def measure(model: str, remat, unroll: bool, candidates: list, tiny: bool, folder: str) -> dict:
    """The time of a step of the largest candidate that fits: the median of 10 after 3."""
    running = start(model, remat, unroll, candidates, tiny, folder)
    times = []
    for _ in range(COUNTED):
        began = time.perf_counter()
        running.step()
        times.append(time.perf_counter() - began)
    seconds = statistics.median(times)
    return {
        "batch": running.batch,
        "layers": running.layers,
        "step_ms": 1e3 * seconds,
        "samples_per_s": running.batch / seconds,
        "peak_gib": running.peak_gib(),
        "planned_gib": running.planned / GIB,
        "compile_s": running.compile_s,
        "loss": running.loss(),
        "too_large": running.too_large,
    }


def start(model: str, remat, unroll: bool, candidates: list, tiny: bool, folder: str) -> "Running":
    """The first of the candidates that fits into the devices' memory, warmed up.

    Whether it fits is read from the compiler's plan where the device tells its limit, so that next
    to nothing is tried that fails; what has failed when it ran counts as too large as well.

    Raises:
      MemoryError: none fits.
    """
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    too_large, clean, planned = [], True, None
    for candidate in candidates:
        layers = {"text": candidate["layers"]} if "layers" in candidate else {}
        config = make_config(model, folder, tiny, remat, unroll, layers)
        one = Step(config, candidate["batch"])
        # Work grows with the batch, so one that was too large tells of the next.
        expected = one.held + (planned[0] * one.batch / planned[1] if planned else 0)
        if limit and expected > limit:
            too_large.append(candidate)
            continue
        print(f"compiling {model}, {candidate}", file=sys.stderr)
        try:
            one.compile()
            planned = one.work, one.batch
            if limit and one.held + one.work > limit:
                too_large.append(candidate)
                continue
            print(f"running {model}, {candidate}", file=sys.stderr)
            return Running(one, too_large, clean)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
        too_large.append(candidate)
        clean = clean and one.compiled is None
        del one
        gc.collect()
    raise MemoryError(f"none of {candidates} fits")


class Step:
    """A step to be compiled.

    Attributes:
      batch: examples on all devices.
      held, work: bytes on each device of the state and the batch, and of what a step needs beside.
    """

    def __init__(self, config, batch_per_device: int):
        self.experiment = Experiment.from_config(config)
        self.layers = {name: tower.layers for name, tower in towers(config).items()}
        self.mesh = self.experiment.make_mesh()
        self.batch = batch_per_device * self.mesh.size
        self.method = self.experiment.make_method()
        self.optimizer = self.experiment.make_optimizer(self.method)
        self.state = self.experiment.abstract_state(self.method, self.optimizer, self.mesh)
        self.rows = abstract_batch(
            self.experiment,
            self.experiment.preprocess_record.image_size,
            self.batch,
            meshes.over_batch(self.mesh),
        )
        self.compiled = None
        self.held = sum(map(placing.bytes_per_device, jax.tree.leaves((self.state, self.rows))))

    def lower(self):
        placement = jax.tree.map(lambda x: x.sharding, self.state)
        train_step = step.compiled_step(self.method, self.optimizer, placement, self.mesh)
        whole = meshes.replicated(self.mesh)
        key = jax.eval_shape(lambda: jax.random.key(0))
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole)
        number = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
        with jax.set_mesh(self.mesh):
            return train_step.lower(self.state, self.rows, number, key)

    def compile(self) -> None:
        lowered = self.lower()
        began = time.perf_counter()
        self.compiled = lowered.compile()
        self.compile_s = time.perf_counter() - began
        self.work = self.compiled.memory_analysis().temp_size_in_bytes


class Running:
    """A step that fits, with its state and a batch on the devices."""

    def __init__(self, one: Step, too_large: list, clean: bool):
        self.batch, self.layers = one.batch, one.layers
        self.planned, self.compile_s = one.held + one.work, one.compile_s
        self.too_large, self._clean = too_large, clean
        self._step, self._number = one.compiled, 0
        whole = meshes.replicated(one.mesh)
        placement = jax.tree.map(lambda x: x.sharding, one.state)
        self._key = jax.device_put(jax.random.key(0), whole)
        init = jax.jit(step.make_init(one.method, one.optimizer), out_shardings=placement)
        with jax.set_mesh(one.mesh):
            self._state = init(self._key)
        self._rows = jax.device_put(random_rows(one), meshes.over_batch(one.mesh))
        self._whole = whole
        for _ in range(WARM_UP):
            self.step()

    def step(self) -> None:
        """One step, from its call until it is done."""
        number = jax.device_put(np.int32(self._number), self._whole)
        self._state, self._metrics = self._step(self._state, self._rows, number, self._key)
        jax.block_until_ready((self._state, self._metrics))
        self._number += 1

    def loss(self) -> float:
        return float(self._metrics["loss"])

    def peak_gib(self) -> float | None:
        """The most that a device has held; None where it does not tell, or a larger one failed."""
        stats = jax.devices()[0].memory_stats() or {}
        return stats["peak_bytes_in_use"] / GIB if self._clean and stats else None


def random_rows(one: Step) -> dict[str, np.ndarray]:
    """A batch of noise: pixels, tokens, classes; rows of images and text laid out as they must."""
    rng, text = np.random.default_rng(0), one.experiment.method["model"].get("text", {})
    classes = getattr(one.method, "num_classes", None)
    made = {}
    for name, row in one.rows.items():
        high = {"tokens": text.get("vocab_size"), "labels": classes}.get(name, 256)
        made[name] = rng.integers(0, high, row.shape).astype(row.dtype)
    if "loss_mask" in made:
        made["token_types"][:], made["loss_mask"][:] = 0, False
        words = one.experiment.preprocess["context_length"]
        made["token_types"][:, 1:-words] = 1
        made["loss_mask"][:, -words:] = True
    return made
