"""Compiles the training step and the evaluators' programs, and runs nothing: what do they need?

    python -m big_vlp.compile --config configs/cosmos.py --topology v5e:4x4
    python -m big_vlp.compile --config configs/clip.py --topology v5e:4x4 --roofline
    python -m big_vlp.compile --config configs/clip.py --topology v5e:4x4 --search

Says what each device would hold, how many FLOPs a sample costs, and what the devices send each
other; with --search, with which remat policy and how many micro-batches the config's batch runs
fastest. With `--topology v5e:4x4` for that TPU slice, or `config.mesh.slices` of them, on any
machine with libtpu installed (JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 where there is no TPU);
without for the local devices. No data is read.
"""

import ml_collections
from absl import flags, logging

from big_vlp import command
from big_vlp.compiling import report, search
from big_vlp.compiling.setup import Setup, make_mesh
from big_vlp.experiment import Experiment
from big_vlp.run.compile_cache import open_compile_cache
from input_pipeline.checks import errors


def show(
    config: ml_collections.ConfigDict,
    topology: str | None,
    with_roofline: bool = False,
    with_search: bool = False,
) -> None:
    """Compiles and prints the report.

    Args:
      with_roofline: also how long a step takes by its products and its memory traffic.
      with_search: first look for the fastest settings that fit, and report on those.

    Raises:
      ConfigError: the config cannot be built.
      TooLargeError: what it says does not fit, or nothing that was searched.
    """
    if topology is None:  # jax cannot read again what was compiled for devices that are not here
        open_compile_cache()
    experiment = Experiment.from_config(config)
    setup = Setup.of(experiment, make_mesh(experiment, topology))
    report.show_parameters(setup)
    if with_search:
        search.search(setup, with_roofline)
    else:
        report.show_flops(setup)
        report.show_steps(setup, with_roofline)
        report.show_evaluators(setup)


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    given = flags.FLAGS
    try:
        show(given.config, given.topology, given.roofline, given.search)
    except errors.BigVlpError as error:
        errors.stop(error)


if __name__ == "__main__":
    command.define_config()
    flags.DEFINE_string(
        "topology", None, "a TPU slice, such as v5e:4x4; by default the local devices"
    )
    flags.DEFINE_bool("roofline", False, "also say how long a step takes at least, and where")
    flags.DEFINE_bool(
        "search", False, "look for the remat policy and the micro-batches that run fastest"
    )
    command.run(main)
