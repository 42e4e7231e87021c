"""An experiment's parts for the devices of a mesh, real or described; nothing of it in memory."""

import dataclasses
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from big_vlp import trees
from big_vlp.experiment import ConfigError, Experiment
from big_vlp.parallel import placing
from big_vlp.run.optim import Optimizer
from big_vlp.telemetry.devices import memory_bytes


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is compiled, and for what.

    Attributes:
      method, optimizer, state: as the experiment makes them for the mesh; the state of
        jax.ShapeDtypeStruct.
      memory: bytes that programs can use of each device; None where nobody says it.
      device_kind: what jax calls the devices.
    """

    experiment: Experiment
    mesh: Mesh
    method: Any
    optimizer: Optimizer
    state: dict
    memory: int | None
    device_kind: str

    @classmethod
    def of(cls, experiment: Experiment, mesh: Mesh) -> "Setup":
        """Raises ConfigError as the experiment's parts."""
        method = experiment.make_method()
        optimizer = experiment.make_optimizer(method)
        state = experiment.abstract_state(method, optimizer, mesh)
        device = mesh.devices.flat[0]
        of_device = memory_bytes(device), device.device_kind
        return cls(experiment, mesh, method, optimizer, state, *of_device)

    def weights(self, which: str) -> dict:
        """What evaluators get: the "model" or the "averaged" weights, and the frozen ones."""
        return trees.merge(self.state[which], self.state["frozen"])


def held(tree) -> int:
    """Bytes of a tree of arrays on each device."""
    return sum(map(placing.bytes_per_device, jax.tree.leaves(tree)))


def make_mesh(experiment: Experiment, topology: str | None) -> Mesh:
    """The config's mesh over the devices of its slices, each a TPU topology ("v5e:4x4"), or over
    the local ones.

    Raises:
      ConfigError: libtpu is not installed, or does not know the topology.
    """
    if topology is None:
        return experiment.make_mesh()
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, num_slices=experiment.mesh.get("slices", 1)
        )
    except Exception as error:  # of several types
        raise ConfigError(
            f"Topology {topology!r} cannot be described: {str(error).splitlines()[0]}. It is "
            "written as v5e:4x4, and needs libtpu (pip install libtpu)."
        ) from error
    return experiment.make_mesh(described.devices)
