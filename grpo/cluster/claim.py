"""Compute from a job's config the devices and threads of its actors. Nothing is reserved yet."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from grpo import config
from grpo.config.cluster import Device
from grpo.config.launch import GENERATOR_NODE, LEARNER_NODE, NodesConfig


def plan_of(settings: config.JobConfig) -> Plan:
    """Return the resources that a job's actors need."""
    learner = settings.learner
    if isinstance(settings, config.FineTuningConfig):
        return Plan(learner.ranks, learner.threads)
    generator = settings.generator
    return Plan(
        learner.ranks,
        learner.threads,
        generator.replicas,
        generator.devices,
        generator.threads,
        settings.cluster.share_gpus,
    )


def idle_gpus(settings: config.JobConfig) -> list[str]:
    """Return a warning for each kind of nodes in the section `launch` that has GPUs which the job would not use."""
    launch, plan = settings.launch, plan_of(settings)
    if launch is None:
        return []
    learner, sampling = ("learner.ranks", plan.learner_ranks), plan.gpus - plan.learner_ranks
    replicas = ("generator.replicas", sampling)
    kinds: list[tuple[str, NodesConfig, list[tuple[str, int]]]]
    if launch.generators is None:
        kinds = [("launch", launch, [learner, replicas] if sampling else [learner])]
    else:
        kinds = [("launch", launch, [learner]), ("launch.generators", launch.generators, [replicas])]
    warnings = []
    for section, nodes, users in kinds:
        booked = nodes.nodes * nodes.gpus_per_node
        used = 0 if settings.cluster.device == "cpu" else sum(count for _, count in users)
        if used >= booked:
            continue
        if settings.cluster.device == "cpu":
            uses = "cluster.device=cpu uses none of them"
        else:
            counts = " + ".join(f"{count} for {name}" for name, count in users)
            uses = f"the job uses {used}: {counts}"
        keys = " or ".join(name for name, _ in users)
        warnings.append(
            f"{section} books {booked} GPUs ({section}.nodes={nodes.nodes} x {section}.gpus_per_node="
            f"{nodes.gpus_per_node}), but {uses}; {booked - used} stay idle. Raise {keys}, or "
            f"lower {section}.nodes or {section}.gpus_per_node"
        )
    return warnings


@dataclass(frozen=True, slots=True)
class Plan:
    """The resources that a job needs from a cluster.

    Attributes:
        learner_ranks: number of learner processes; each has one device.
        learner_threads: CPU threads of each learner process.
        generators: number of generator replicas.
        generator_devices: devices of each replica.
        generator_threads: CPU threads of each replica.
        share_gpus: whether learner rank i and generator i use the same GPU.
    """

    learner_ranks: int
    learner_threads: int
    generators: int = 0
    generator_devices: int = 0
    generator_threads: int = 1
    share_gpus: bool = False

    @property
    def gpus(self) -> int:
        """Number of GPUs that the job needs, if its devices are GPUs."""
        sampling = 0 if self.share_gpus else self.generators * self.generator_devices
        return self.learner_ranks + sampling

    def bundles(self, device: Device, kept: Collection[str] = ()) -> list[dict[str, float]]:
        """Ray resource bundles: learner ranks first, then generators if they have separate devices.

        Args:
            device: device type of the actors.
            kept: resources of the cluster. If `LEARNER_NODE` or `GENERATOR_NODE` is among them, learner ranks or
                generators run only on nodes with this resource.
        """
        gpu = device == "cuda"
        learner = {
            "CPU": float(self.learner_threads),
            **({"GPU": 1.0} if gpu else {}),
            **({LEARNER_NODE: 1.0} if LEARNER_NODE in kept else {}),
        }
        generator = {
            "CPU": float(self.generator_threads),
            **({"GPU": float(self.generator_devices)} if gpu and not self.share_gpus else {}),
            **({GENERATOR_NODE: 1.0} if GENERATOR_NODE in kept else {}),
        }
        if self.share_gpus:
            shared = {**learner, "CPU": learner["CPU"] + generator["CPU"]}
            return [shared] * self.learner_ranks
        return [learner] * self.learner_ranks + [generator] * self.generators

    def missing(self, device: Device, have: Mapping[str, float]) -> str | None:
        """Describe the first resource that a cluster with the resources `have` lacks; None if nothing is missing."""
        bundles = self.bundles(device, have)
        for resource in ("GPU", "CPU"):
            needed = sum(bundle.get(resource, 0.0) for bundle in bundles)
            if needed > have.get(resource, 0.0):
                return (
                    f"the job needs {needed:.0f} {resource}s ({self.learner_ranks} learner ranks, {self.generators} "
                    f"generators) and the cluster has {have.get(resource, 0.0):.0f}"
                )
        return None
