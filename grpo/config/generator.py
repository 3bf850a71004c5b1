"""Sections of the configuration for sampling, and for the transport of new weights to the generators."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from grpo.config.section import Positive, Seconds, Section


class RolloutConfig(Section):
    """How groups are sampled."""

    prompts_per_step: Positive = 32
    """Groups on which one step trains."""
    group_size: Positive = 8
    """Completions for each prompt."""
    max_prompt_tokens: Positive = 256
    """Longest prompt, in tokens. Longer prompts are dropped, and counted, when the data is read."""
    max_completion_tokens: Positive = 256
    """Longest completion, in tokens."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling temperature. There is no top-p or top-k, because the learner cannot reproduce the probabilities of a cut
    distribution."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion."""
    deadline_s: Seconds = 1800.0
    """Seconds without a finished group, after which the run stops."""
    max_policy_lag: Annotated[int, Field(ge=0)] = 0
    """Number of policy versions by which sampling may run ahead of training (docs/async.md). 0 samples, then trains."""
    partial: Literal["continue", "restart"] = "continue"
    """Fate of completions under way when new weights arrive. `continue`: they continue under the new weights, and each
    token is stamped with the version that sampled it. `restart`: they begin again."""


class GeneratorConfig(Section):
    """vLLM: how completions are sampled."""

    replicas: Positive = 1
    """Number of vLLM engines, each with a whole policy."""
    tensor_parallel_size: Positive = 1
    """Devices over which each matrix of a replica is cut."""
    pipeline_parallel_size: Positive = 1
    """Stages into which the layers of a replica are divided, each on `tensor_parallel_size` devices of one node."""
    engine: Literal["auto", "in_actor", "own_process"] = "auto"
    """Place of the engine. `auto`: on GPUs and for several devices in separate processes, otherwise in the actor."""
    max_sequences: Positive = 256
    """Number of sequences that one replica samples at a time."""
    gpu_memory_share: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Share of a GPU's memory for weights and key-value cache."""
    cpu_cache_gib: Positive = 1
    """GiB of key-value cache of one replica on a CPU."""
    compile: bool = True
    """Compile the model and capture graphs on GPUs. On a CPU the model always runs eagerly."""
    threads: Positive = 1
    """CPU threads of each replica."""
    hang_deadline_s: Seconds = 300.0
    """Seconds in which an engine with work must finish a step. Otherwise its replica is restarted."""
    max_restarts: Annotated[int, Field(ge=0)] = 10
    """Number of restarts, of all replicas together, that a run survives."""

    @property
    def devices(self) -> int:
        """The number of devices of a replica, and of engine processes that hold weights."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    def in_own_process(self, device: Literal["cpu", "cuda"]) -> bool:
        """Whether the engine runs in separate processes."""
        return {"auto": device == "cuda" or self.devices > 1, "in_actor": False, "own_process": True}[self.engine]

    def problems(self) -> list[str]:
        """Find settings that exclude each other, each with its remedy."""
        if self.engine != "in_actor" or self.devices == 1:
            return []
        return [
            "generator.engine=in_actor is one process, but generator.tensor_parallel_size="
            f"{self.tensor_parallel_size} x pipeline_parallel_size={self.pipeline_parallel_size} needs {self.devices}; "
            "use engine=auto"
        ]


ChosenTransport = Literal["object_store", "gloo", "nccl", "ipc"]


class WeightSyncConfig(Section):
    """How new weights travel to the generators, and how their arrival is proven."""

    transport: Literal["auto", "object_store", "gloo", "nccl", "ipc"] = "auto"
    """Way of the bytes. `object_store`: as files through Ray's object store. `gloo`: over TCP. `nccl`: between GPUs.
    `ipc`: not at all, because learner and generator share a GPU. `auto` takes ipc with cluster.share_gpus, otherwise
    nccl on GPUs; without GPUs object_store on one node, gloo on several nodes."""
    sparse: bool = False
    """Send only the elements that changed since the last push: for bfloat16 over a slow network. It needs object_store
    or gloo; `auto` then chooses between them. Learner and generators each keep a copy of the policy
    (docs/cluster.md)."""
    bucket_mib: Positive = 512
    """MiB of one piece of a push. If a layer's attention or MLP is larger, it is a piece by itself."""
    probe_sequences: Positive = 2
    """Number of sequences that the probe scores after a push."""
    probe_tokens: Annotated[int, Field(ge=2)] = 64
    """Length to which each probe sequence is cut, in tokens."""
    tolerance: Annotated[float, Field(gt=0)] | None = None
    """Largest mean difference of log-probabilities that passes the probe. By default 2e-4 in float32 and 0.05 in
    bfloat16, or three times the rounding that the run measures before its first push, if that is more."""
    deadline_s: Seconds = 600.0
    """Longest wait for any part of a push, in seconds: until a generator comes, or until a piece is sent or loaded."""

    def problem_on_cpu(self) -> str | None:
        """The problem of the transport if the run computes on CPUs, with its remedy; or None."""
        if self.transport not in ("nccl", "ipc"):
            return None
        return (
            f"weight_sync.transport={self.transport} carries weights between GPUs, but this run computes on CPUs "
            "(cluster.device); use gloo, object_store or auto"
        )

    def choose(self, device: Literal["cpu", "cuda"], nodes: int, *, share_gpus: bool) -> ChosenTransport:
        """The transport of a run.

        Args:
            device: device of learner and generators.
            nodes: number of nodes in the cluster.
            share_gpus: whether a learner rank and a generator share a GPU.

        Raises:
            ValueError: the transport needs a GPU and there is none.
        """
        if device == "cpu" and (problem := self.problem_on_cpu()):
            raise ValueError(problem)
        if self.transport != "auto":
            return self.transport
        if device == "cuda" and not self.sparse:
            return "ipc" if share_gpus else "nccl"
        return "object_store" if nodes == 1 else "gloo"
