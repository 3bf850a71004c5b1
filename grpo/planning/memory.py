"""What a job's parts will hold in memory, estimated from its config, and whether this machine has as much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import psutil
import torch
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedConfig

from grpo import config
from grpo.cluster.claim import wants_gpus
from grpo.config.algorithm import AlgorithmConfig
from grpo.policy.adapters import trained_parameters
from grpo.policy.logprobs import LOGIT_BYTES
from grpo.policy.new import shape_of as new_shape
from grpo.policy.sequence_parallel import check_heads
from grpo.policy.stored import policy_config

GIB = 1 << 30
# What of a learner rank's memory `learner.offload` moves to the host, by the first word of its name below.
OFFLOADED: dict[str, tuple[str, ...]] = {
    "none": (),
    "optimizer": ("optimizer",),
    "parameters": ("weights", "optimizer"),
}


@dataclass(frozen=True, slots=True)
class PolicyShape:
    """A policy's size.

    Attributes:
        parameters: how many.
        trained: how many have gradients and optimizer state: all, or with LoRA the adapters, which come on top.
        cache_bytes: of the key-value cache for one token.
        activation_bytes: kept for one token between forward and backward.
        vocabulary: logits of one token.
    """

    parameters: int
    trained: int
    cache_bytes: int
    activation_bytes: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Memory:
    """What a machine has, in bytes.

    Attributes:
        gpu: of its first GPU; None where it has none.
        host: of the machine, as far as nobody uses it.
    """

    gpu: int | None
    host: int


def shape_of(policy: config.PolicyConfig, learner: config.LearnerConfig) -> PolicyShape | None:
    """Size of the policy; None where its config can be read neither locally nor from the hub.

    Raises:
        ValueError: a target of `learner.lora` names no linear layer of the policy, or its heads cannot be shared out as
            `learner.sequence_parallel` asks.
    """
    shape: PreTrainedConfig | None
    if policy.new:
        new = policy.new
        characters = len(set(new.alphabet)) + len(new.tags) + 3
        shape = new_shape(new, new.vocabulary if new.tokenizer == "bpe" else characters)
    else:
        shape = policy_config(policy)
        if shape is None:
            return None
    check_heads(shape, learner.sequence_parallel)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape)
    size = _bytes_of(policy)
    layers, hidden = shape.num_hidden_layers, shape.hidden_size
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    head = getattr(shape, "head_dim", None) or hidden // shape.num_attention_heads
    # Between forward and backward a layer keeps about 34 values per hidden unit (Korthikanti et al. 2022,
    # arXiv:2205.05198, section 4.1, without the attention matrix, which fused attention does not keep) in half
    # precision; with checkpointing only its input stays.
    per_layer = hidden * size if learner.gradient_checkpointing else 17 * hidden * size
    return PolicyShape(
        sum(parameter.numel() for parameter in model.parameters()),
        trained_parameters(model, learner.lora),
        2 * layers * heads * head * size,
        layers * per_layer,
        shape.vocab_size,
    )


def _bytes_of(policy: config.PolicyConfig) -> int:
    return 2 if policy.dtype == "bfloat16" else 4


def learner_bytes(
    shape: PolicyShape, policy: config.PolicyConfig, learner: config.LearnerConfig, algorithm: AlgorithmConfig | None
) -> dict[str, float]:
    """Memory of one learner rank by what it is for; ZeRO (arXiv:1910.02054, section 3) shards parts of it.

    Args:
        shape: of the policy.
        policy: for its dtype.
        learner: what is sharded over how many ranks, and how much a microbatch holds.
        algorithm: whether there is a reference; None in supervised fine-tuning.
    """
    size = _bytes_of(policy)
    master = 4 if policy.dtype == "bfloat16" else 0
    sharded = {stage: learner.ranks if learner.zero_stage >= stage else 1 for stage in (1, 2, 3)}
    gradients = 1 if learner.reduces_once(policy.dtype) else sharded[2]
    held = shape.parameters + (shape.trained if learner.lora else 0)
    tokens = learner.microbatch_tokens / learner.sequence_parallel
    # `LogprobHead` holds so many at a time, and in the backward pass their gradient and probabilities beside them.
    logits = 3 * min(LOGIT_BYTES, 4 * shape.vocabulary * tokens)
    found = {
        "weights": held * size / sharded[3],
        "gradients": shape.trained * 4 / gradients,
        "optimizer (Adam, float32 weights)": shape.trained * (8 + master) / sharded[1],
        "activations of a microbatch": shape.activation_bytes * tokens,
        "logits": logits,
    }
    if algorithm and algorithm.needs_reference and not learner.lora:
        # Whole on every rank, whatever the stage.
        found["reference policy"] = shape.parameters * size
    return found


def _split(parts: Mapping[str, float], offload: str) -> tuple[dict[str, float], dict[str, float]]:
    """A learner rank's memory on its device, and in the host's memory."""
    moved = {name for name in parts if name.split()[0] in OFFLOADED[offload]}
    return {n: s for n, s in parts.items() if n not in moved}, {n: s for n, s in parts.items() if n in moved}


def _learner_bytes(
    settings: config.TrainConfig | config.SftConfig, shape: PolicyShape
) -> tuple[dict[str, float], dict[str, float]]:
    algorithm = settings.algorithm if isinstance(settings, config.TrainConfig) else None
    return _split(learner_bytes(shape, settings.policy, settings.learner, algorithm), settings.learner.offload)


def add_memory(table: Table, settings: config.TrainConfig | config.SftConfig, shape: PolicyShape | None) -> Table:
    """Fill `table`, of two columns, with what a learner rank and a generator hold.

    Args:
        table: which is returned.
        settings: of either job.
        shape: of the policy; None where it is unknown.
    """
    if shape is None:
        table.add_row("unknown", f"the policy {settings.policy.path!r} is not here yet and the hub does not answer")
        return table
    lora = settings.learner.lora
    adapters = f", and {shape.trained:,} of adapters of rank {lora.rank}, which alone are trained" if lora else ""
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
    """What this machine has."""
    gpu = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    return Memory(gpu, psutil.virtual_memory().available)


def memory_warning(settings: config.TrainConfig | config.SftConfig, shape: PolicyShape, memory: Memory) -> str | None:
    """Which part of the job does not fit this machine, with the remedy; None where all seems to.

    Where the job goes to a cluster that is up (`cluster.address`), or to GPUs that this machine has not, nothing can
    be compared.
    """
    if settings.cluster.address is not None:
        return None
    on_device, on_host = _learner_bytes(settings, shape)
    learner, host = sum(on_device.values()), sum(on_host.values()) * settings.learner.ranks
    train = settings if isinstance(settings, config.TrainConfig) else None
    if not wants_gpus(settings.cluster):
        needed = learner * settings.learner.ranks + host
        if train:
            cache = train.generator.cpu_cache_gib * GIB
            needed += train.generator.replicas * (shape.parameters * _bytes_of(train.policy) + cache)
        if needed <= memory.host:
            return None
        return (
            f"learner and generators need about {needed / GIB:.1f} GiB together, and this machine has "
            f"{memory.host / GIB:.1f} GiB to give: lower learner.microbatch_tokens, generator.cpu_cache_gib, "
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
            f"this machine has {memory.host / GIB:.1f} GiB to give: offload less, or use more nodes"
        )
    return None
