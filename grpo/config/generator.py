"""Sections of the configuration that say how groups are sampled, and how new weights reach those who sample."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from grpo.config.section import Positive, Seconds, Section


class RolloutConfig(Section):
    """How groups are sampled."""

    prompts_per_step: Positive = 32
    group_size: Positive = 8
    """Completions for each prompt."""
    max_prompt_tokens: Positive = 256
    """Longer prompts are dropped, and counted, when the data is read."""
    max_completion_tokens: Positive = 256
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """There is no top-p or top-k: the learner could not reproduce the probabilities of a cut distribution."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion."""
    deadline_s: Seconds = 1800.0
    """The run stops when no group at all has finished for so long."""
    max_policy_lag: Annotated[int, Field(ge=0)] = 0
    """Versions of the policy by which sampling may run ahead of training (docs/async.md); 0 samples, then trains."""
    partial: Literal["continue", "restart"] = "continue"
    """What happens to completions that are under way when new weights come: they go on under them, each token stamped
    with the version that sampled it, or begin again."""


class GeneratorConfig(Section):
    """vLLM: how completions are sampled."""

    replicas: Positive = 1
    tensor_parallel_size: Positive = 1
    """Devices over which each matrix of a replica is cut."""
    pipeline_parallel_size: Positive = 1
    """Stages into which the layers of a replica are divided, each on `tensor_parallel_size` devices of one node."""
    engine: Literal["auto", "in_actor", "own_process"] = "auto"
    """Where the engine runs: `auto` is in processes of its own on GPU and for several devices, else in the actor."""
    max_sequences: Positive = 256
    """Sequences that one replica samples at a time."""
    gpu_memory_share: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Of a GPU's memory, for weights and key-value cache."""
    cpu_cache_gib: Positive = 1
    """Key-value cache of one replica on CPU."""
    compile: bool = True
    """Compile and capture graphs on GPU; on CPU the model always runs eagerly."""
    threads: Positive = 1
    """CPU threads of each replica."""
    hang_deadline_s: Seconds = 300.0
    """A replica whose engine does not finish a step for so long, while it has work, is restarted."""
    max_restarts: Annotated[int, Field(ge=0)] = 10
    """Restarts of replicas, all together, that a run survives."""

    @property
    def devices(self) -> int:
        """Devices of one replica, and processes of its engine that hold weights."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    def in_own_process(self, device: Literal["cpu", "cuda"]) -> bool:
        """Whether the engine runs in processes of its own."""
        return {"auto": device == "cuda" or self.devices > 1, "in_actor": False, "own_process": True}[self.engine]

    def problems(self) -> list[str]:
        """Choices that cannot go together, each with its remedy."""
        if self.engine != "in_actor" or self.devices == 1:
            return []
        return [
            "generator.engine=in_actor is one process, and generator.tensor_parallel_size="
            f"{self.tensor_parallel_size} x pipeline_parallel_size={self.pipeline_parallel_size} needs {self.devices}; "
            "use engine=auto"
        ]


ChosenTransport = Literal["object_store", "gloo", "nccl", "ipc"]


class WeightSyncConfig(Section):
    """Carrying new weights to the generators, and proving that they arrived."""

    transport: Literal["auto", "object_store", "gloo", "nccl", "ipc"] = "auto"
    """How the bytes travel: as files through Ray's object store, over TCP (gloo), between GPUs (nccl), or not at all,
    as both use the same GPU (ipc). `auto`: on GPUs ipc with cluster.share_gpus, else nccl; without GPUs object_store
    on one node, gloo on several."""
    sparse: bool = False
    """Send only what changed since the last push, with object_store or gloo, which `auto` then chooses from: for
    bfloat16 over a slow network. Learner and generators keep a copy of the policy each (docs/cluster.md)."""
    bucket_mib: Positive = 512
    """Memory of one piece of a push; a layer's attention or MLP that is larger is a piece by itself."""
    probe_sequences: Positive = 2
    probe_tokens: Annotated[int, Field(ge=2)] = 64
    """Length to which each probe sequence is cut."""
    tolerance: Annotated[float, Field(gt=0)] | None = None
    """Mean difference of log-probabilities that passes; by default 2e-4 in float32 and 0.05 in bfloat16."""
    deadline_s: Seconds = 600.0
    """Longest wait for any part of a push: for a generator to come, or for one piece to be sent or loaded."""

    def problem_on_cpu(self) -> str | None:
        """What is wrong with the transport where the run computes on CPUs, with the remedy."""
        if self.transport not in ("nccl", "ipc"):
            return None
        return (
            f"weight_sync.transport={self.transport} carries weights between GPUs, and this run computes on CPUs "
            "(cluster.device); use gloo, object_store or auto"
        )

    def choose(self, device: Literal["cpu", "cuda"], nodes: int, *, share_gpus: bool) -> ChosenTransport:
        """The transport of a run.

        Args:
            device: what learner and generators compute on.
            nodes: of the cluster.
            share_gpus: a learner rank and a generator have one GPU together.

        Raises:
            ValueError: the chosen one needs a GPU and there is none.
        """
        if device == "cpu" and (problem := self.problem_on_cpu()):
            raise ValueError(problem)
        if self.transport != "auto":
            return self.transport
        if device == "cuda" and not self.sparse:
            return "ipc" if share_gpus else "nccl"
        return "object_store" if nodes == 1 else "gloo"
