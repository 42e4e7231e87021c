"""Where parity tests find numbers of the reference systems: tests/fixtures, and what else there is.

`BIG_VLP_FIXTURES` names a directory with more files of the same patterns; tests/fixtures/README.md
says what is in them.
"""

import os
from pathlib import Path

HERE = Path(__file__).parents[1] / "fixtures"


def fixtures(pattern: str) -> list[Path]:
    """Every file of that pattern, one of each content, those of this repository first."""
    directories = [HERE, *map(Path, filter(None, [os.environ.get("BIG_VLP_FIXTURES")]))]
    found = {}
    for directory in directories:
        for path in sorted(directory.glob(pattern)):
            found.setdefault(path.read_bytes(), path)
    return list(found.values())


def micro_batches(batch: int) -> int:
    """How many micro-batches to cut a batch into: its smallest divisor above 1."""
    return next(n for n in range(2, batch + 1) if batch % n == 0)
