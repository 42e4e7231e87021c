"""The commands of `big_vlp.show`."""

import sys
from pathlib import Path

import jax
from absl import flags, logging
from etils import epath

from big_vlp import command, show
from big_vlp.experiment import ConfigError, Experiment
from big_vlp.run import contact_sheet
from big_vlp.run.compile_cache import open_compile_cache
from big_vlp.show import of_images, of_sources
from input_pipeline import command_line
from input_pipeline.checks import errors
from input_pipeline.checks.errors import BigVlpError
from input_pipeline.command_line import Parser
from input_pipeline.files.buckets import storage_path


def draw_batch(config, step: int, output: str | Path) -> Path | epath.Path:
    """A contact sheet of batch `step` of a config; returns where it lies.

    Raises:
      PathError, ConfigError, BrokenRecordError: see `Experiment`.
    """
    output = storage_path(output)
    experiment = Experiment.from_config(config)
    if step >= experiment.total_steps:
        raise ConfigError(f"--step={step}: the run ends with step {experiment.total_steps - 1}.")
    loader, method = experiment.make_loader(), experiment.make_method()
    rows = loader.first_rows(step, contact_sheet.MAX_EXAMPLES)
    _, key = jax.random.split(jax.random.key(experiment.seed))
    image_size, batch_size, _ = loader.plan(step)
    views = loader.views[image_size]
    contact_sheet.write_contact_sheet(output, method, views, rows, key, step, batch_size)
    return output


def _batch(_) -> None:
    """Draws a training batch as the model sees it.

        python -m big_vlp.show batch --config configs/demo.py --step 3 --output batch.png

    It has every view of some examples, with their texts or labels below.
    """
    given = flags.FLAGS
    open_compile_cache()
    try:
        output = draw_batch(given.config, given.step, given.output)
    except BigVlpError as error:
        errors.stop(error)
    print(f"Wrote {output}: batch {given.step} of {given['config'].parser.source}.")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    logging.set_verbosity(logging.ERROR)  # of the libraries
    if argv[:1] == ["batch"]:
        command.define_config()
        flags.DEFINE_string("output", "contact_sheet.png", "the picture to write")
        flags.DEFINE_integer("step", 0, "the step whose batch to draw", lower_bound=0)
        command.run(_batch, ["python -m big_vlp.show batch", *argv[1:]])
    parser = Parser(prog="python -m big_vlp.show", description=show.__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("batch", help="a training batch")
    of_images.add(commands)
    of_sources.add(commands)
    args = parser.parse_args(argv)
    return command_line.run(args.run, args)


if __name__ == "__main__":
    sys.exit(main())
