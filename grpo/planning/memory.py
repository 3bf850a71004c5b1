"""Estimate the memory of a job's parts from its config, and compare it with the memory of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
from rich.table import Table

from grpo import config
from grpo.cluster.device import planned_device, usable_gpus
from grpo.config.algorithm import AlgorithmConfig
from grpo.deferred import deferred
from grpo.policy.adapters import trained_parameters
from grpo.policy.flops import LOGIT_BYTES
from grpo.policy.plain import PlainConfig, stored_parameters
from grpo.policy.recompute import recomputed_layers
from grpo.policy.stored import check_heads, local_or_hub, policy_config

if TYPE_CHECKING:
    import torch
    import transformers
    from transformers import PreTrainedConfig
else:
    torch, transformers = deferred("torch"), deferred("transformers")

GIB = 1 << 30
# Parts of a learner rank's memory that `learner.offload` moves to the host. Each is the first word of a name in
# `learner_bytes`.
OFFLOADED: dict[str, tuple[str, ...]] = {
    "none": (),
    "optimizer": ("optimizer",),
    "parameters": ("weights", "optimizer"),
}


@dataclass(frozen=True, slots=True)
class PolicyShape:
    """A policy's size.

    Attributes:
        parameters: number of parameters.
        trained: number of parameters with gradients and optimizer state: all parameters, or with LoRA only those of the
            adapters. `parameters` does not count the adapters.
        cache_bytes: key-value cache of a token, in bytes.
        activation_bytes: activations of a token that are kept between forward and backward, in bytes.
        vocabulary: number of logits of a token.
    """

    parameters: int
    trained: int
    cache_bytes: int
    activation_bytes: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of a machine, in bytes.

    Attributes:
        gpu: memory of the first GPU, in bytes; None if the machine has no GPU.
        host: free host memory, in bytes.
    """

    gpu: int | None
    host: int


def shape_of(policy: config.PolicyConfig, learner: config.LearnerConfig) -> PolicyShape | None:
    """Return the size of the policy; None if its config can be read neither locally nor from the hub.

    Raises:
        ValueError: a target of `learner.lora` names no linear layer of the policy, or `learner.sequence_parallel` does
            not divide the policy's heads.
    """
    shape: PreTrainedConfig | PlainConfig | None
    if policy.new:
        from grpo.policy.new import shape_of as new_shape

        new = policy.new
        characters = len(set(new.alphabet)) + len(new.tags) + 3
        shape = new_shape(new, new.vocabulary if new.tokenizer == "bpe" else characters)
    else:
        shape = policy_config(policy)
        if shape is None:
            return None
    check_heads(shape, learner.sequence_parallel)
    parameters, trained = _counts(policy, learner, shape)
    size = _bytes_of(policy)
    layers, hidden = shape.num_hidden_layers, shape.hidden_size
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    head = getattr(shape, "head_dim", None) or hidden // shape.num_attention_heads
    # Between forward and backward a layer keeps about 34 bytes per hidden unit in half precision (Korthikanti et al.
    # 2022, arXiv:2205.05198, section 4.1, without the attention matrix, which fused attention does not keep). With
    # checkpointing it keeps only its input.
    kept = sum(1 if again else 17 for again in recomputed_layers(layers, learner.gradient_checkpointing))
    return PolicyShape(
        parameters,
        trained,
        2 * layers * heads * head * size,
        kept * hidden * size,
        shape.vocab_size,
    )


def _counts(
    policy: config.PolicyConfig, learner: config.LearnerConfig, shape: PreTrainedConfig | PlainConfig
) -> tuple[int, int]:
    """Return the number of parameters, and the number of trained parameters."""
    if isinstance(shape, PlainConfig):
        if not learner.lora and (stored := stored_parameters(local_or_hub(policy), shape)):
            return stored, stored
        model_shape = transformers.AutoConfig.from_pretrained(local_or_hub(policy))
    else:
        model_shape = shape
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(model_shape)
    return sum(parameter.numel() for parameter in model.parameters()), trained_parameters(model, learner.lora)


def _bytes_of(policy: config.PolicyConfig) -> int:
    return 2 if policy.dtype == "bfloat16" else 4


def learner_bytes(
    shape: PolicyShape, policy: config.PolicyConfig, learner: config.LearnerConfig, algorithm: AlgorithmConfig | None
) -> dict[str, float]:
    """Return the parts of a learner rank's memory, in bytes. ZeRO (arXiv:1910.02054, section 3) shards some parts.

    Args:
        shape: size of the policy.
        policy: settings of the policy; they give its dtype.
        learner: settings of the learner: ranks, sharding and tokens of a microbatch.
        algorithm: settings of the algorithm, which may need a reference policy; None in supervised fine-tuning.
    """
    size = _bytes_of(policy)
    master = 4 if policy.dtype == "bfloat16" else 0
    sharded = {stage: learner.ranks if learner.zero_stage >= stage else 1 for stage in (1, 2, 3)}
    gradients = 1 if learner.reduces_once(policy.dtype) else sharded[2]
    held = shape.parameters + (shape.trained if learner.lora else 0)
    tokens = learner.microbatch_tokens / learner.sequence_parallel
    # `LogprobHead` bounds the logits in memory. In the backward pass it also holds their gradient and probabilities.
    logits = 3 * min(LOGIT_BYTES, 4 * shape.vocabulary * tokens)
    parts = {
        "weights": held * size / sharded[3],
        "gradients": shape.trained * 4 / gradients,
        "optimizer (Adam, float32 weights)": shape.trained * (8 + master) / sharded[1],
        "activations of a microbatch": shape.activation_bytes * tokens,
        "logits": logits,
    }
    if algorithm and algorithm.needs_reference and not learner.lora:
        # The reference policy is never sharded: every rank holds the whole.
        parts["reference policy"] = shape.parameters * size
    return parts


