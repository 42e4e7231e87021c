"""Linters over launch/, where they are installed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.fakes import LAUNCH, launch

HERE = Path(__file__).parent
YAML_RULES = (
    "{extends: default, rules: {comments: {min-spaces-from-content: 1}, line-length: {max: 110}}}"
)
SCRIPTS = sorted([*LAUNCH.rglob("*.sh"), *HERE.glob("*.sh")])


def linted(name: str, *arguments) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    tool = shutil.which(name, path=path)
    if tool is None:
        pytest.skip(f"needs {name}")
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, cwd=LAUNCH)
    assert done.returncode == 0, done.stdout + done.stderr


def test_scripts():
    assert len(SCRIPTS) > 8
    linted("shellcheck", "-x", *SCRIPTS)


def test_dockerfile():
    linted("hadolint", LAUNCH / "docker/Dockerfile")


def test_manifests():
    linted("yamllint", "--strict", "-d", YAML_RULES, *sorted(LAUNCH.rglob("*.yaml")))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_executable_unless_they_are_read_in(script):
    assert os.access(script, os.X_OK) == (script.name != "common.sh")


@pytest.mark.parametrize("script", ["local.sh", "tpu.sh", "gke/submit.sh", "slurm/submit.sh"])
def test_help_names_every_option(script):
    done = launch(script, "--help")
    assert done.returncode == 0 and "-- train" in done.stdout
    options = set(re.findall(r"^    (--[a-z-]+)[)=]", (LAUNCH / script).read_text(), re.MULTILINE))
    assert len(options) >= 5
    assert not {option for option in options if option not in done.stdout}
