"""The Ray room: where learner ranks and generators run, and how the driver talks to them.

Every wait here has a deadline and says what it waits for. The rest of the project knows `LearnerGroup` and
`GeneratorGroup` only, and nothing of Ray.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from grpo import config
from grpo.batching import TrainBatch
from grpo.setups import Device, GeneratorSetup, LearnerSetup
from grpo.types import Completion, Finished, Prompt, Request, SamplingParams

if TYPE_CHECKING:
    import numpy as np


class LearnerActor:
    """A learner rank in a Ray process of its own; the driver never imports DeepSpeed."""

    def __init__(self, setup: LearnerSetup) -> None:
        self._setup = setup

    def address(self) -> tuple[str, int]:
        """This node's address and a port that is free on it, for the ranks to meet at."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def start(self, master_address: str, master_port: int) -> None:
        from grpo.learner import LearnerRank

        self._rank = LearnerRank(self._setup, master_address, master_port)

    def step(self, batch: TrainBatch) -> dict[str, float]:
        return self._rank.step(batch.ranks[self._setup.rank])

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return self._rank.score(sequences)

    def tensor_names(self) -> list[str]:
        return self._rank.tensor_names()

    def export_buckets(self, bucket_bytes: int) -> Iterator[np.ndarray]:
        yield from self._rank.export_buckets(bucket_bytes)

    def save(self, folder: str) -> None:
        self._rank.save(folder)

    def load(self, folder: str) -> None:
        self._rank.load(folder)

    def export(self, folder: str) -> None:
        self._rank.export(folder)


class GeneratorActor:
    """A generator in a Ray process of its own; the driver never imports vLLM."""

    def __init__(self, setup: GeneratorSetup) -> None:
        from grpo.generator import Generator

        self._generator = Generator(setup)

    def ready(self) -> None:
        return None

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Iterator[Finished]:
        yield from self._generator.generate(requests, sampling)

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return self._generator.score(sequences)

    def begin_update(self) -> None:
        self._generator.begin_update()

    def update(self, bucket: np.ndarray) -> list[str]:
        return self._generator.update(bucket)

    def finish_update(self, policy_version: int) -> None:
        self._generator.finish_update(policy_version)


def wait_for(references: Sequence[Any], deadline_s: float, what: str) -> list[Any]:
    """The results of `references`, or an error that says what did not come.

    Raises:
        TimeoutError: they did not all come within `deadline_s`.
        Exception: what an actor raised.
    """
    try:
        return list(ray.get(list(references), timeout=deadline_s))
    except ray.exceptions.GetTimeoutError:
        _, late = ray.wait(list(references), num_returns=len(references), timeout=0)
        raise TimeoutError(f"{len(late)} of {len(references)} did not come within {deadline_s:.0f} s: {what}") from None
    except ray.exceptions.RayTaskError as failure:
        # What the actor raised, not Ray's wrapping of it; the remote traceback stays reachable as the cause.
        raise (failure.cause if isinstance(failure.cause, Exception) else failure) from failure
    except ray.exceptions.RayActorError as failure:
        raise RuntimeError(f"a process died while the run waited for {what}: {failure}") from failure


class LearnerGroup:
    """All learner ranks, called alike."""

    def __init__(self, actors: Sequence[Any], deadline_s: float) -> None:
        """Use actors that have started."""
        self._actors = list(actors)
        self._deadline_s = deadline_s

    @property
    def ranks(self) -> int:
        """Data-parallel ranks."""
        return len(self._actors)

    def step(self, batch: TrainBatch) -> dict[str, float]:
        """One optimizer step on all ranks; the global metrics."""
        shared = ray.put(batch)
        results = wait_for([actor.step.remote(shared) for actor in self._actors], self._deadline_s, "a learner step")
        return dict(results[0])

    def score(self, sequences: Sequence[Sequence[int]]) -> Callable[[], list[list[float]]]:
        """Start scoring tokens under the learner's policy; call the result to wait for it."""
        references = [actor.score.remote(sequences) for actor in self._actors]
        return lambda: list(wait_for(references, self._deadline_s, "scoring the probe in the learner")[0])

    def tensor_names(self) -> list[str]:
        """Every name under which the policy has a tensor."""
        return list(wait_for([self._actors[0].tensor_names.remote()], self._deadline_s, "the tensors' names")[0])

    def export_buckets(self, bucket_bytes: int) -> Iterator[Any]:
        """References to the policy's weights in buckets, as they are gathered."""
        streams = [actor.export_buckets.options(num_returns="streaming").remote(bucket_bytes) for actor in self._actors]
        for reference in streams[0]:
            yield reference
        wait_for([s.completed() for s in streams], self._deadline_s, "gathering the weights from the learner")

    def save(self, folder: str) -> None:
        """Write training state and policy into `folder`, which every rank must be able to reach."""
        wait_for([actor.save.remote(folder) for actor in self._actors], self._deadline_s, "saving a checkpoint")

    def load(self, folder: str) -> None:
        """Go on from what `save` wrote."""
        wait_for([actor.load.remote(folder) for actor in self._actors], self._deadline_s, "loading a checkpoint")

    def export(self, folder: str) -> None:
        """Write the policy alone, in Hugging Face format."""
        wait_for([actor.export.remote(folder) for actor in self._actors], self._deadline_s, "exporting the policy")


