"""docs/recipes.md is what its program makes of the configs, and the program misses nothing."""

import functools
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@functools.cache
def program():
    spec = importlib.util.spec_from_file_location("make_recipes", ROOT / "docs/make_recipes.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_the_page_is_that_of_the_configs():
    assert (ROOT / "docs/recipes.md").read_text("utf-8") == program().page(), (
        "python docs/make_recipes.py writes it anew"
    )


def test_all_five_recipes_are_there():
    made = program()
    recipes = [*made.cosmos(), *made.catlip(), *made.cogvlm(), *made.clip(), *made.siglip()]
    assert {r.config for r in recipes} == {
        *("cosmos", "catlip", "transfer", "segmentation", "cogvlm", "clip", "siglip")
    }
    for name in {r.config for r in recipes}:
        assert "docs/recipes.md" in (ROOT / "configs" / f"{name}.py").read_text().split('"""')[1]


def test_a_number_that_changes_is_noticed(monkeypatch):
    made = program()
    [recipe] = made.clip()
    load = made.load

    def changed(name, arg):
        config = load(name, arg)
        config["optim"]["beta2"] = 0.95
        return config

    monkeypatch.setattr(made, "load", changed)
    with pytest.raises(ValueError, match=r"Adam beta2: published 0.98, here 0.95; .* says why"):
        made.table(recipe)
    explained = [row._replace(why="a test") if "beta2" in row.name else row for row in recipe.rows]
    lines = made.table(recipe._replace(rows=explained))
    assert "| Adam beta2 | 0.98 | **0.95** | a test |" in lines
    monkeypatch.setattr(made, "load", load)
    with pytest.raises(ValueError, match=r"Adam beta2: published 0.98, here 0.98"):
        made.table(recipe._replace(rows=explained))


@pytest.mark.parametrize("path", ["optim.momentum", "optims", "optim.beta1.x"])
def test_a_key_that_is_not_there_is_an_error(path):
    made = program()
    [recipe] = made.clip()
    with pytest.raises(ValueError, match=f"no key '{path}'"):
        made.table(recipe._replace(rows=[made.Row("gone", 1, path)]))


def test_numbers_as_they_are_shown():
    shown = program().shown
    values = [1e-8, 5e-4, 0.001, 0.072, 400_000_000, 1.28e-6, None, True, (0.4, 1.0), "raw", 0.0]
    assert [shown(value) for value in values] == [
        *("1e-8", "5e-4", "0.001", "0.072", "400,000,000", "1.28e-6", "none", "True"),
        *("0.4, 1", "raw", "0"),
    ]
