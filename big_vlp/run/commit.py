"""What code a run was started with: WORKDIR/COMMIT has a line for each start."""

import subprocess
import time
from pathlib import Path

from etils import epath

import big_vlp
from input_pipeline.files.whole import write_whole

# Of a run; and where launchers send a tree without its history, of that tree.
COMMIT_FILE = "COMMIT"
ROOT = Path(big_vlp.__file__).parents[1]
_TIMEOUT = 60  # seconds


def note_commit(workdir: Path | epath.Path, step: int, root: Path = ROOT) -> None:
    """Adds when, at which step and with what code a run starts; nothing where that is not known.

    Raises:
      OSError: it cannot be written.
    """
    found = commit(root)
    if found is None:
        return
    file = workdir / COMMIT_FILE
    before = file.read_bytes() if file.exists() else b""
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    write_whole(file, before + f"{now}, step {step}: {found}\n".encode())


def commit(root: Path) -> str | None:
    """The commit of a tree, and how many files differ from it; None if it is no checkout, as where
    the package was installed."""
    if (root / COMMIT_FILE).is_file():
        head, *changed = (root / COMMIT_FILE).read_text(errors="replace").splitlines() or [""]
        changed = changed[1:]  # after a line that says what they are
    elif (root / ".git").exists():
        try:
            [head] = _git(root, "rev-parse", "HEAD")
            changed = _git(root, "status", "--porcelain")
        except (OSError, ValueError, subprocess.SubprocessError):
            return None
    else:
        return None
    return f"{head}; files that differ from it: {len(changed)}" if changed else head


def _git(root: Path, *words: str) -> list[str]:
    command = ["git", "-C", str(root), "--no-optional-locks", *words]
    done = subprocess.run(command, capture_output=True, check=True, timeout=_TIMEOUT)
    return done.stdout.decode(errors="replace").splitlines()