class GeneratorGroup:
    """All generator replicas; prompts are dealt out to them in turn."""

    def __init__(self, actors: Sequence[Any], deadline_s: float, update_deadline_s: float) -> None:
        """Use actors that have started.

        Args:
            actors: the replicas.
            deadline_s: longest wait for the next finished group.
            update_deadline_s: longest wait for one part of a weight update.
        """
        self._actors = list(actors)
        self._deadline_s = deadline_s
        self._update_deadline_s = update_deadline_s

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, seeds: Sequence[int]
    ) -> Iterator[tuple[int, tuple[Completion, ...]]]:
        """Sample for each prompt; (index, completions) as groups finish on any replica."""
        requests = [
            Request(i, prompt.token_ids, seed) for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]
        shares = [requests[replica :: len(self._actors)] for replica in range(len(self._actors))]
        running = [
            actor.generate.options(num_returns="streaming").remote(share, sampling)
            for actor, share in zip(self._actors, shares, strict=True)
            if share
        ]
        while running:
            ready, running = ray.wait(running, num_returns=1, timeout=self._deadline_s, fetch_local=False)
            if not ready:
                raise TimeoutError(
                    f"no group finished within rollout.deadline_s={self._deadline_s:.0f} on "
                    f"{len(running)} generators; shorten completions, raise the deadline, or look at the generators' logs"
                )
            for stream in ready:
                try:
                    reference = next(stream)
                except StopIteration:
                    continue
                yield from wait_for([reference], self._deadline_s, "a finished group")[0]
                running.append(stream)

    def score(self, sequences: Sequence[Sequence[int]]) -> Callable[[], list[list[list[float]]]]:
        """Start scoring tokens on every replica; call the result to wait: [replica][sequence][token]."""
        references = [actor.score.remote(sequences) for actor in self._actors]
        return lambda: wait_for(references, self._update_deadline_s, "scoring the probe in the generators")

    def load_weights(self, buckets: Iterable[Any], policy_version: int) -> list[str]:
        """Load all buckets on every replica and stamp them as `policy_version`; the names of the tensors that came."""
        names: list[str] = []
        self._all("begin a weight update", [actor.begin_update.remote() for actor in self._actors])
        for bucket in buckets:
            names += self._all("load a bucket of weights", [actor.update.remote(bucket) for actor in self._actors])[0]
        self._all("finish a weight update", [actor.finish_update.remote(policy_version) for actor in self._actors])
        return names

    def _all(self, what: str, references: Sequence[Any]) -> list[Any]:
        return wait_for(references, self._update_deadline_s, f"{what} on the generators")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job needs of a cluster.

    Attributes:
        learner_ranks: learner processes, one device each.
        learner_threads: CPU threads of each.
        generators: generator replicas.
        generator_devices: devices of each replica.
        generator_threads: CPU threads of each replica.
        share_gpus: learner rank i and generator i use the same GPU.
    """

    learner_ranks: int
    learner_threads: int
    generators: int = 0
    generator_devices: int = 0
    generator_threads: int = 1
    share_gpus: bool = False

    @property
    def gpus(self) -> int:
        """GPUs needed, where devices are GPUs."""
        sampling = 0 if self.share_gpus else self.generators * self.generator_devices
        return self.learner_ranks + sampling

    def bundles(self, device: Device) -> list[dict[str, float]]:
        """Ray resource bundles: learner ranks first, then generators where they have devices of their own."""
        gpu = device == "cuda"
        learner = {"CPU": float(self.learner_threads), **({"GPU": 1.0} if gpu else {})}
        generator = {
            "CPU": float(self.generator_threads),
            **({"GPU": float(self.generator_devices)} if gpu and not self.share_gpus else {}),
        }
        if self.share_gpus:
            shared = {**learner, "CPU": learner["CPU"] + generator["CPU"]}
            return [shared] * self.learner_ranks
        return [learner] * self.learner_ranks + [generator] * self.generators


class Cluster:
    """Ray, with the actors of one job; leaving the `with` block ends them all."""

    def __init__(self, settings: config.Cluster, plan: Plan) -> None:
        """Connect to Ray, or start it on this machine's loopback interface, and reserve what the plan needs.

        Raises:
            ValueError: the cluster does not have the GPUs or CPUs that the plan needs.
            TimeoutError: they are there but in use.
        """
        self._settings = settings
        self._plan = plan
        self._actors: list[Any] = []
        self._group: PlacementGroup | None = None
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            _start_ray(settings, plan)
        self.device: Device = _choose_device(settings.device)
        self._reserve()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        if self._group is not None:
            remove_placement_group(self._group)
        if self._owns_ray:
            ray.shutdown()

    def start_learner(self, setups: Sequence[LearnerSetup]) -> Callable[[], LearnerGroup]:
        """Start the ranks; call the result to wait until all have met."""
        environment = _learner_environment(self.device, self._plan.learner_threads)
        actors = [
            self._place(LearnerActor, bundle, self._plan.learner_threads, 1.0, environment).remote(setup)
            for bundle, setup in enumerate(setups)
        ]
        self._actors += actors
        deadline_s = self._settings.start_deadline_s
        (address,) = wait_for([actors[0].address.remote()], deadline_s, "the first learner rank's address")
        starting = [actor.start.remote(*address) for actor in actors]

        def join() -> LearnerGroup:
            wait_for(
                starting, deadline_s, f"{len(actors)} learner ranks to start and meet at {address[0]}:{address[1]}"
            )
            return LearnerGroup(actors, self._settings.step_deadline_s)

        return join

    def start_generators(
        self, setups: Sequence[GeneratorSetup], group_deadline_s: float, update_deadline_s: float
    ) -> Callable[[], GeneratorGroup]:
        """Start the replicas; call the result to wait until all engines are up."""
        first = 0 if self._plan.share_gpus else self._plan.learner_ranks
        actors = [
            self._place(
                GeneratorActor,
                first + index,
                self._plan.generator_threads,
                float(self._plan.generator_devices),
                _generator_environment(setup),
            ).remote(setup)
            for index, setup in enumerate(setups)
        ]
        self._actors += actors
        starting = [actor.ready.remote() for actor in actors]

        def join() -> GeneratorGroup:
            wait_for(starting, self._settings.start_deadline_s, f"{len(actors)} generators to load the policy")
            return GeneratorGroup(actors, group_deadline_s, update_deadline_s)

        return join

    def _reserve(self) -> None:
        have, plan = ray.cluster_resources(), self._plan
        bundles = plan.bundles(self.device)
        for resource in ("GPU", "CPU"):
            needed = sum(bundle.get(resource, 0.0) for bundle in bundles)
            if needed > have.get(resource, 0.0):
                raise ValueError(
                    f"the job needs {needed:.0f} {resource}s ({plan.learner_ranks} learner ranks, {plan.generators} "
                    f"generators) and the cluster has {have.get(resource, 0.0):.0f}; lower learner.ranks, "
                    "generator.replicas or generator.tensor_parallel_size, or set cluster.share_gpus=true"
                )
        self._group = placement_group(bundles, strategy="PACK")
        if not self._group.wait(self._settings.start_deadline_s):
            raise TimeoutError(
                f"the cluster did not grant {bundles} within cluster.start_deadline_s="
                f"{self._settings.start_deadline_s:.0f}; other jobs may hold its devices (see `ray status`)"
            )

    def _place(self, cls: type, bundle: int, cpus: float, devices: float, environment: dict[str, str]) -> Any:
        gpus = 0.0 if self.device == "cpu" else devices * (0.5 if self._plan.share_gpus else 1.0)
        return ray.remote(cls).options(
            num_cpus=cpus,
            num_gpus=gpus,
            runtime_env={"env_vars": environment},
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle),
        )


def _start_ray(settings: config.Cluster, plan: Plan) -> None:
    # Ray runs its workers at niceness 15, where anything else on the machine would starve the engines.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Worker processes print warnings of their own libraries by the hundred; what matters comes back as an error.
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    common: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": bool(os.environ.get("GRPO_ACTOR_LOGS"))}
    if settings.address:
        ray.init(address=settings.address, **common)
        return
    cpus = sum(bundle["CPU"] for bundle in plan.bundles("cpu"))
    ray.init(
        # Threads of phases that take turns may well outnumber the cores; Ray only counts them.
        num_cpus=max(int(cpus), os.cpu_count() or 1),
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        **common,
    )


def _choose_device(wanted: Literal["auto", "cpu", "gpu"]) -> Device:
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    if wanted == "gpu" and not has_gpus:
        raise ValueError("cluster.device=gpu, but the cluster has no GPU; use cluster.device=auto or cpu")
    return "cuda" if has_gpus and wanted != "cpu" else "cpu"


def _common_environment(threads: int) -> dict[str, str]:
    return {
        "OMP_NUM_THREADS": str(threads),
        # Threads that wait must sleep: spinning ones starve the very thread they wait for as soon as anything else
        # wants a core (on two busy cores a learner step of 0.6 s took 38 s).
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _learner_environment(device: Device, threads: int) -> dict[str, str]:
    common = _common_environment(threads)
    return {**common, "DS_ACCELERATOR": "cpu"} if device == "cpu" else common


def _generator_environment(setup: GeneratorSetup) -> dict[str, str]:
    own_process = {"auto": setup.device == "cuda", "in_actor": False, "own_process": True}[setup.generator.engine]
    environment = {
        **_common_environment(setup.generator.threads),
        "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(own_process)),
        "VLLM_LOGGING_LEVEL": "WARNING",
        # A trainer tells nobody what it runs.
        "VLLM_NO_USAGE_STATS": "1",
    }
    if setup.device == "cpu":
        environment |= {
            "VLLM_CPU_KVCACHE_SPACE": str(setup.generator.cpu_cache_gib),
            # Several processes share few cores: binding each to the same first core would starve them.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # The model runs eagerly; compiling its helper functions would add 20 s to the first generation.
            "TORCHDYNAMO_DISABLE": "1",
        }
    return environment
