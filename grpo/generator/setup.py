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
        policy_path: folder or hub name of the starting policy; after a resume, the policy of the checkpoint.
        dtype: element type of weights and activations.
        generator: section with the sizes of the engine.
        max_sequence_tokens: largest length of a prompt and its completion together, in tokens.
        temperature: temperature of training samples. The samples' log-probabilities are computed at this
            temperature.
        device: `cpu` or `cuda`.
        replica: number of this replica.
        sleeps: True if the generator releases its memory while the learner trains; on `cuda` only.
        partial: what happens to running completions when new weights come.
        transport: transport of new weights.
        sparse: True if only the changes of the weights are sent.
        base_path: policy that a restarted generator loads before it gets the newest weights. This is the policy at the
            start of the run, because a checkpoint's folder may have been deleted. None means `policy_path`.
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
