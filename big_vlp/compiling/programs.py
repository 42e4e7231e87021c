"""Programs, compiled and not run: what each device needs for them."""

import dataclasses

import jax
import jax.numpy as jnp

from big_vlp import trees
from big_vlp.compiling.setup import Setup, held
from big_vlp.parallel import feed, meshes
from big_vlp.run import step
from big_vlp.telemetry.flops import abstract_batch, abstract_rows
from evaluators.shared import base
from input_pipeline.checks.errors import BigVlpError


class TooLargeError(BigVlpError):
    """A program needs more memory than a device has; the message says which, and what to change."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What compiling a program tells.

    Attributes:
      work_bytes: the most that it needs beside the training state, on each device: temporary
        arrays, its batches and those that wait for the next steps, its results, and weights in
        another form.
      text: the compiled program; None where the compiler cannot print it (some of libtpu's larger
        ones, whose instructions jaxlib does not know).
    """

    work_bytes: int
    text: str | None


def compile_step(setup: Setup, image_size: int, batch_size: int, method=None) -> Report:
    """Compiles a training step.

    Args:
      image_size, batch_size: one of the plan's shapes, or others.
      method: the setup's, or what it may run with as well.

    Raises:
      ConfigError: as the parts of `Experiment`.
      TooLargeError: the devices lack memory.
    """
    mesh, method = setup.mesh, method or setup.method
    placement = jax.tree.map(lambda x: x.sharding, setup.state)
    train_step = step.compiled_step(method, setup.optimizer, placement, mesh)
    whole = meshes.replicated(mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole)
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    batch = abstract_batch(setup.experiment, image_size, batch_size, meshes.over_batch(mesh))
    with jax.set_mesh(mesh):
        lowered = train_step.lower(setup.state, batch, number, key)
    advice = (
        "Use more devices, a smaller global_batch, method.remat='full', or a larger "
        "method.accumulate_steps; --search tells which."
    )
    batches = feed.MOST_BATCHES * held(batch)
    return _compiled(setup, lowered, batches, f"A step of {batch_size:,} examples", advice)


def compile_predict(
    setup: Setup, function: str, rows: int, weights: str, name: str, advice: str
) -> Report | None:
    """Compiles a predict function as evaluators run it, beside the training state.

    Args:
      function: its name, see `evaluators.shared.base`.
      rows: on all devices together.
      weights: "model" or "averaged".
      name, advice: of what is too large, and what to do about it.

    Returns:
      None where nobody says what its rows are.

    Raises:
      TooLargeError: the devices lack memory.
    """
    row = base.row_of(function, setup.experiment.preprocess_record)
    if row is None:
        return None
    mesh, predict = setup.mesh, setup.method.predict_fns()[function]
    batch = abstract_rows(row, rows, meshes.over_batch(mesh))
    with jax.set_mesh(mesh):
        model, copies = _called_with(predict, setup.weights(weights))
        lowered = jax.jit(predict, out_shardings=meshes.replicated(mesh)).lower(model, batch)
    shapes = setup.experiment.make_plan().shapes
    waiting = max(
        held(abstract_batch(setup.experiment, *shape, meshes.over_batch(mesh))) for shape in shapes
    )
    beside = 2 * held(batch) + feed.WAITING_BATCHES * waiting + held(copies)
    return _compiled(setup, lowered, beside, name, advice)


def _called_with(predict, model) -> tuple[dict, list]:
    """(the weights that an evaluator calls a predict function with, those of them that are no
    arrays of the model's): `predict.weights(model)`, where it has that."""
    make = getattr(predict, "weights", None)
    if make is None:
        return model, []
    program, made = jax.make_jaxpr(make, return_shape=True)(model)
    own = trees.flatten(model)
    made = {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=own[path].sharding)
        for path, x in trees.flatten(made).items()
    }
    made = trees.unflatten(made)
    given = set(program.jaxpr.invars)
    copies = [x for x, var in zip(jax.tree.leaves(made), program.jaxpr.outvars) if var not in given]
    return made, copies


def _compiled(setup: Setup, lowered, beside: int, name: str, advice: str) -> Report:
    """Args: `beside`, bytes of what lies beside state and program."""
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or "vmem" in str(error):  # a kernel's own fault
            raise
        why = str(error).splitlines()[0]
        raise TooLargeError(f"{name} does not fit: {why} {advice}") from error
    memory = program.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    state_bytes = held(setup.state)
    work_bytes = beside + memory.temp_size_in_bytes + results
    if setup.memory is not None and state_bytes + work_bytes > setup.memory:
        raise TooLargeError(
            f"{name} does not fit: beside {_gib(state_bytes)} of training state it needs "
            f"{_gib(work_bytes)}, and a {setup.device_kind} has {_gib(setup.memory)}. {advice}"
        )
    return Report(work_bytes, _text(program))


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _text(program) -> str | None:
    try:
        return program.as_text()
    except jax.errors.JaxRuntimeError as error:
        if "RET_CHECK" not in str(error):
            raise
        return None
