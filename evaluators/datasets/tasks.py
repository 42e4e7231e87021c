"""What is published of models, by the sections and metrics of evaluations."""

import json
from pathlib import Path

from input_pipeline.checks.arguments import unknown

_FOLDER = Path(__file__).parent / "data"


def paper(model: str) -> dict[str, dict[str, float]]:
    """Numbers that are published of a model: section of a task -> metric -> number.

    Raises:
      ValueError: none are known of it.
    """
    published = json.loads((_FOLDER / "papers.json").read_text(encoding="utf-8"))
    if model not in published:
        raise ValueError(unknown("published model", model, published))
    return published[model]
