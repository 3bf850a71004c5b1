"""Settings for the start of a generator. Importing this module does not import vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from grpo import config
from grpo.config.cluster import Device


@dataclass(frozen=True, slots=True)
class GeneratorSetup:
    """Settings of a replica.

    Attributes:
        policy_path: folder or hub name of the starting policy; the policy of a checkpoint after a resume.
        dtype: element type of weights and activations.
        generator: section with the sizes of the engine.
        max_sequence_tokens: longest prompt with its completion, in tokens.
        temperature: temperature of training samples. If it is not 1, log-probabilities are those after applying it.
        device: `cpu` or `cuda`.
        replica: number of this replica.
        sleeps: True if the generator releases its memory between rounds; on `cuda` only.
        partial: treatment of running completions when new weights come.
        transport: transport of new weights.
        sparse: True if only the changes of the weights travel.
        base_path: starting policy of a restarted generator, which gets newer weights at once. A checkpoint's folder may
            be deleted by then, so this is the policy at the start of the run. None for `policy_path`.
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
    """Return the settings of all replicas of a training run; the arguments are the same as in `GeneratorSetup`."""
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
