"""Writes the tables of docs/recipes.md: the published hyper-parameters beside those of configs/.

    python -m tests.recipes

Ours are read from the configs, and from the defaults of what the configs build. A row whose two
values differ must say why, and only such a row may: else there is an error, and no table. What
stands before the tables is written by hand, and kept.
"""

from pathlib import Path

from tests.recipes.catlip import catlip
from tests.recipes.cogvlm import cogvlm
from tests.recipes.contrastive import clip, cosmos, siglip
from tests.recipes.rows import Recipe, table
from tests.recipes.vlm import vlm

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
MARK = "<!-- What follows is made by `python -m tests.recipes`. -->"


def recipes() -> list[Recipe]:
    return [*cosmos(), *catlip(), *cogvlm(), *vlm(), *clip(), *siglip()]


def page() -> str:
    """All of recipes.md, with the tables made anew.

    Raises:
      ValueError: as `rows.table`, or the page has no mark before its tables.
    """
    by_hand, mark, _ = PAGE.read_text("utf-8").partition(MARK)
    if not mark:
        raise ValueError(f"{PAGE} has no line {MARK}")
    lines = [line for recipe in recipes() for line in table(recipe)]
    return by_hand + "\n".join([MARK, "", *lines])


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
