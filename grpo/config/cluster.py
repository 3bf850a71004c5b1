"""Sections of the configuration for Ray, devices, and the watchdog."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from grpo.config.generator import RolloutConfig, WeightSyncConfig
from grpo.config.inputs import PolicyConfig
from grpo.config.learner import LearnerConfig
from grpo.config.section import Positive, Seconds, Section


class ClusterConfig(Section):
    """Ray and devices."""

    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Device of learner and generators; `auto` takes GPUs if there are some and this environment has the GPU builds of
    torch and vLLM (`make install-gpu`)."""
    share_gpus: bool = False
    """Learner rank i and generator i share one GPU. Lower generator.gpu_memory_share to what the learner does not
    need."""
    sleep: bool = False
    """With share_gpus, learner and generators take turns in the GPU's memory. Optimizer states are in the host's memory
    while completions are sampled; the generator's weights and cache are there while the policy is updated."""
    address: str | None = None
    """Address of a running Ray cluster; `auto` finds a local cluster. None starts a cluster for this run, on
    loopback."""
    check_memory: Literal["refuse", "warn"] = "refuse"
    """Fate of a job that needs more memory than this machine has, by the plan that `grpo check` prints. `refuse`: it
    does not start. `warn`: `grpo check` warns, and the job starts. Of a running cluster (`address`) nothing is known
    before."""
    start_deadline_s: Seconds = 900.0
    """Longest wait until all actors are up, in seconds."""
    step_deadline_s: Seconds = 1800.0
    """Longest wait for one learner step or checkpoint, in seconds."""
    max_restarts: Annotated[int, Field(ge=0)] = 20
    """Number of times that a run continues by itself from its newest checkpoint after a process or a node died. With 0
    it stops."""
    max_fruitless_restarts: Positive = 3
    """Number of restarts in a row without a newer checkpoint, after which the run stops."""

    def longest_wait_s(self, *others: float) -> float:
        """Return a limit for torch's collectives that is a minute above all deadlines of this section and `others`.

        NCCL's own limit is 10 minutes, after which it ends the process. So it would end ranks that wait for a slow
        rank, before the deadline that the user set.
        """
        return max(self.start_deadline_s, self.step_deadline_s, *others) + 60.0


class WatchdogConfig(Section):
    """The watchdog notices that nothing moves: no finished group, no learner step, no part of a weight push."""

    stall_s: Seconds = 900.0
    """Seconds without progress, after which the Python stacks of driver and actors are written to `stalls/`. Choose a
    value above the longest single wait of a healthy run: a learner step, a checkpoint, the start of the engines."""
    action: Literal["warn", "stop", "restart"] = "warn"
    """Action after that: `warn` prints a line, `stop` ends the run, `restart` continues from the newest checkpoint."""


Device = Literal["cpu", "cuda"]


def sleep_problems(
    cluster: ClusterConfig, rollout: RolloutConfig, learner: LearnerConfig, policy: PolicyConfig
) -> list[str]:
    """Find settings with which the generators cannot sleep while the learner trains, each with its remedy."""
    if not cluster.sleep:
        return []
    if rollout.max_policy_lag:
        return [
            f"rollout.max_policy_lag={rollout.max_policy_lag} samples during training, but with cluster.sleep "
            "the generators sleep during training; remove one of the two"
        ]
    if not cluster.share_gpus:
        return ["cluster.sleep makes room on a shared GPU, and needs cluster.share_gpus; set it, or remove sleep"]
    stage, dtype = learner.zero_stage, policy.dtype
    # In bfloat16, DeepSpeed has an optimizer of its own for stage 1.
    movable = stage == 2 or (stage == 1 and dtype == "float32")
    if not movable and learner.offload == "none":
        return [
            f"cluster.sleep: DeepSpeed cannot move the optimizer states of learner.zero_stage={stage} with "
            f"policy.dtype={dtype}; use learner.offload=optimizer, which keeps them in the host's memory, or "
            "zero_stage=2"
        ]
    return []


def transport_problems(weight_sync: WeightSyncConfig, cluster: ClusterConfig) -> list[str]:
    """Find transports of the weights that the devices do not have, each with its remedy."""
    transport, shared = weight_sync.transport, cluster.share_gpus
    if weight_sync.sparse and (shared or transport in ("nccl", "ipc")):
        where = f"weight_sync.transport={transport}" if transport in ("nccl", "ipc") else "cluster.share_gpus"
        reason = (
            "is for GPUs with a fast network between them and sends whole tensors"
            if transport == "nccl"
            else "copies no weights between processes, so there is nothing to save"
        )
        remedy = "use gloo or object_store with separate GPUs for learner and generators"
        return [f"weight_sync.sparse: {where} {reason}; {remedy}, or remove weight_sync.sparse"]
    if cluster.device == "cpu" and (problem := weight_sync.problem_on_cpu()):
        return [problem]
    if transport == "ipc" and not shared:
        return [
            "weight_sync.transport=ipc needs a GPU that learner and generator share, but cluster.share_gpus is "
            "not set; set it, or use nccl or auto"
        ]
    if transport == "nccl" and shared:
        return [
            "weight_sync.transport=nccl needs separate GPUs for learner and generator, but cluster.share_gpus is "
            "set; use ipc or auto, or remove share_gpus"
        ]
    return []
