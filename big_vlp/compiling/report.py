"""What compiling tells, for people."""

import collections

from big_vlp.compiling import programs
from big_vlp.compiling.evaluation import evaluator_programs
from big_vlp.compiling.setup import Setup, held
from big_vlp.experiment import ConfigError
from big_vlp.run import tables
from big_vlp.telemetry import roofline
from big_vlp.telemetry.flops import flops_per_sample, products_per_sample
from big_vlp.telemetry.hlo import Program


def show_parameters(setup: Setup) -> None:
    model = setup.weights("model")
    print(tables.parameter_table(model, setup.optimizer.describe(model)), flush=True)


def show_flops(setup: Setup) -> None:
    """Of a sample: those of the model, and those of the program."""
    needed = flops_per_sample(setup.experiment)
    computed = products_per_sample(setup.experiment, setup.method)
    print(
        f"\nFLOPs per sample: {needed / 1e9:,.1f} G of products; the program computes "
        f"{computed / 1e9:,.1f} G, {computed / needed:.2f} times as many",
        flush=True,
    )


def show_steps(setup: Setup, with_roofline: bool) -> None:
    """Compiles a step of each of the plan's shapes, and prints what it needs on each device.

    Raises:
      ConfigError: as the parts of `Experiment`.
      TooLargeError: one does not fit.
    """
    mesh = setup.mesh
    sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    memory = "" if setup.memory is None else f", which has {_mib(setup.memory).strip()}"
    print(f"On each of {mesh.size} devices ({sizes}){memory}:")
    for name, tree in {"training state": setup.state, **setup.state}.items():
        indent = "  " if tree is setup.state else "    "
        print(f"{indent}{name:{18 - len(indent)}}{_mib(held(tree))}")
    for image_size, batch_size in setup.experiment.make_plan().shapes:
        report = programs.compile_step(setup, image_size, batch_size)
        print(f"A step of {batch_size:,} examples at {image_size} pixels:")
        print(f"  its work        {_mib(report.work_bytes)}")
        if report.text is None:
            print("  collectives: the compiler cannot print this program.", flush=True)
            continue
        _show_collectives(report.text)
        if with_roofline:
            flops = flops_per_sample(setup.experiment, image_size) * batch_size / mesh.size
            _show_roofline(report.text, setup.device_kind, flops)


def show_evaluators(setup: Setup) -> None:
    """Raises as `evaluator_programs`."""
    if setup.experiment.evals:
        print("Evaluators, each beside the training state:")
    for program in evaluator_programs(setup):
        print(f"  {program.evaluator}: {program.function} of {program.rows:,} rows")
        if program.work_bytes is None:
            print("    not compiled: what its rows are is not known here", flush=True)
            continue
        print(f"    weights       {_mib(program.weights_bytes)}, which the state holds")
        print(f"    its work      {_mib(program.work_bytes)}", flush=True)


def _mib(size: int) -> str:
    return f"{size / 2**20:10,.1f} MiB"


def _show_collectives(text: str) -> None:
    found = Program(text).collectives()
    print("  collectives:")
    for kind, arrays, times, moved in found:
        print(f"  {times:5} x {kind:18} {arrays}  {moved / 2**20:,.1f} MiB")
    sums = collections.Counter()
    for kind, arrays, _, moved in found:
        sums[kind, ", ".join(sorted({array.partition("[")[0] for array in arrays.split()}))] += (
            moved
        )
    for (kind, dtypes), moved in sums.most_common():
        print(f"  {'sum of':7} {kind:18} {dtypes:5}{_mib(moved)}", flush=True)


def _show_roofline(text: str, kind: str, model_flops: float) -> None:
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
