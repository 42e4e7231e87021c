"""How the code is laid out: docs/architecture.md says it, and this holds it."""

import ast
import itertools
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("big_vlp", "evaluators", "input_pipeline")
MOST_MODULES = 15
# Commands and old names under which README or configs know what lies elsewhere: two lines each.
SHIMS = {
    "big_vlp/config.py",
    "input_pipeline/plan.py",
    "input_pipeline/train_tokenizer.py",
    "input_pipeline/vocabulary.py",
}
# Inside big_vlp, from the ground up; a room imports those below it.
FLOORS = (
    ("determinism", "flag_sets", "renamed", "trees", "parallel"),
    ("augment", "losses", "pictures", "recipes"),
    ("models",),
    ("generation",),
    ("methods",),
    ("run",),
    ("storage", "telemetry"),
    ("api", "bounds", "convert"),
    ("experiment",),
    ("command", "compiling"),
    ("compile", "embed", "evaluate", "generate", "show", "train"),
)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MODULES = {name_of(path): path for path in FILES}


def imported(path: Path) -> set[str]:
    """All modules that a file names in imports, wherever in it they stand."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in whole}
    return found


IMPORTS = {name: imported(path) for name, path in MODULES.items()}


def arrows():
    """(importer, imported) of our own modules."""
    for name, others in IMPORTS.items():
        yield from ((name, other) for other in others if other in MODULES and other != name)


def test_the_walk_sees_the_code():
    assert ("big_vlp.train", "big_vlp.experiment") in set(arrows())
    assert len(MODULES) > 150


def test_dependencies_point_one_way():
    wrong = [
        (importer, other)
        for importer, other in arrows()
        if (importer.startswith("input_pipeline") and not other.startswith("input_pipeline"))
        or (
            importer.startswith("evaluators")
            and not other.startswith(("evaluators", "input_pipeline", "big_vlp.parallel"))
        )
    ]
    assert not wrong
    for name, others in IMPORTS.items():
        if name.startswith("input_pipeline"):
            roots = {other.split(".")[0] for other in others}
            assert not roots & {"jax", "jaxlib", "flax", "optax", "orbax"}, name


def test_rooms_stand_on_those_below():
    floor_of = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
    rooms = {name.split(".")[1] for name in MODULES if name.startswith("big_vlp.")}
    assert rooms - {"config"} == floor_of.keys()
    for importer, other in arrows():
        if importer.startswith("big_vlp.") and other.startswith("big_vlp."):
            upper, lower = importer.split(".")[1], other.split(".")[1]
            if "config" not in (upper, lower) and upper != lower:
                assert floor_of[upper] > floor_of[lower], f"{importer} -> {other}"


def test_no_circle():
    """Files that import each other, however long the way."""
    left = {name: {b for a, b in arrows() if a == name} for name in MODULES}
    while left:
        free = [name for name, others in left.items() if not others & left.keys()]
        assert free, f"in circles, or above one: {sorted(left)}"
        for name in free:
            del left[name]


def test_a_folder_is_a_subject():
    folders = {path.parent for path in FILES}
    for folder in folders:
        modules = [
            path
            for path in folder.glob("*.py")
            if path.name not in ("__init__.py", "__main__.py")
            and str(path.relative_to(ROOT)) not in SHIMS
        ]
        assert len(modules) <= MOST_MODULES, folder
        for path in modules:
            assert folder.name.rstrip("s") not in path.stem.split("_"), f"{path} repeats its folder"


@pytest.mark.parametrize("shim", sorted(SHIMS))
def test_a_shim_holds_no_code(shim):
    tree = ast.parse((ROOT / shim).read_text())
    kinds = (ast.Assign, ast.Expr, ast.Import, ast.ImportFrom, ast.If)
    assert all(isinstance(node, kinds) for node in tree.body)


def test_names_of_parts_are_of_one_module_each():
    """As configs choose them by the last name alone."""
    for folder in (
        "big_vlp/methods",
        "evaluators",
        "input_pipeline/sources",
        "input_pipeline/views",
    ):
        stems = [
            path.stem
            for path in (ROOT / folder).rglob("*.py")
            if path.stem != "__init__" and not {"shared", "datasets"} & set(path.parts)
        ]
        twice = {a for a, b in itertools.pairwise(sorted(stems)) if a == b}
        assert not twice, f"{folder}: {twice}"


def bound_in(tree: ast.Module) -> set[str]:
    """The names that a module has once it is imported."""
    found, blocks = set(), [tree]
    while blocks:
        for node in ast.iter_child_nodes(blocks.pop()):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                found.add(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
            else:
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    found.add(node.id)
                blocks.append(node)
    return found


BOUND = {name: bound_in(ast.parse(path.read_text())) for name, path in MODULES.items()}


@pytest.mark.parametrize("folder", [*PACKAGES, "configs", "launch", "tests"])
def test_what_is_named_of_a_module_is_there(folder):
    """`module.name`, also where no test comes by: a name that moved is missed at once."""
    wrong = []
    for path in (ROOT / folder).rglob("*.py"):
        tree = ast.parse(path.read_text())
        modules = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
            if f"{node.module}.{alias.name}" in MODULES
        }
        assigned = {
            node.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        } | {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)):
                continue
            module = None if node.value.id in assigned else modules.get(node.value.id)
            if module is None or node.attr.startswith("__"):
                continue
            if node.attr not in BOUND[module] and f"{module}.{node.attr}" not in MODULES:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert not wrong
