"""Scores a file of answers against a data source, without a model.

    python -m evaluators.answers --predictions results.json --data data/vqav2_val --metric vqa

The file may have any form in which evaluators write one (predictions=FILE).
"""

import json

from evaluators.answers.shared import predictions
from evaluators.shared.rows import read_fields
from input_pipeline import command_line
from input_pipeline.checks import arguments, parts


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
        "--data", required=True, metavar=command_line.SOURCE, help=command_line.SOURCE_HELP
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


def _score(args) -> None:
    name, keys = command_line.parse_call(args.metric, "--metric")
    scoring = parts.find("metric", "evaluators.answers", name, "Scoring")
    try:
        scoring = arguments.call("", scoring, keys)
    except arguments.ArgumentError as error:
        raise ValueError(f"metric {name}: {error}") from None
    _, _, source = command_line.open_source(args.data)
    found = predictions.read(args.predictions)  # before all records are
    questions = read_fields(source, scoring.questions_of, range(len(source)))
    kept = [one for of_record in questions for _, one in of_record]
    ids = [one["id"] for one in kept]
    texts = predictions.matched(found, ids, str(args.predictions))
    scoring.check(kept)
    values = dict(scoring.scores(texts, kept))
    if args.json:
        print(json.dumps(values))
        return
    width = max(map(len, values))
    for metric, value in values.items():
        print(f"{metric:<{width}}  {value:.4f}")
    print(f"\n{len(kept):,} questions.")
