"""Place and call the probes of `grpo check --cluster` on every node, through Ray."""

from __future__ import annotations

import os
from typing import Any, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from grpo import config
from grpo.cluster.preflight.probes import NodeProbes, ProbeOutcome, Wait, generator_setup, new_weights, probe_all
from grpo.cluster.session import choose_device, connect, generator_environment
from grpo.cluster.waiting import free_address, wait_for


class NodeActor:
    """The probes of `grpo.cluster.preflight.probes` on one node."""

    def __init__(self, name: str, actor: Any, deadline_s: float) -> None:
        """Use an actor on the node."""
        self.name = name
        self._actor = actor
        self._deadline_s = deadline_s

    def all_reduce(self, address: str, port: int, rank: int, nodes: int, deadline_s: float) -> Wait:
        """Start to sum a tensor over all nodes, which connect through an address."""
        return self._wait("the all-reduce", self._actor.all_reduce.remote(address, port, rank, nodes, deadline_s))

    def generation(self) -> Wait:
        """Start vLLM, and start to sample a completion."""
        return self._wait("the generation", self._actor.generation.remote())

    def weight_push(self, bucket: Any) -> Wait:
        """Start to give vLLM new weights."""
        return self._wait("the weight push", self._actor.weight_push.remote(bucket))

    def sandbox(self) -> Wait:
        """Start a program in the sandbox."""
        return self._wait("the sandbox", self._actor.sandbox.remote())

    def _wait(self, what: str, reference: Any) -> Wait:
        return lambda: cast(ProbeOutcome, wait_for([reference], self._deadline_s, f"{what} on {self.name}")[0])

    def address(self) -> tuple[str, int]:
        """The node's address, and a free port of the node."""
        (node_address,) = wait_for([self._actor.address.remote()], self._deadline_s, f"the address of {self.name}")
        return cast(tuple[str, int], node_address)


class _ProbesActor(NodeProbes):
    def address(self) -> tuple[str, int]:
        return free_address()


def preflight(settings: config.ClusterConfig, deadline_s: float) -> dict[str, dict[str, ProbeOutcome]]:
    """Test on every node the features that a job needs; return the outcomes by node and by probe.

    Raises:
        ValueError: the settings require a GPU and the cluster has no GPU.
        TimeoutError: the first node's process did not start.
    """
    owns_ray = connect(settings, os.cpu_count() or 1)
    device = choose_device(settings)
    actors: list[Any] = []
    nodes: list[NodeActor] = []
    try:
        for node in sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: str(node["NodeName"])):
            # On a GPU cluster, a job starts no actor on a node without GPUs, so such a node is not tested.
            if device == "cuda" and not node["Resources"].get("GPU"):
                continue
            environment = generator_environment(generator_setup("", device))
            actor = ray.remote(_ProbesActor).options(
                num_cpus=1,
                num_gpus=1.0 if device == "cuda" else 0.0,
                runtime_env={"env_vars": environment},
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            )
            actors.append(actor.remote(device))
            name = f"{node['NodeName']} ({len(nodes)})"
            nodes.append(NodeActor(name, actors[-1], deadline_s))
        return probe_all(nodes, ray.put(new_weights()), deadline_s)
    finally:
        for handle in actors:
            ray.kill(handle, no_restart=True)
        if owns_ray:
            ray.shutdown()
