"""Compiles a training step without running it, to see what it needs.

    python -m big_vlp.compile --config configs/cosmos.py --topology v5e:4x4
    python -m big_vlp.compile --config configs/clip.py --topology v5e:4x4 --roofline

Says what each device would hold, how many FLOPs a sample costs, and what the devices send each
other. With `--topology v5e:4x4` for that TPU slice, or `config.mesh.slices` of them, on any machine
with libtpu installed (JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 where there is no TPU); without for
the local devices.
"""

import dataclasses
import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import ml_collections
from absl import flags, logging
from jax.experimental import topologies

from big_vlp import command, trees
from big_vlp.experiment import ConfigError, Experiment
from big_vlp.parallel import meshes, placing
from big_vlp.run import step, tables
from big_vlp.telemetry import roofline
from big_vlp.telemetry.flops import (
    abstract_batch,
    as_needed,
    flops_per_sample,
    products_per_sample,
)
from input_pipeline.checks import errors
from input_pipeline.checks.errors import BigVlpError

_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
_COLLECTIVE = re.compile(
    rf"= (?P<result>.*?) (?P<kind>{_KINDS})(-start)?\(.*?channel_id=(?P<channel>\d+)"
)
_ARRAY = re.compile(r"(?P<dtype>[a-z]+\d+)\[(?P<shape>[\d,]*)\]")


class TooLargeError(BigVlpError):
    """The step needs more memory than a device has."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What compiling a step tells.

    Attributes:
      temporary_bytes: the most that a step needs beside the training state, on each device.
      text: the compiled program; None where the compiler cannot print it (some of libtpu's larger
        ones, whose instructions jaxlib does not know).
    """

    temporary_bytes: int
    text: str | None


def compile_step(experiment: Experiment, parts, mesh, image_size: int, batch_size: int) -> Report:
    """Compiles a training step of an experiment for the devices of a mesh, real or described.

    Args:
      parts: (method, optimizer, abstract state), as the experiment makes them for the mesh.
      image_size, batch_size: one of the plan's shapes.

    Raises:
      ConfigError: as the parts of `Experiment`.
      TooLargeError: the devices lack memory.
    """
    method, optimizer, state = parts
    placement = jax.tree.map(lambda x: x.sharding, state)
    train_step = step.compiled_step(method, optimizer, placement, mesh)
    whole = meshes.replicated(mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole)
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    with jax.set_mesh(mesh):
        batch = abstract_batch(experiment, image_size, batch_size, meshes.over_batch(mesh))
        lowered = train_step.lower(state, batch, number, key)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise TooLargeError(
                f"The step does not fit: {str(error).splitlines()[0]} Use more devices, a smaller "
                "global_batch, method.remat='full', or a larger method.accumulate_steps."
            ) from error
    memory = compiled.memory_analysis()
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        if "RET_CHECK" not in str(error):
            raise
        text = None
    return Report(memory.temp_size_in_bytes, text)


def collectives(text: str) -> list[tuple[str, str, int]]:
    """The collectives of a compiled program: (kind, arrays, times), by size.

    What the compiler has cut into asynchronous pieces is one: they share a channel and a shape.
    """
    found = {}
    for match in _COLLECTIVE.finditer(text):
        arrays = [f"{a['dtype']}[{a['shape']}]" for a in _ARRAY.finditer(match["result"])]
        arrays = [a for a in dict.fromkeys(arrays) if not a.endswith("[]")]
        found[match["kind"], " ".join(arrays) or "scalars", match["channel"]] = None
    counts = Counter((kind, arrays) for kind, arrays, _ in found)
    rows = [(kind, arrays, times) for (kind, arrays), times in counts.items()]
    return sorted(rows, key=lambda row: -_elements(row[1]))


def _elements(arrays: str) -> int:
    shapes = (a["shape"].split(",") for a in _ARRAY.finditer(arrays))
    return sum(math.prod(int(n) for n in shape if n) for shape in shapes)


