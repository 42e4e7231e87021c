"""The benchmarks' runner: it lists them, runs one and saves it, and names what it does not know."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(*args):
    command = [sys.executable, "-m", "tests.benchmarks", *args]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)


def test_without_names_all_are_listed():
    listed = run()
    assert listed.returncode == 0, listed.stderr
    for name in ("clip_step", "cosmos_step", "end_to_end", "flops", "loader", "tpu_memory"):
        assert f"{name}: " in listed.stdout


def test_a_benchmark_is_shown_and_saved(tmp_path):
    file = tmp_path / "results.json"
    done = run("loader:num_images=2,repeats=1", "--json", str(file))
    assert done.returncode == 0, done.stderr
    saved = json.loads(file.read_text())
    assert saved["loader"]["options"] == {"num_images": 2, "repeats": 1}
    assert {"python", "jax", "numpy"} <= saved["environment"]["versions"].keys()
    assert saved["environment"]["cpu"] and saved["environment"]["cores"] >= 1
    rows = {row["case"]: row for row in saved["loader"]["rows"]}
    assert rows["geometry"]["target"] == 4
    for case, row in rows.items():
        assert row["ours_per_s"] > 0 and row["theirs_per_s"] > 0 and case in done.stdout


def test_wrong_names_and_options_are_explained():
    unknown = run("speed")
    assert unknown.returncode == 2 and "choose from catlip_step, clip_step" in unknown.stderr
    option = run("flops:batches=2")
    assert option.returncode == 2 and "Unknown config option 'batches'" in option.stderr
