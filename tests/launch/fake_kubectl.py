#!/usr/bin/env python3
"""Plays the states of a JobSet: `kubectl` as gke/submit.sh uses it.

In the folder FAKE a test says what each look sees, a line for each, of which the last stays:
`jobset` has TERMINAL_STATE|RESTARTS, gone or unreachable, `pods` the newest pod of process 0 and
its phase, `events` the warnings. `refused` is why `apply` fails.
"""

import json
import os
import sys
from pathlib import Path

FAKE = Path(os.environ["FAKE"])


def look(name: str) -> str:
    path = FAKE / name
    lines = path.read_text().splitlines() if path.exists() else []
    if len(lines) > 1:
        path.write_text("".join(f"{line}\n" for line in lines[1:]))
    return lines[0] if lines else ""


def main() -> None:
    arguments = sys.argv[1:]
    with open(FAKE / "kubectl.jsonl", "a") as log:
        log.write(json.dumps(arguments) + "\n")
    if arguments[0] == "apply":
        (FAKE / "applied.yaml").write_text(sys.stdin.read())
        if refused := look("refused"):
            sys.exit(f"Error from server (Forbidden): {refused}")
        print("jobset.jobset.x-k8s.io/run-1 created")
    elif arguments[0] == "delete":
        print('jobset.jobset.x-k8s.io "run-1" deleted')
    elif arguments[0] == "logs":
        pod = next(word for word in arguments[1:] if not word.startswith("-"))
        print(f"log of {pod}")
    elif arguments[:2] == ["get", "jobset"]:
        if "conditions" in arguments[-1]:
            print("jobset failed due to one or more job failures", end="")
        elif "restarts" not in arguments[-1]:  # before the start
            print(look("before"), end="")
        elif (found := look("jobset")) == "unreachable":
            sys.exit("Unable to connect to the server: dial tcp: i/o timeout")
        elif found != "gone":  # of which nothing is said
            print(found, end="")
    elif arguments[:2] == ["get", "pods"]:
        print(look("pods"))
    elif arguments[:2] == ["get", "events"]:
        print(look("events"))
    else:
        sys.exit(f"error: unknown command {arguments[0]}")


if __name__ == "__main__":
    main()