def _split(parts: Mapping[str, float], offload: str) -> tuple[dict[str, float], dict[str, float]]:
    """Return the parts in the device's memory, and the parts in the host's memory."""
    moved = {name for name in parts if name.split()[0] in OFFLOADED[offload]}
    on_device = {name: size for name, size in parts.items() if name not in moved}
    on_host = {name: size for name, size in parts.items() if name in moved}
    return on_device, on_host


def _learner_bytes(
    settings: config.TrainConfig | config.SftConfig, shape: PolicyShape
) -> tuple[dict[str, float], dict[str, float]]:
    algorithm = settings.algorithm if isinstance(settings, config.TrainConfig) else None
    return _split(learner_bytes(shape, settings.policy, settings.learner, algorithm), settings.learner.offload)


def add_memory(table: Table, settings: config.TrainConfig | config.SftConfig, shape: PolicyShape | None) -> Table:
    """Fill `table` with the memory of a learner rank and of a generator.

    Args:
        table: table of two columns; it is also returned.
        settings: settings of a training or fine-tuning job.
        shape: size of the policy; None if it is unknown.
    """
    if shape is None:
        table.add_row("unknown", f"the policy {settings.policy.path!r} is not here yet and the hub does not answer")
        return table
    lora = settings.learner.lora
    adapters = f"; only the {shape.trained:,} of adapters of rank {lora.rank} are trained" if lora else ""
    table.add_row("policy", f"{shape.parameters:,} parameters{adapters}")
    on_device, on_host = _learner_bytes(settings, shape)
    for title, held in (("a learner rank", on_device), ("in the host's memory", on_host)):
        if held:
            total = f"{sum(held.values()) / GIB:.2f} GiB"
            table.add_row(title, f"{total}: " + ", ".join(f"{name} {size / GIB:.2f}" for name, size in held.items()))
    if isinstance(settings, config.TrainConfig):
        cache = settings.generator.max_sequences * settings.max_sequence_tokens * shape.cache_bytes
        table.add_row(
            "a generator",
            f"weights {_generator_weights(settings, shape) / GIB:.2f} GiB a device; key-value cache of "
            f"{settings.generator.max_sequences} longest sequences {cache / GIB:.2f} GiB",
        )
    return table


def _generator_weights(settings: config.TrainConfig, shape: PolicyShape) -> float:
    return shape.parameters * _bytes_of(settings.policy) / settings.generator.devices


def memory_here() -> Memory:
    """Return the memory of this machine."""
    gpu = torch.cuda.get_device_properties(0).total_memory if usable_gpus() else None
    return Memory(gpu, psutil.virtual_memory().available)


def memory_warning(settings: config.TrainConfig | config.SftConfig, shape: PolicyShape, memory: Memory) -> str | None:
    """Return a warning with a remedy if a part of the job does not fit this machine; else None.

    If the job uses a running cluster (`cluster.address`), or GPUs that this machine does not have, there is nothing to
    compare, and the function returns None.
    """
    if settings.cluster.address is not None:
        return None
    on_device, on_host = _learner_bytes(settings, shape)
    learner, host = sum(on_device.values()), sum(on_host.values()) * settings.learner.ranks
    train = settings if isinstance(settings, config.TrainConfig) else None
    if planned_device(settings.cluster, samples=train is not None) == "cpu":
        needed = learner * settings.learner.ranks + host
        if train:
            cache = train.generator.cpu_cache_gib * GIB
            needed += train.generator.replicas * (shape.parameters * _bytes_of(train.policy) + cache)
        if needed <= memory.host:
            return None
        return (
            f"learner and generators need about {needed / GIB:.1f} GiB together, and this machine has "
            f"{memory.host / GIB:.1f} GiB free: lower learner.microbatch_tokens, generator.cpu_cache_gib, "
            "learner.ranks or generator.replicas, or take a smaller policy"
        )
    if memory.gpu is None:
        return None
    share = train.generator.gpu_memory_share * memory.gpu if train else 0.0
    if train and _generator_weights(train, shape) + train.max_sequence_tokens * shape.cache_bytes > share:
        return (
            f"a generator's weights and one longest sequence need more than the {share / GIB:.1f} GiB that "
            f"generator.gpu_memory_share={train.generator.gpu_memory_share:g} leaves of a GPU: raise it, or "
            "generator.tensor_parallel_size or pipeline_parallel_size"
        )
    together = train is not None and train.cluster.share_gpus and not train.cluster.sleep
    needed = learner + (share if together else 0.0)
    if needed > memory.gpu:
        beside = " and its share for the generator" if together else ""
        lower = "generator.gpu_memory_share, " if together else ""
        return (
            f"a learner rank{beside} needs about {needed / GIB:.1f} GiB, and a GPU of this machine has "
            f"{memory.gpu / GIB:.1f} GiB: lower {lower}learner.microbatch_tokens, set learner.gradient_checkpointing, "
            "learner.offload or learner.zero_stage=3 with more ranks, or train adapters (learner.lora)"
        )
    if host > memory.host:
        return (
            f"learner.offload={settings.learner.offload} puts about {host / GIB:.1f} GiB into the host's memory, and "
            f"this machine has {memory.host / GIB:.1f} GiB free: offload less, or use more nodes"
        )
    return None
