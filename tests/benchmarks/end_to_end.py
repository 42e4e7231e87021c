"""The share of its time that a whole run waits for input: configs/openclipart.py on this machine.

Nothing is compared: the tars are prepared with README's command, the run trains for some steps in
the settings of its config, and the numbers are the `input_wait` and `examples_per_s` of its own
metric log, without the first line, whose time is compilation.
"""

import itertools
import subprocess
import sys
import tempfile
from pathlib import Path

from big_vlp.run.log import TRAIN, read_log


def measure(tars: str = "data/tars/openclipart", steps: int = 40, method: str = "cosmos"):
    """Args: directory of train-*.tar and val-*.tar; steps; method=cosmos|clip."""
    if not list(Path(tars).glob("train-*.tar")):
        raise FileNotFoundError(f"no train-*.tar in {tars}: give end_to_end:tars=DIRECTORY")
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "val"):
            program(
                "input_pipeline.prepare",
                "webdataset",
                *("--input", f"{tars}/{split}-*.tar", "--output", f"{folder}/{split}"),
                *("--captions", "raw_caption,keywords"),
            )
        settings = {
            "data.path": f"{folder}/train",
            "evals.retrieval.data.path": f"{folder}/val",
            "total_steps": steps + 1,
            "optim.warmup_steps": min(steps, 100),
        }
        if method == "cosmos":
            settings["evals.retrieval_teacher.data.path"] = f"{folder}/val"
        program(
            "big_vlp.train",
            *("--config", f"configs/openclipart.py:method={method}", "--workdir", f"{folder}/run"),
            *(f"--config.{key}={value}" for key, value in settings.items()),
        )
        lines = [line for line in read_log(f"{folder}/run") if line["split"] == TRAIN]
    return [
        {
            "case": f"openclipart, {method}, steps {before['step'] + 1} to {line['step']}",
            "input_wait": line["values"]["input_wait"],
            "examples_per_s": line["values"]["examples_per_s"],
        }
        for before, line in itertools.pairwise(lines)
    ]


def program(module: str, *args: str) -> None:
    """Runs one of the programs; its output is shown only if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", module, *args], text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{module} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