def make_mesh(experiment: Experiment, topology: str | None):
    """The config's mesh over the devices of its slices, each a TPU topology ("v5e:4x4"), or over
    the local ones.

    Raises:
      ConfigError: libtpu is not installed, or does not know the topology.
    """
    if topology is None:
        return experiment.make_mesh()
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, num_slices=experiment.mesh.get("slices", 1)
        )
    except Exception as error:  # of several types
        raise ConfigError(
            f"Topology {topology!r} cannot be described: {str(error).splitlines()[0]}. It is "
            "written as v5e:4x4, and needs libtpu (pip install libtpu)."
        ) from error
    return experiment.make_mesh(described.devices)


def show(
    config: ml_collections.ConfigDict, topology: str | None, with_roofline: bool = False
) -> None:
    """Compiles and prints the report.

    Args:
      with_roofline: also how long a step takes by its products and its memory traffic.
    """
    experiment = Experiment.from_config(config)
    mesh = make_mesh(experiment, topology)
    method = experiment.make_method()
    optimizer = experiment.make_optimizer(method)
    state = experiment.abstract_state(method, optimizer, mesh)
    model = trees.merge(state["model"], state["frozen"])
    print(tables.parameter_table(model, optimizer.describe(model)), flush=True)
    sample_flops = flops_per_sample(experiment)
    print(f"\nFLOPs per sample: {sample_flops / 1e9:,.1f} G", flush=True)
    needed = products_per_sample(experiment, as_needed(method))
    computed = products_per_sample(experiment, method)
    print(
        f"  of products {needed / 1e9:,.1f} G; the program computes {computed / 1e9:,.1f} G, "
        f"{computed / needed:.2f} times as many",
        flush=True,
    )
    sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    print(f"On each of {mesh.size} devices ({sizes}):")
    for name, tree in {"training state": state, **state}.items():
        held = sum(map(placing.bytes_per_device, jax.tree.leaves(tree)))
        indent = "  " if tree is state else "    "
        print(f"{indent}{name:{18 - len(indent)}}{held / 2**20:10,.1f} MiB")
    for image_size, batch_size in experiment.make_plan().shapes:
        parts = method, optimizer, state
        report = compile_step(experiment, parts, mesh, image_size, batch_size)
        print(f"A step of {batch_size:,} examples at {image_size} pixels:")
        print(f"  its work        {report.temporary_bytes / 2**20:10,.1f} MiB")
        if report.text is None:
            print("  collectives: the compiler cannot print this program.", flush=True)
            continue
        print("  collectives (a loop's counted once):")
        for kind, arrays, times in collectives(report.text):
            print(f"  {times:3} x {kind:18} {arrays}", flush=True)
        if with_roofline:
            if image_size != experiment.preprocess_record.image_size:
                sample_flops = flops_per_sample(experiment, image_size)
            _print_roofline(report.text, mesh, sample_flops * batch_size / mesh.size)


def _print_roofline(text: str, mesh, model_flops: float) -> None:
    kind = mesh.devices.flat[0].device_kind
    try:
        found = roofline.roofline(text, kind)
    except roofline.UnknownDeviceError as error:
        raise ConfigError(f"{error} Give a TPU slice, as --topology=v5e:4x4.") from error
    moved = sum(row.bytes for row in found.kinds)
    whole, products, memory = (
        f"{1e3 * seconds:,.1f} ms"
        for seconds in (found.seconds, found.product_seconds, found.memory_seconds)
    )
    print(
        f"  on {kind} at least {whole}: {products} of products, {memory} to move "
        f"{moved / 1e9:,.1f} GB\n"
        f"  so MFU is at most {found.share(model_flops):.1%}; the costliest instructions:"
    )
    print(roofline.table(found), flush=True)


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    try:
        show(flags.FLAGS.config, flags.FLAGS.topology, flags.FLAGS.roofline)
    except errors.BigVlpError as error:
        errors.stop(error)


if __name__ == "__main__":
    command.define_config()
    flags.DEFINE_string(
        "topology", None, "a TPU slice, such as v5e:4x4; by default the local devices"
    )
    flags.DEFINE_bool("roofline", False, "also say how long a step takes at least, and where")
    command.run(main)
