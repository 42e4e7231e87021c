"""Counts a corpus on Apache Beam (the extra `[beam]`): on this machine, or a cluster's runner.

The files are the same as without it. Sources and the output must have the same paths everywhere.
"""

from pathlib import Path

from input_pipeline.words import count
from input_pipeline.words.count import Job, Part, Totals


def run(job: Job, output: Path, runner: str, options: list[str]) -> Totals:
    """Counts all parts in a pipeline.

    Args:
      output: of the vocabulary; the sum is handed over in a file beside it, which is removed.
      runner: name of Beam's runner, e.g. "DirectRunner".
      options: further words of a command line, for Beam.

    Raises:
      ValueError: Beam is not installed, or the pipeline failed.
    """
    try:
        # Imported here: an extra, and it takes seconds.
        import apache_beam as beam
        from apache_beam.io.filesystems import FileSystems
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ValueError(
            f"--runner needs Apache Beam ({error}): pip install 'big_vlp[beam]'."
        ) from None

    class Add(beam.CombineFn):
        def create_accumulator(self):
            return Totals()

        def add_input(self, totals: Totals, found: Totals) -> Totals:
            totals.add(found)
            return totals

        def merge_accumulators(self, several):
            totals = Totals()
            for found in several:
                totals.add(found)
            return totals

        def extract_output(self, totals: Totals) -> str:
            return totals.to_json()

    handed_over = str(output.absolute().with_suffix(".totals"))
    try:
        with beam.Pipeline(options=PipelineOptions(["--runner", runner, *options])) as pipeline:
            (
                pipeline
                | "parts" >> beam.Create(job.parts)
                | "spread" >> beam.Reshuffle()
                | "count" >> beam.Map(count.count).with_input_types(Part)
                | "add" >> beam.CombineGlobally(Add())
                | "hand over" >> beam.io.WriteToText(handed_over, shard_name_template="")
            )
        with FileSystems.open(handed_over) as file:
            text = file.read().decode()
    except (RuntimeError, OSError) as error:
        raise ValueError(f"The Beam pipeline failed: {error}") from None
    FileSystems.delete([handed_over])
    return Totals.from_json(text)
