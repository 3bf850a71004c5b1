"""What `grpo check --cluster` tries on every node, through Ray: the probes, placed and called."""

from __future__ import annotations

import os
from typing import Any, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from grpo import config
from grpo.cluster.preflight.probes import NodeProbes, ProbeOutcome, Wait, generator_setup, new_weights, probe_all
from grpo.cluster.session import (
    choose_device,
    connect,
    generator_environment,
)
from grpo.cluster.waiting import free_address, wait_for


class NodeActor:
    """The probes of `grpo.cluster.preflight.probes` on one node."""

    def __init__(self, name: str, actor: Any, deadline_s: float) -> None:
        """Use an actor that lives there."""
        self.name = name
        self._actor = actor
        self._deadline_s = deadline_s

    def all_reduce(self, address: str, port: int, rank: int, nodes: int, deadline_s: float) -> Wait:
        """Start to sum a tensor over all nodes, which meet at an address."""
        return self._wait("the all-reduce", self._actor.all_reduce.remote(address, port, rank, nodes, deadline_s))

    def generation(self) -> Wait:
        """Start vLLM and a completion."""
        return self._wait("the generation", self._actor.generation.remote())

    def weight_push(self, bucket: Any) -> Wait:
        """Start to give vLLM other weights."""
        return self._wait("the weight push", self._actor.weight_push.remote(bucket))

    def sandbox(self) -> Wait:
        """Start a program in the sandbox."""
        return self._wait("the sandbox", self._actor.sandbox.remote())

    def _wait(self, what: str, reference: Any) -> Wait:
        return lambda: cast(ProbeOutcome, wait_for([reference], self._deadline_s, f"{what} on {self.name}")[0])

    def address(self) -> tuple[str, int]:
        """The node's address and a free port on it."""
        (found,) = wait_for([self._actor.address.remote()], self._deadline_s, f"the address of {self.name}")
        return cast(tuple[str, int], found)


class _ProbesActor(NodeProbes):
    def address(self) -> tuple[str, int]:
        return free_address()


def preflight(settings: config.ClusterConfig, deadline_s: float) -> dict[str, dict[str, ProbeOutcome]]:
    """Try on every node what a job needs of it: node -> probe -> outcome.

    Raises:
        ValueError: a GPU was asked for and the cluster has none.
        TimeoutError: the first node's process did not start.
    """
    owns_ray = connect(settings, os.cpu_count() or 1)
    device = choose_device(settings.device)
    actors: list[Any] = []
    nodes: list[NodeActor] = []
    try:
        for node in sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: str(node["NodeName"])):
            # A node without GPU in a cluster that has some would only hold the others up: it holds no actor either.
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
