"""The code that a run was started with: of a checkout, of what a launcher sent, or unknown."""

import re
import subprocess

import pytest

from big_vlp.run.commit import ROOT, commit, note_commit


@pytest.fixture
def checkout(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
        command = ["git", "-C", str(root), *identity, *words]
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()

    root = tmp_path / "tree"
    root.mkdir()
    git("init", "--quiet")
    (root / "file").write_text("1")
    git("add", "file")
    git("commit", "--quiet", "--message", "first")
    return root, git("rev-parse", "HEAD")


def test_a_checkout(checkout):
    root, head = checkout
    assert commit(root) == head
    (root / "file").write_text("2")
    (root / "new").write_text("")
    assert commit(root) == f"{head}; files that differ from it: 2"
    below = root / "venv"  # a package that was installed within a checkout is not of it
    below.mkdir()
    assert commit(below) is None


def test_a_tree_that_a_launcher_sent(tmp_path):
    file = tmp_path / "COMMIT"
    file.write_text("0123abc\n")
    assert commit(tmp_path) == "0123abc"
    file.write_text("0123abc\nand changes that are not committed:\n M a\n?? b\n")
    assert commit(tmp_path) == "0123abc; files that differ from it: 2"
    file.write_text("no commit: not a git checkout\n")
    assert commit(tmp_path) == "no commit: not a git checkout"
    file.write_text("")
    assert commit(tmp_path) == ""


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_every_start_has_a_line(checkout, tmp_path, place, request):
    folder = tmp_path / "run" if place == "disk" else request.getfixturevalue("bucket")
    folder.mkdir(parents=True, exist_ok=True)
    root, head = checkout
    for step in (0, 20):
        note_commit(folder, step, root)
    note_commit(folder, 30, tmp_path)  # no checkout
    lines = (folder / "COMMIT").read_text().splitlines()
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    assert [re.sub(time, "TIME", line) for line in lines] == [
        f"TIME, step 0: {head}",
        f"TIME, step 20: {head}",
    ]


def test_the_code_of_this_test():
    assert (ROOT / "big_vlp" / "run" / "commit.py").exists()
    if (ROOT / ".git").exists():
        assert re.match("[0-9a-f]{40}", commit(ROOT))
