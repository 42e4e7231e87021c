"""One of two processes, for test_damage: the second finds checkpoints damaged that the first reads.

Argument: the work directory. The second process has a view of its own of it.
"""

import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from big_vlp import evaluate
from big_vlp.parallel import cluster, meshes, processes, watchdog
from big_vlp.storage import agreement
from big_vlp.storage.checkpoint import CheckpointError, Checkpoints
from input_pipeline.files.outages import Unreachable

cluster.connect_processes()
mesh = meshes.make_mesh()
split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
whole = meshes.replicated(mesh)
make = jax.jit(
    lambda step: {"w": jnp.arange(8.0) + step, "n": step},
    out_shardings={"w": split, "n": whole},
)
wanted = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), make(0)
)
workdir = Path(sys.argv[1])
checkpoints = Checkpoints(workdir, keep_latest=9)
for step in (1, 2, 3):
    checkpoints.save(step, {"model": make(step)}, {})
checkpoints.wait()
checkpoints.close()

view = workdir
if jax.process_index() == 1:
    view = workdir.parent / "view"
    (view / "checkpoints").mkdir(parents=True)
    for step in (1, 2, 3):
        shutil.copytree(workdir / "checkpoints" / str(step), view / "checkpoints" / str(step))
    (view / "checkpoints" / "1" / "model" / "manifest.ocdbt").unlink()
    (view / "checkpoints" / "3" / "meta" / "metadata").write_bytes(b"")


def attempt(on_damage):
    try:
        latest = Checkpoints(view, on_damage=on_damage, keep_latest=9)
        step, state = latest.restore_latest({"model": wanted, "frozen": {}}, print)
        print(f"{on_damage}: {step}, {float(state['model']['w'].sum())}")
    except CheckpointError as error:
        print(f"{on_damage}: {error}")


def run(i):
    reader.restore(i, {"model": wanted})
    print("read", i)
    (workdir / "evaluate" / f"{i}.json").write_text("{}")


def refuse():
    raise CheckpointError("not now") from Unreachable("503")


def outage():
    if jax.process_index() == 1:
        refuse()


for number in range(3):
    own = {"number": number, "process": jax.process_index()}
    assert processes.exchange(own) == [{"number": number, "process": i} for i in range(2)]
assert processes.from_first(lambda: [jax.process_index(), None], CheckpointError) == [0, None]
try:
    processes.from_first(refuse, CheckpointError)
except CheckpointError as error:
    print(f"refused: {error}, {processes.is_agreed(error)}")
    assert processes.status_of(error) == watchdog.STATUS  # of all, where storage is away
try:
    agreement.together(outage)
except CheckpointError as error:
    assert processes.status_of(error) == watchdog.STATUS
else:
    raise AssertionError("an outage of one is one of all")

attempt("stop")
reader = Checkpoints(view, read_only=True)
(workdir / "evaluate").mkdir(exist_ok=True)
evaluate._follow(reader, 2, workdir / "evaluate", run)
attempt("previous")
print(sorted(path.name for path in (workdir / "checkpoints").iterdir()))
