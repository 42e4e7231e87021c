"""The notice that this machine is about to go: it means what SIGTERM does, and comes before that.

Machines of Google's (TPU VMs, GPU VMs) ask the metadata server beside them, which says so before a
maintenance (TPUs and GPUs cannot move to another host meanwhile) and when a spot machine is taken
back. Everywhere else nothing is asked. SLURM and Kubernetes send SIGTERM by themselves.
"""

import contextlib
import http.client
import os
import signal
import sys
import threading
from pathlib import Path

# The variables are google-auth's, too; the server is one by number, since a name that nobody knows
# takes its time.
_VARIABLE, _OFF, _SERVER = "GCE_METADATA_HOST", "NO_GCE_CHECK", "169.254.169.254"
_PRODUCT = Path("/sys/class/dmi/id/product_name")
_POLL_SECONDS, _ANSWER_SECONDS = 2.0, 5.0  # a spot machine has 30 seconds
_NOTICES = {"maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE", "preempted": "TRUE"}


@contextlib.contextmanager
def heard():
    """Within it this process gets SIGTERM when such a notice comes, see `signals.heard`.

    One that was there before is none: a run that is started again on this machine goes on until
    the end, which is SIGTERM's to say. Does nothing in other threads than the main one.
    """
    server = _server()
    ended = threading.Event()
    if server and threading.current_thread() is threading.main_thread():
        threading.Thread(target=_watch, args=(server, ended), name="notices", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _server() -> str | None:
    """host[:port] of the metadata server, or None where there is none, or none is to be asked."""
    if os.environ.get(_OFF) == "true":
        return None
    if given := os.environ.get(_VARIABLE):
        return given
    with contextlib.suppress(OSError):
        if _PRODUCT.read_text().startswith("Google"):
            return _SERVER
    return None


def _watch(server: str, ended: threading.Event) -> None:
    known = {name: _is_said(server, name) for name in _NOTICES}
    while not ended.wait(_POLL_SECONDS):
        for name, before in known.items():
            now = _is_said(server, name)
            if now and before is False and not ended.is_set():
                print(
                    f"This machine is about to go ({name}): the run ends as after SIGTERM.",
                    file=sys.stderr,
                    flush=True,
                )
                os.kill(os.getpid(), signal.SIGTERM)
                return
            known[name] = before if now is None else now


def _is_said(server: str, name: str) -> bool | None:
    """Whether the server gives this notice; None where it does not answer."""
    connection = http.client.HTTPConnection(server, timeout=_ANSWER_SECONDS)
    try:
        path = f"/computeMetadata/v1/instance/{name}"
        connection.request("GET", path, headers={"Metadata-Flavor": "Google"})
        answer = connection.getresponse()
        return answer.read().strip() == _NOTICES[name].encode() if answer.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
