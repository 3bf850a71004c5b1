"""The settings of a learner rank. This module imports neither vLLM nor DeepSpeed."""

from __future__ import annotations

from dataclasses import dataclass

from grpo import config
from grpo.config.algorithm import AlgorithmConfig
from grpo.config.cluster import Device
from grpo.policy.teacher import teacher_path


@dataclass(frozen=True, slots=True)
class LearnerSetup:
    """The settings with which a rank starts.

    Attributes:
        policy_path: folder or hub name of the starting policy.
        reference_path: folder or hub name of the weights of the frozen reference (for a KL penalty) or of the base
            policy (for LoRA). A run without a KL penalty and without LoRA does not read these weights.
        dtype: number format of the forward and backward passes.
        algorithm: the objective; None for supervised fine-tuning and for preferences.
        learner: optimizer and batching.
        temperature: sampling temperature, which is also used for log-probabilities.
        total_steps: optimizer steps of the whole run, for the learning-rate schedule.
        seed: seed of the rank's random numbers.
        rank: number of this rank.
        world_size: number of ranks.
        device: `cpu` or `cuda`.
        collective_deadline_s: longest wait for the other ranks in a collective, in seconds.
        skipped_folder: folder for batches whose loss or gradient is not finite; every rank must reach it.
        preference: the loss of pairs of answers, of a policy or of a reward model; None for other objectives.
        teacher_path: folder or hub name of the frozen teacher; None without a teacher.
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
    collective_deadline_s: float
    skipped_folder: str
    preference: config.DpoScheduleConfig | config.RewardScheduleConfig | None = None
    teacher_path: str | None = None

    @property
    def scores(self) -> bool:
        """Whether the model is a reward model, with a score in place of the output head."""
        return isinstance(self.preference, config.RewardScheduleConfig)


def learner_setups(
    settings: config.TrainConfig, policy_path: str, reference_path: str, device: Device, skipped_folder: str
) -> list[LearnerSetup]:
    """Return the setups of all ranks of a training run; `LearnerSetup` describes the paths."""
    teacher = teacher_path(settings.algorithm.teacher) if settings.algorithm.teacher else None
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
            collective_deadline_s=settings.cluster.longest_wait_s(settings.weight_sync.deadline_s),
            skipped_folder=skipped_folder,
            teacher_path=teacher,
        )
        for rank in range(settings.learner.ranks)
    ]
