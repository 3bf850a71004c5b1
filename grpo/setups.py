"""What an actor is told when it starts. Importing this imports neither vLLM nor DeepSpeed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from grpo import config
from grpo.objective_config import Algorithm
from grpo.run_folder import skipped_folder

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class LearnerSetup:
    """What one rank needs to know.

    Attributes:
        policy_path: folder or hub name of the starting policy.
        reference_path: where the frozen reference of a KL penalty starts from, and the weights that LoRA adapts; read
            only where there is one or the other.
        dtype: of forward and backward.
        algorithm: the objective; None for supervised fine-tuning.
        learner: optimizer and batching.
        temperature: at which completions are sampled, and so log-probabilities compared.
        total_steps: optimizer steps of the whole run, for the learning-rate schedule.
        seed: of the rank's random numbers.
        rank: this rank.
        world_size: number of ranks.
        device: `cpu` or `cuda`.
        skipped_folder: where batches are kept whose loss or gradient is not finite; every rank must reach it.
    """

    policy_path: str
    reference_path: str
    dtype: config.Dtype
    algorithm: Algorithm | None
    learner: config.LearnerConfig
    temperature: float
    total_steps: int
    seed: int
    rank: int
    world_size: int
    device: Device
    skipped_folder: str


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


def learner_setups(
    settings: config.TrainConfig, policy_path: str, reference_path: str, device: Device
) -> list[LearnerSetup]:
    """Those of all ranks of a training run; paths as of `LearnerSetup`."""
    return [
        LearnerSetup(
            policy_path=policy_path,
            reference_path=reference_path,
            dtype=settings.policy.dtype,
            algorithm=settings.algorithm,
            learner=settings.learner,
            temperature=settings.rollout.temperature,
            total_steps=settings.train.steps * settings.algorithm.minibatches,
            seed=settings.run.seed,
            rank=rank,
            world_size=settings.learner.ranks,
            device=device,
            skipped_folder=skipped_folder(settings.run),
        )
        for rank in range(settings.learner.ranks)
    ]


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
