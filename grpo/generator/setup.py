"""What a generator is told when it starts. Importing this imports no vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from grpo import config
from grpo.config.cluster import Device


@dataclass(frozen=True, slots=True)
class GeneratorSetup:
    """What one replica needs to know.

    Attributes:
        policy_path: folder or hub name of the starting policy, which may be a checkpoint's.
        dtype: of weights and activations.
        generator: sizes and where the engine runs.
        max_sequence_tokens: longest prompt with its completion.
        temperature: of training samples; where it is not 1, log-probabilities are taken after it is applied.
        device: `cpu` or `cuda`.
        replica: number of this replica.
        sleeps: it will give its memory back between rounds; on `cuda` only.
        partial: what happens to completions that are under way when new weights come.
        transport: how new weights come to it.
        sparse: through the object store comes only what changed of them.
        base_path: what a successor starts from that is given newer weights at once: the policy that the run began
            with, as a checkpoint's folder is deleted in time. None: `policy_path`.
    """

    policy_path: str
    dtype: config.Dtype
    generator: config.GeneratorConfig
    max_sequence_tokens: int
    temperature: float
    device: Device
    replica: int
    sleeps: bool = False
    partial: Literal["continue", "restart"] = "continue"
    transport: config.ChosenTransport = "object_store"
    sparse: bool = False
    base_path: str | None = None


def generator_setups(
    settings: config.TrainConfig,
    policy_path: str,
    base_path: str,
    device: Device,
    transport: config.ChosenTransport,
    *,
    sleeps: bool,
) -> list[GeneratorSetup]:
    """Those of all replicas of a training run; arguments as of `GeneratorSetup`."""
    return [
        GeneratorSetup(
            policy_path=policy_path,
            dtype=settings.policy.dtype,
            generator=settings.generator,
            max_sequence_tokens=settings.max_sequence_tokens,
            temperature=settings.rollout.temperature,
            device=device,
            replica=replica,
            sleeps=sleeps,
            partial=settings.rollout.partial,
            transport=transport,
            sparse=settings.weight_sync.sparse,
            base_path=base_path,
        )
        for replica in range(settings.generator.replicas)
    ]
