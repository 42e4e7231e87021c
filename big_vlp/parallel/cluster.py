"""The processes of a run: how they find each other, and what they ask all of them.

What bounds the time that one waits for another, from the outside in:
  - the launcher: once a process has ended, the others have `--grace` seconds;
  - jax's service: a process that gives no sign of life for HEARTBEAT_SECONDS, as on a machine that
    is gone, ends all others. One that lives but stands still goes unnoticed by it;
  - NCCL on GPUs: a collective that is not done after COLLECTIVE_SECONDS ends its process. XLA has
    no such limit by itself, and TPUs have their own;
  - `watchdog`: a process that gets no further, whatever the reason.
"""

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
from jax._src.clusters.cluster import ClusterEnv  # there is no public way to ask
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from big_vlp.parallel.meshes import AXES, replicated
from input_pipeline.checks.errors import BigVlpError

HEARTBEAT_SECONDS = 60
COLLECTIVE_SECONDS = 600
_COLLECTIVE_FLAG = "--xla_gpu_nccl_termination_timeout_seconds"
_GPU_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
CLUSTER_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


class ClusterError(BigVlpError):
    """The processes of a run cannot find each other; the message says what to set."""


def largest_of_processes(values, mesh: Mesh):
    """The elementwise maximum of what each process gives, the same on all.

    Returns at once; reading the result (np.asarray) waits until the devices have come to it.

    Args:
      values: i32[N].
    """
    if jax.process_count() == 1:
        return values
    values = np.asarray(values, np.int32)
    sharding = NamedSharding(mesh, PartitionSpec(AXES))
    shape = (mesh.size, *values.shape)
    rows = jax.make_array_from_callback(shape, sharding, lambda index: values[None])
    return _largest(replicated(mesh))(rows)


@functools.cache
def _largest(sharding: NamedSharding):
    return jax.jit(lambda rows: rows.max(axis=0), out_shardings=sharding)


def gather(value) -> list:
    """What each process gives, in their order, on all of them; values must be JSON data."""
    if jax.process_count() == 1:
        return [value]
    payload = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(payload.size))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: payload.size] = payload
    parts = multihost_utils.process_allgather(padded)
    return [json.loads(part[:size].tobytes()) for part, size in zip(parts, sizes)]


def broadcast(value):
    """What process 0 gives, on all; values must be JSON data, of any size."""
    if jax.process_count() == 1:
        return value
    payload = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(payload.size)))
    padded = np.zeros(size, np.uint8)
    if jax.process_index() == 0:
        padded[:] = payload
    return json.loads(multihost_utils.broadcast_one_to_all(padded).tobytes())


def connect_processes() -> None:
    """Joins the processes of a cluster, where there is one or the environment asks for it.

    To be called before anything else of jax. What clusters jax detects is its own affair (TPU pods,
    SLURM, Open MPI and others); elsewhere set JAX_COORDINATOR_ADDRESS (host:port on the machine of
    process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID. JAX_NUM_PROCESSES=1 alone says that there is
    only this process, as in a batch script of SLURM that does not start it by `srun`.

    Raises:
      ClusterError: a part of the three is missing or wrong, or a cluster cannot be joined.
    """
    address, count, index = (os.environ.get(name, "") for name in CLUSTER_VARIABLES)
    asked = {}
    if count == "1" and not address and index in ("", "0"):
        return
    if count or index:
        if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
            raise ClusterError(_how_to_connect())
        asked = {"num_processes": int(count), "process_id": int(index)}
    if (asked or address) and not re.fullmatch(r".+:\d+", address):
        raise ClusterError(_how_to_connect())
    if not (asked or address or _in_cluster()):
        return
    _bound_collectives()
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS, **asked)
    except Exception as error:  # each kind of cluster has its own
        raise ClusterError(f"{_how_to_connect()} ({type(error).__name__}: {error})") from error


def _bound_collectives() -> None:
    """Has NCCL say what fails, and XLA end a process whose collective stands still.

    Before XLA reads its flags, of which it ends the process for one that it does not know: so a
    process of its own tries that first. Says nothing against what the user has set.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if not _may_use_gpus():
        return
    os.environ.setdefault("NCCL_DEBUG", "WARN")
    flag = f"{_COLLECTIVE_FLAG}={COLLECTIVE_SECONDS}"
    if _COLLECTIVE_FLAG not in flags and _is_known(flag):
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()


def _may_use_gpus() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS", "")
    wanted = not platforms or "cuda" in platforms or "gpu" in platforms
    return wanted and any(map(importlib.util.find_spec, _GPU_PLUGINS))


def _is_known(flag: str) -> bool:
    """Whether XLA takes a flag."""
    program = [sys.executable, "-c", "import jax; jax.devices()"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}
    return subprocess.run(program, env=environment, capture_output=True).returncode == 0


def _in_cluster() -> bool:
    """Whether jax detects a cluster by itself."""
    kinds = ClusterEnv._cluster_types
    return any(kind.is_env_present() for kind in kinds if not kind.opt_in_only_method)


def _how_to_connect() -> str:
    found = ", ".join(f"{name}={os.environ.get(name, '')!r}" for name in CLUSTER_VARIABLES)
    return (
        f"Cannot join the processes of this run with {found}. Give host:port on the machine of "
        "process 0, the number of processes, and this one's, from 0; or none of them on a cluster "
        "that jax detects. JAX_NUM_PROCESSES=1 alone is for a run of one process on such a cluster."
    )
