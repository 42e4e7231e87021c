"""Runs launchers with stand-ins for the programs that they start."""

import os
import shlex
import stat
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
DEMO = ("--config", "configs/demo.py:method=clip", "--workdir")

# Process i's n-th start does what the file i.n says, and else ends well.
PYTHON = """#!/usr/bin/env bash
if [[ $1 == -c ]]; then exec python3 "$@"; fi
i=${JAX_PROCESS_ID:-${SLURM_PROCID:-0}}
echo >>"$FAKE/starts.$i"
n=$(($(wc -l <"$FAKE/starts.$i") - 1))
printf '%s\\n' "$*" >>"$FAKE/commands"
echo "process $i, start $n, of ${JAX_NUM_PROCESSES-}"
if [[ -e $FAKE/$i.$n ]]; then source "$FAKE/$i.$n"; fi
"""


def program(folder: Path, name: str, text: str) -> Path:
    """An executable file; `folder` goes on the PATH."""
    path = folder / name
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def environment(folder: Path, **more) -> dict[str, str]:
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "FAKE": str(folder), **more}


def launch(script: str, *arguments, env=None, timeout=60) -> subprocess.CompletedProcess:
    command = ["bash", str(LAUNCH / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=timeout)


def dry_run(script: str, *arguments, env=None) -> str:
    done = launch(script, "--dry-run", *arguments, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def words(line: str) -> list[str]:
    """A printed command as the shell would read it, which is what would run."""
    return shlex.split(line)


def saved_steps(workdir: Path) -> list[int]:
    """The complete checkpoints; others have further words in their names."""
    names = [path.name for path in workdir.glob("checkpoints/*")]
    return sorted(int(name) for name in names if name.isdecimal())
