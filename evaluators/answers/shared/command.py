"""Scores a file of answers against a data source, without a model.

    python -m evaluators.answers --predictions results.json --input data/vqav2_val --metric vqa

The file may have any form in which evaluators write one (predictions=FILE).
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from evaluators.answers.shared import asking, predictions
from evaluators.shared.rows import read_fields
from input_pipeline import command_line
from input_pipeline.checks import arguments, parts


class Scored(NamedTuple):
    """What a file of answers is scored with.

    Attributes:
      scoring: the metric.
      source: of the records.
      rows, queries: of each question, its record and what is asked.
      kept: what `scoring` keeps of it.
      texts: its answer.
    """

    scoring: asking.Scoring
    source: Any
    rows: Sequence[int]
    queries: Sequence[str]
    kept: Sequence[asking.Kept]
    texts: Sequence[str]


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0, 1 after an error, 130 after Ctrl-C."""
    parser = command_line.Parser(prog="python -m evaluators.answers", description=__doc__)
    parser.add_argument(
        "--predictions",
        type=command_line.path_argument,
        required=True,
        metavar="FILE",
        help="answers, one for each question",
    )
    parser.add_argument(
        "--input", required=True, metavar=command_line.SOURCE, help=command_line.SOURCE_HELP
    )
    parser.add_argument(
        "--metric",
        required=True,
        metavar="NAME:KEY=VALUE,...",
        help="an evaluator that asks (captions, grounded_captions, multiple_choice, pointing, "
        "referring, transcripts, vqa, yes_no) with keys of its scores, such as "
        "vqa:normalisation=textvqa or captions:by=domain",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the scores as JSON, not as a table"
    )
    args = parser.parse_args(argv)
    return command_line.run(_score, args)


def open_scored(metric: str, data: str, path) -> Scored:
    """Opens a source and reads a file of answers to it, by the words of this command.

    Raises:
      ValueError: there is no such metric or source, or the three do not fit each other.
      FileNotFoundError: a file is missing.
    """
    name, keys = command_line.parse_call(metric, "--metric")
    scoring = parts.find("metric", "evaluators.answers", name, "Scoring")
    try:
        scoring = arguments.call("", scoring, keys)
    except arguments.ArgumentError as error:
        raise ValueError(f"metric {name}: {error}") from None
    _, _, source = command_line.open_source(data)
    found = predictions.read(path)  # before all records are
    asked = read_fields(source, scoring.questions_of, range(len(source)))
    questions = [(row, *one) for row, of_record in enumerate(asked) for one in of_record]
    rows, queries, kept = zip(*questions) if questions else ((), (), ())
    ids = [one["id"] for one in kept]
    texts = predictions.matched(found, ids, str(path))
    scoring.check(kept)
    return Scored(scoring, source, rows, queries, kept, texts)


def _score(args) -> None:
    scored = open_scored(args.metric, args.input, args.predictions)
    values = dict(scored.scoring.scores(scored.texts, scored.kept))
    if args.json:
        print(json.dumps(values))
        return
    width = max(map(len, values))
    for metric, value in values.items():
        print(f"{metric:<{width}}  {value:.4f}")
    print(f"\n{len(scored.kept):,} questions.")
