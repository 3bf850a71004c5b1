"""Place learner ranks and generators on the nodes of a Ray cluster. Other files in this folder call these actors."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from grpo import config
from grpo.cluster.claim import Plan
from grpo.cluster.generator_actor import CONCURRENCY_GROUPS, GeneratorActor
from grpo.cluster.generator_group import GeneratorGroup
from grpo.cluster.learner_actor import CONCURRENCY_GROUPS as LEARNER_GROUPS
from grpo.cluster.learner_actor import LearnerActor
from grpo.cluster.learner_group import LearnerGroup
from grpo.cluster.replica import GeneratorLimits
from grpo.cluster.session import ON_LOOPBACK, choose_device, connect, generator_environment, learner_environment
from grpo.cluster.waiting import wait_for
from grpo.config.cluster import Device
from grpo.generator.setup import GeneratorSetup
from grpo.learner.setup import LearnerSetup
from grpo.report.logs import present_place

logger = logging.getLogger(__name__)


class Cluster:
    """Ray, with the actors of one job; leaving the `with` block ends all actors."""

    def __init__(self, settings: config.ClusterConfig, plan: Plan) -> None:
        """Connect to Ray, or start Ray on this machine's loopback interface; reserve the resources that the plan needs.

        Raises:
            ValueError: the cluster does not have the GPUs or CPUs that the plan needs.
            TimeoutError: other jobs use these GPUs or CPUs.
        """
        self._settings = settings
        self._plan = plan
        self._actors: list[Any] = []
        # Phases run one after the other, so all their threads together may be more than the cores. Ray only counts CPUs
        # and does not bind threads to cores.
        needed = sum(bundle["CPU"] for bundle in plan.bundles("cpu"))
        self._owns_ray = connect(settings, max(int(needed), os.cpu_count() or 1))
        self.device: Device = choose_device(settings, samples=plan.generators > 0)
        self._group = self._reserve()

    @property
    def nodes(self) -> int:
        """Number of running nodes."""
        return sum(1 for node in ray.nodes() if node["Alive"])

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *exception: object) -> None:
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        remove_placement_group(self._group)
        if self._owns_ray:
            ray.shutdown()

    def start_learner(self, setups: Sequence[LearnerSetup]) -> Callable[[], LearnerGroup]:
        """Start the ranks; call the returned function to wait until all ranks have connected to each other."""
        environment = learner_environment(self.device, self._plan.learner_threads)
        if self._settings.address is None:
            environment |= ON_LOOPBACK
        logs = present_place()
        actors = [
            self._place(
                LearnerActor, bundle, self._plan.learner_threads, 1.0, environment, concurrency_groups=LEARNER_GROUPS
            ).remote(setup, logs)
            for bundle, setup in enumerate(setups)
        ]
        self._actors += actors
        deadline_s = self._settings.start_deadline_s
        (address,) = wait_for([actors[0].address.remote()], deadline_s, "the first learner rank's address")
        starting = [actor.start.remote(*address) for actor in actors]

        def join() -> LearnerGroup:
            what = f"{len(actors)} learner ranks to start and connect at {address[0]}:{address[1]}"
            for rank, log in enumerate(wait_for(starting, deadline_s, what)):
                logger.info("learner rank %d is up; its log: %s", rank, log)
            learner = setups[0].learner
            together = learner.zero_stage == 3 or learner.sequence_parallel > 1
            return LearnerGroup(actors, self._settings.step_deadline_s, learner.sequence_parallel, together=together)

        return join

    def start_generators(
        self,
        setups: Sequence[GeneratorSetup],
        group_deadline_s: float,
        update_deadline_s: float,
        tell: Callable[[str], object] = print,
    ) -> Callable[[], GeneratorGroup]:
        """Start the replicas; call the returned function to wait until all engines are up.

        Args:
            setups: setup of each replica.
            group_deadline_s: longest wait for the next finished group.
            update_deadline_s: longest wait for one part of a weight update.
            tell: function that gets a line about each restart.
        """
        first = 0 if self._plan.share_gpus else self._plan.learner_ranks

        def place(index: int, after: Any, updated: bool) -> Any:
            setup = setups[index]
            if updated and setup.base_path:
                setup = replace(setup, policy_path=setup.base_path)
            actor = self._place(
                GeneratorActor,
                first + index,
                self._plan.generator_threads,
                float(self._plan.generator_devices),
                generator_environment(setup),
                concurrency_groups=CONCURRENCY_GROUPS,
            ).remote(setup, after, present_place())
            self._actors.append(actor)
            return actor

        settings = setups[0].generator
        group = GeneratorGroup(
            place,
            len(setups),
            GeneratorLimits(
                start_s=self._settings.start_deadline_s,
                group_s=group_deadline_s,
                update_s=update_deadline_s,
                hang_s=settings.hang_deadline_s,
                max_restarts=settings.max_restarts,
            ),
            tell,
        )

        def join() -> GeneratorGroup:
            group.wait_started()
            return group

        return join

    def _reserve(self) -> PlacementGroup:
        have, plan = ray.cluster_resources(), self._plan
        if missing := plan.missing(self.device, have):
            raise ValueError(
                f"{missing}; lower learner.ranks, generator.replicas, generator.tensor_parallel_size, "
                "generator.pipeline_parallel_size or the numbers of threads, or set share_gpus"
            )
        bundles = plan.bundles(self.device, have)
        group: PlacementGroup = placement_group(bundles, strategy="PACK")
        if not group.wait(self._settings.start_deadline_s):
            remove_placement_group(group)
            raise TimeoutError(
                f"the cluster did not grant {bundles} within cluster.start_deadline_s="
                f"{self._settings.start_deadline_s:.0f}; other jobs may hold its devices (see `ray status`)"
            )
        return group

    def _place(
        self, cls: type, bundle: int, cpus: float, devices: float, environment: dict[str, str], **fixed: Any
    ) -> Any:
        gpus = 0.0 if self.device == "cpu" else devices * (0.5 if self._plan.share_gpus else 1.0)
        # Ray accepts the options in `fixed` for the class only, not for each actor.
        remote: Any = ray.remote(**fixed)(cls) if fixed else ray.remote(cls)
        return remote.options(
            num_cpus=cpus,
            num_gpus=gpus,
            runtime_env={"env_vars": environment},
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle),
        )


def wait_for_nodes(settings: config.ClusterConfig, plan: Plan) -> None:
    """Wait until the cluster has the job's resources again, after a loss.

    Raises:
        TimeoutError: a resource is missing after `cluster.start_deadline_s`; the message names it.
    """
    owns_ray = connect(settings, os.cpu_count() or 1)
    until = time.monotonic() + settings.start_deadline_s
    try:
        while True:
            have = ray.cluster_resources()
            missing = plan.missing(choose_device(settings, samples=plan.generators > 0), have)
            if not missing:
                return
            if time.monotonic() > until:
                nodes = [str(node["NodeName"]) for node in ray.nodes() if node["Alive"]]
                raise TimeoutError(
                    f"{missing} after cluster.start_deadline_s={settings.start_deadline_s:.0f}; the cluster's nodes "
                    f"are {', '.join(sorted(nodes))}: bring the lost node back, then continue with resume=auto"
                )
            time.sleep(1.0)
    finally:
        if owns_ray:
            ray.shutdown()
