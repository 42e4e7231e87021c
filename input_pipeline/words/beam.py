"""Counts a corpus on Apache Beam (the extra `[beam]`): on this machine, or a cluster's runner.

The files are the same as without it. Sources and the output must have the same paths everywhere:
on a disk that all machines share, or in a bucket.
"""

import os
from pathlib import Path

from etils import epath

from input_pipeline.files.buckets import storage_path
from input_pipeline.files.whole import write_whole
from input_pipeline.words import count
from input_pipeline.words.count import Job, Part, Totals


def run(job: Job, output: Path | epath.Path, runner: str, options: list[str]) -> Totals:
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

    handed_over = storage_path(output).with_suffix(".totals")
    try:
        with beam.Pipeline(options=PipelineOptions(["--runner", runner, *options])) as pipeline:
            (
                pipeline
                | "parts" >> beam.Create(job.parts)
                | "spread" >> beam.Reshuffle()
                | "count" >> beam.Map(count.count).with_input_types(Part)
                | "add" >> beam.CombineGlobally(Add())
                | "hand over" >> beam.Map(_write, os.fspath(handed_over))
            )
        text = handed_over.read_text()
    except (RuntimeError, OSError) as error:
        raise ValueError(f"The Beam pipeline failed: {error}") from None
    handed_over.unlink()
    return Totals.from_json(text)


def _write(text: str, path: str) -> None:
    write_whole(storage_path(path), text.encode())
