"""docs/recipes.md is what its program makes of the configs, and the program misses nothing."""

from pathlib import Path

import pytest

from tests.recipes import __main__ as program
from tests.recipes import contrastive, rows
from tests.recipes.rows import Row

ROOT = Path(__file__).parents[1]


def test_the_page_is_that_of_the_configs():
    assert program.PAGE.read_text("utf-8") == program.page(), (
        "python -m tests.recipes writes it anew"
    )


def test_all_recipes_are_there():
    configs = {recipe.config for recipe in program.recipes()}
    assert configs == {
        *("cosmos", "catlip", "transfer", "segmentation", "cogvlm", "vlm", "clip", "siglip")
    }
    for name in configs:
        assert "docs/recipes.md" in (ROOT / "configs" / f"{name}.py").read_text().split('"""')[1]


def test_a_number_that_changes_is_noticed(monkeypatch):
    [recipe] = contrastive.clip()
    load = rows.load

    def changed(name, arg):
        config = load(name, arg)
        config["optim"]["beta2"] = 0.95
        return config

    monkeypatch.setattr(rows, "load", changed)
    with pytest.raises(ValueError, match=r"Adam beta2: published 0.98, here 0.95; .* says why"):
        rows.table(recipe)
    explained = [row._replace(why="a test") if "beta2" in row.name else row for row in recipe.rows]
    lines = rows.table(recipe._replace(rows=explained))
    assert "| Adam beta2 | 0.98 | **0.95** | a test |" in lines
    monkeypatch.setattr(rows, "load", load)
    with pytest.raises(ValueError, match=r"Adam beta2: published 0.98, here 0.98"):
        rows.table(recipe._replace(rows=explained))


@pytest.mark.parametrize("path", ["optim.momentum", "optims", "optim.beta1.x"])
def test_a_key_that_is_not_there_is_an_error(path):
    [recipe] = contrastive.clip()
    with pytest.raises(ValueError, match=f"no key '{path}'"):
        rows.table(recipe._replace(rows=[Row("gone", 1, path)]))


def test_numbers_as_they_are_shown():
    values = [1e-8, 5e-4, 0.001, 0.072, 400_000_000, 1.28e-6, None, True, (0.4, 1.0), "raw", 0.0]
    assert [rows.shown(value) for value in values] == [
        *("1e-8", "5e-4", "0.001", "0.072", "400,000,000", "1.28e-6", "none", "True"),
        *("0.4, 1", "raw", "0"),
    ]
