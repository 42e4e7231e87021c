"""docs/launch.md: its commands are such that the launchers and gcloud take them."""

import re
import subprocess
import sys

import pytest

from tests.launch.fakes import ROOT, words
from tests.launch.test_tpu import REAL, assert_parsed

TEXT = (ROOT / "docs/launch.md").read_text()


def commands(*starts: str) -> list[str]:
    """What the bash blocks hold, a command a line, with names in place of what a user fills in."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)).replace("\\\n", " ")
    for blank, name in {"PROJECT": "mine", "BUCKET": "bucket", "NUMBER": "1"}.items():
        blocks = blocks.replace(blank, name)
    blocks = blocks.replace('"$image"', "mine/big_vlp:1")
    lines = [part.strip() for line in blocks.splitlines() for part in line.split(" && ")]
    return [line for line in lines if line.startswith(starts)]


LAUNCHES = [line for line in commands("launch/", "python launch/") if "…" not in line]


@pytest.mark.parametrize("line", LAUNCHES)
def test_launchers_take_them(line):
    program, *arguments = words(line.partition(" #")[0])
    start = [sys.executable, arguments.pop(0)] if program == "python" else ["bash", program]
    given = [argument for argument in arguments if argument != "--dry-run"]
    done = subprocess.run(
        [*start, "--dry-run", *given], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_all_launchers_are_there():
    scripts = {line.split()[0] for line in LAUNCHES}
    assert scripts >= {
        "launch/local.sh",
        "launch/tpu.sh",
        "launch/docker/build.sh",
        "launch/gke/submit.sh",
        "launch/slurm/submit.sh",
        "python",
    }


@pytest.mark.skipif(REAL is None, reason="needs gcloud")
def test_gcloud_takes_them(tmp_path):
    found = commands("gcloud")
    assert len(found) > 10
    assert_parsed(found, tmp_path)
