"""A wheel holds all that a run needs: it trains and evaluates in an empty folder."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.bucket_server import is_missing

ROOT = Path(__file__).parents[1]
TREE = ("big_vlp", "evaluators", "input_pipeline", "README.md", "pyproject.toml", "setup.py")


def run(*words, cwd):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_wheel_trains_and_evaluates(tmp_path):
    if is_missing("pip") or is_missing("setuptools.command.bdist_wheel"):
        pytest.skip("a wheel is built by pip and setuptools 70.1 or newer")
    tree, folder = tmp_path / "tree", tmp_path / "empty"
    folder.mkdir()
    for name in TREE:  # a build leaves its own files beside these
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        tree.mkdir(exist_ok=True)
        copy(ROOT / name, tree / name)
    pip = sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"
    run(*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), cwd=tree)
    [wheel] = tmp_path.glob("*.whl")
    shipped = set(zipfile.ZipFile(wheel).namelist())
    packages = {name.split("/")[0] for name in shipped}
    assert {name for name in packages if "-" not in name} == set(TREE[:3])
    files = [path for name in TREE[:3] for path in (ROOT / name).rglob("*") if path.is_file()]
    needed = {path.relative_to(ROOT).as_posix() for path in files if path.suffix != ".pyc"}
    assert needed <= shipped

    venv.create(tmp_path / "venv", with_pip=False)
    python = str(tmp_path / "venv" / "bin" / "python")
    [site] = (tmp_path / "venv" / "lib").glob("*/site-packages")
    dependencies = [path for path in sys.path if path.endswith("-packages")]
    (site / "dependencies.pth").write_text("\n".join(dependencies))
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", str(wheel), cwd=folder)
    where = run(python, "-c", "import big_vlp; print(big_vlp.__file__)", cwd=folder)
    assert Path(where.strip()).is_relative_to(site)

    shutil.copy(ROOT / "tests" / "tiny_config.py", folder / "mine.py")
    arguments = "--config", "mine.py:method=clip", "--workdir", "runs/a", "--config.total_steps=4"
    run(python, "-m", "big_vlp.train", *arguments, cwd=folder)
    run(python, "-m", "big_vlp.evaluate", *arguments, cwd=folder)
    assert (folder / "runs" / "a" / "evaluate" / "4.json").exists()
    assert not (folder / "runs" / "a" / "COMMIT").exists()  # it is no checkout
    assert {path.name for path in folder.iterdir()} <= {"mine.py", "runs", "__pycache__"}
