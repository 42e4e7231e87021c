#!/usr/bin/env python3
"""Plays the states of Cloud TPU: `gcloud compute tpus …` as tpu.sh uses it.

In the folder FAKE a test says what happens: `creates` has a line for each creation (ok, quota or
capacity; then ok for ever), `states.N` a line for each look at the N-th creation (the last stays).
A worker is a folder that serves as its home; ssh runs the command there, so worker.sh is the real
one. As with the real one, a slice that is not ACTIVE takes no connection, what is not there cannot
be described, a name can be taken, and --worker=all fails where one worker fails.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

FAKE = Path(os.environ["FAKE"])
WORKERS = 2
ZONE = "us-central2-b"


def stop(message: str):
    sys.exit(f"ERROR: (gcloud.compute.tpus) {message}")


def options(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    positional, found = [], {}
    left = list(arguments)
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            positional.append(word)
        elif "=" in word:
            name, _, found[name] = word.partition("=")
        elif word in ("--quiet", "--force", "--spot"):
            found[word] = ""
        else:
            found[word] = left.pop(0)
    return positional, found


def take_line(path: Path, last_stays: bool) -> str | None:
    lines = path.read_text().splitlines() if path.exists() else []
    if not lines:
        return None
    if len(lines) > 1 or not last_stays:
        path.write_text("".join(f"{line}\n" for line in lines[1:]))
    return lines[0]


def nodes() -> dict:
    path = FAKE / "resource.json"
    return json.loads(path.read_text()) if path.exists() else {}


def homes(node: str, worker: str = "all") -> list[Path]:
    found = [FAKE / "workers" / f"{node}.{i}" for i in range(WORKERS)]
    return found if worker == "all" else [found[int(worker)]]


def current_state(look: bool = False) -> str:
    resource = nodes()
    if not resource:
        stop("NOT_FOUND: Requested entity was not found.")
    path = FAKE / f"states.{resource['number']}"
    if look:
        return take_line(path, last_stays=True) or "ACTIVE"
    return path.read_text().splitlines()[0] if path.exists() else "ACTIVE"


def create(name: str, flags: dict) -> None:
    answer = take_line(FAKE / "creates", last_stays=False) or "ok"
    if answer == "quota":
        stop(
            "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI' "
            f"has been exceeded. Limit: 0 in zone {ZONE}."
        )
    if answer == "capacity":
        stop(f'There is no more capacity in the zone "{ZONE}"; you can try in another zone.')
    if nodes():
        stop(f"ALREADY_EXISTS: {name} already exists.")
    number_file = FAKE / "number"
    number = int(number_file.read_text()) + 1 if number_file.exists() else 0
    number_file.write_text(str(number))
    count = int(flags.get("--node-count", 1))
    names = [f"{name}-{i}" for i in range(count)] if "--node-count" in flags else [name]
    for node in names:
        for i, home in enumerate(homes(node)):
            python = home / "big_vlp/venv/bin/python"
            python.parent.mkdir(parents=True)
            index = names.index(node) * WORKERS + i
            python.write_text(
                f"#!/usr/bin/env bash\nexport JAX_PROCESS_ID={index} FAKE={FAKE}\n"
                f'exec "{FAKE}/fake_python" "$@"\n'
            )
            python.chmod(0o755)
    (FAKE / "resource.json").write_text(json.dumps({"number": number, "nodes": names}))
    print(f"Create request issued for: [{name}]", file=sys.stderr)


def delete() -> None:
    for node in nodes()["nodes"]:
        for home in homes(node):
            pid = home / "big_vlp/run/pid"
            if pid.exists():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(int(pid.read_text()), signal.SIGKILL)
            shutil.rmtree(home)
    (FAKE / "resource.json").unlink()


def connect(node: str) -> None:
    if current_state() != "ACTIVE":
        stop(f"TPU {node} is not in state READY.")
    if node not in nodes()["nodes"]:
        stop(f"NOT_FOUND: {node}")


def ssh(node: str, flags: dict) -> None:
    connect(node)
    print("SSH: Attempting to connect to worker 0...", file=sys.stderr)
    path = f"{FAKE}/remote{os.pathsep}/usr/bin{os.pathsep}/bin"
    statuses = [
        subprocess.run(
            ["bash", "-c", flags["--command"]], env={"HOME": str(home), "PATH": path}, cwd=home
        ).returncode
        for home in homes(node, flags["--worker"])
    ]
    sys.exit(max(statuses))


def scp(source: str, target: str, flags: dict) -> None:
    node, _, file = target.partition(":")
    connect(node)
    for home in homes(node, flags["--worker"]):
        shutil.copy(source, home / file)


def main() -> None:
    with open(FAKE / "gcloud.jsonl", "a") as log:
        log.write(json.dumps(sys.argv[1:]) + "\n")
    if sys.argv[1:3] == ["storage", "ls"]:
        listing = FAKE / "bucket"
        print(listing.read_text() if listing.exists() else "", end="")
        return
    assert sys.argv[1:3] == ["compute", "tpus"], sys.argv
    kind, verb = sys.argv[3:5]
    positional, flags = options(sys.argv[5:])
    assert flags["--zone"] == ZONE
    if (kind, verb) == ("queued-resources", "create"):
        create(positional[0], flags)
    elif (kind, verb) == ("queued-resources", "delete"):
        delete()
    elif (kind, verb) == ("queued-resources", "describe"):
        message = FAKE / f"message.{nodes().get('number')}"
        if flags["--format"] == "value(state.state)":
            print(current_state(look=True))
        else:
            print(message.read_text() if message.exists() else "")
    elif (kind, verb) == ("tpu-vm", "describe"):
        print({"ACTIVE": "READY"}.get(state := current_state(look=True), state))
    elif (kind, verb) == ("tpu-vm", "ssh"):
        ssh(positional[0], flags)
    elif (kind, verb) == ("tpu-vm", "scp"):
        scp(*positional, flags)
    else:
        stop(f"Invalid choice: {kind} {verb}")


if __name__ == "__main__":
    main()
