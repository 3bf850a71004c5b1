"""Rules of a training job about devices: generators that sleep on a shared GPU, and the transport of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grpo.config.jobs import TrainConfig


def sleep_problems(config: TrainConfig) -> list[str]:
    """Find settings with which the generators cannot sleep while the learner trains, each with its remedy."""
    if not config.cluster.sleep:
        return []
    if config.rollout.max_policy_lag:
        return [
            f"rollout.max_policy_lag={config.rollout.max_policy_lag} samples during training, but with cluster.sleep "
            "the generators sleep during training; remove one of the two"
        ]
    if not config.cluster.share_gpus:
        return ["cluster.sleep makes room on a shared GPU, and needs cluster.share_gpus; set it, or remove sleep"]
    stage, dtype = config.learner.zero_stage, config.policy.dtype
    # In bfloat16, DeepSpeed has an optimizer of its own for stage 1.
    movable = stage == 2 or (stage == 1 and dtype == "float32")
    if not movable and config.learner.offload == "none":
        return [
            f"cluster.sleep: DeepSpeed cannot move the optimizer states of learner.zero_stage={stage} with "
            f"policy.dtype={dtype}; use learner.offload=optimizer, which keeps them in the host's memory, or "
            "zero_stage=2"
        ]
    return []


def transport_problems(config: TrainConfig) -> list[str]:
    """Find transports of the weights that the devices do not have, each with its remedy."""
    transport, shared = config.weight_sync.transport, config.cluster.share_gpus
    if config.weight_sync.sparse and (shared or transport in ("nccl", "ipc")):
        where = f"weight_sync.transport={transport}" if transport in ("nccl", "ipc") else "cluster.share_gpus"
        reason = (
            "is for GPUs with a fast network between them and sends whole tensors"
            if transport == "nccl"
            else "copies no weights between processes, so there is nothing to save"
        )
        remedy = "use gloo or object_store with separate GPUs for learner and generators"
        return [f"weight_sync.sparse: {where} {reason}; {remedy}, or remove weight_sync.sparse"]
    if config.cluster.device == "cpu" and (problem := config.weight_sync.problem_on_cpu()):
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
