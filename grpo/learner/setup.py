"""What an actor is told when it starts. Importing this imports neither vLLM nor DeepSpeed."""

from __future__ import annotations

from dataclasses import dataclass

from grpo import config
from grpo.config.algorithm import AlgorithmConfig
from grpo.config.cluster import Device


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
    algorithm: AlgorithmConfig | None
    learner: config.LearnerConfig
    temperature: float
    total_steps: int
    seed: int
    rank: int
    world_size: int
    device: Device
    skipped_folder: str


def learner_setups(
    settings: config.TrainConfig, policy_path: str, reference_path: str, device: Device, skipped_folder: str
) -> list[LearnerSetup]:
    """The setups of all ranks of a training run; the paths are those of `LearnerSetup`."""
    return [
        LearnerSetup(
            policy_path=policy_path,
            reference_path=reference_path,
            dtype=settings.policy.dtype,
            algorithm=settings.algorithm.with_absolute_files(),
            learner=settings.learner,
            temperature=settings.rollout.temperature,
            total_steps=settings.train.steps * settings.algorithm.minibatches,
            seed=settings.run.seed,
            rank=rank,
            world_size=settings.learner.ranks,
            device=device,
            skipped_folder=skipped_folder,
        )
        for rank in range(settings.learner.ranks)
    ]
