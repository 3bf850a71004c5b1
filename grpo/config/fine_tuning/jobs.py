"""The configurations of `grpo sft`, `grpo dpo` and `grpo reward`, which share their parts with that of `grpo train`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from grpo.config.cluster import ClusterConfig as Cluster
from grpo.config.cluster import WatchdogConfig as Watchdog
from grpo.config.fine_tuning.schedules import (
    DpoScheduleConfig,
    FineTuningScheduleConfig,
    PreferenceScheduleConfig,
    RewardScheduleConfig,
    SftScheduleConfig,
)
from grpo.config.inputs import DatasetConfig as Dataset
from grpo.config.inputs import PolicyConfig as Policy
from grpo.config.inputs import RunConfig as Run
from grpo.config.inputs import TrainingRowsConfig as TrainingRows
from grpo.config.inputs import dataset_problems, policy_problems
from grpo.config.jobs import ReportConfig
from grpo.config.launch import LaunchConfig
from grpo.config.learner import LearnerConfig
from grpo.config.section import Section


class FineTuningConfig(Section):
    """What the jobs share that learn from rows, without sampling."""

    job: ClassVar[str]
    """Command of `grpo` that runs the job, which is also the name of its section."""
    may_be_new: ClassVar[bool] = False
    """Whether the job can teach a policy with random weights."""

    run: Run
    policy: Policy
    data: Dataset
    learner: LearnerConfig = LearnerConfig()
    report: ReportConfig = ReportConfig()
    cluster: Cluster = Cluster()
    watchdog: Watchdog = Watchdog()
    launch: LaunchConfig | None = None
    """Only `grpo launch` reads this section."""

    @property
    @abstractmethod
    def schedule(self) -> FineTuningScheduleConfig:
        """The section with the length of the job."""

    @property
    def longest_unit(self) -> tuple[int, str]:
        """The tokens that a microbatch must hold together at least, and the keys that say so."""
        return self.schedule.max_tokens, f"the longest row, {self.job}.max_tokens={self.schedule.max_tokens}"

    def problems(self) -> list[str]:
        """Find problems between several fields, each with its remedy."""
        problems = policy_problems(self.policy, may_be_new=self.may_be_new)
        problems += [*dataset_problems("data", self.data), *self.learner.problems(self.policy.dtype)]
        schedule, (longest, name) = self.schedule, self.longest_unit
        if longest > self.learner.microbatch_tokens:
            problems.append(
                f"learner.microbatch_tokens={self.learner.microbatch_tokens} does not hold {name}; raise "
                "microbatch_tokens or lower max_tokens"
            )
        if self.policy.new and self.policy.new.max_position < schedule.max_tokens:
            problems.append(
                f"policy.new.max_position={self.policy.new.max_position} is shorter than "
                f"{self.job}.max_tokens={schedule.max_tokens}; raise max_position or lower max_tokens"
            )
        if self.policy.new and self.learner.lora:
            problems.append(
                "learner.lora would not train the random weights of policy.new; give policy.path, or remove "
                "learner.lora"
            )
        if schedule.batch_size < self.learner.data_parallel:
            problems.append(
                f"{self.job}.batch_size={schedule.batch_size} leaves some of learner.ranks={self.learner.ranks} idle; "
                "use fewer ranks or more rows"
            )
        return problems


class SftConfig(FineTuningConfig):
    """The configuration of `sft`: sections with their defaults, as docs/config.md lists them.

    >>> config = grpo.load_config("configs/quickstart_sft.yaml")
    >>> isinstance(config, grpo.SftConfig), config.sft.batch_size
    (True, 64)
    """

    job: ClassVar[str] = "sft"
    may_be_new: ClassVar[bool] = True

    sft: SftScheduleConfig

    @property
    def schedule(self) -> SftScheduleConfig:
        """The section with the length of the job."""
        return self.sft


class PreferenceJobConfig(FineTuningConfig):
    """What the jobs share that learn from preferences: pairs or rankings of answers."""

    data: TrainingRows

    @property
    @abstractmethod
    def schedule(self) -> PreferenceScheduleConfig:
        """The section with the length of the job."""

    @property
    def longest_unit(self) -> tuple[int, str]:
        """The tokens of the longest pair of answers, which a microbatch holds together."""
        longest = self.schedule.max_tokens
        return 2 * longest, f"the two answers of a pair, 2 x {self.job}.max_tokens={longest}"

    def problems(self) -> list[str]:
        """Find problems between several fields, each with its remedy."""
        problems = super().problems()
        if self.data.ranking and self.data.margin:
            problems.append("data.margin belongs to rows with two answers; a ranking (data.ranking) has no margins")
        if self.data.messages:
            problems.append(
                f"data.messages={self.data.messages!r} belongs to grpo sft; whole conversations of preferences stand "
                "in the columns data.chosen and data.rejected"
            )
        return problems


class DpoConfig(PreferenceJobConfig):
    """The configuration of `dpo`: sections with their defaults, as docs/config.md lists them.

    >>> config = grpo.load_config("configs/dpo_quickstart.yaml", "dpo.beta=0.2")
    >>> isinstance(config, grpo.DpoConfig), config.dpo.beta
    (True, 0.2)
    """

    job: ClassVar[str] = "dpo"

    dpo: DpoScheduleConfig

    @property
    def schedule(self) -> DpoScheduleConfig:
        """The section with the length of the job."""
        return self.dpo

    def problems(self) -> list[str]:
        """Find problems between several fields, each with its remedy."""
        problems, dpo = super().problems(), self.dpo
        for key, value in (("dpo.label_smoothing", dpo.label_smoothing), ("data.margin", self.data.margin)):
            if value and dpo.loss == "ipo":
                problems.append(f"{key}={value} belongs to dpo.loss=sigmoid; IPO has no such term, so remove {key}")
        if dpo.label_smoothing and self.data.margin:
            problems.append(
                f"dpo.label_smoothing={dpo.label_smoothing:g} expects wrong labels, and data.margin="
                f"{self.data.margin!r} says how certain each label is; remove one of the two"
            )
        return problems


class RewardConfig(PreferenceJobConfig):
    """The configuration of `reward`: sections with their defaults, as docs/config.md lists them.

    >>> config = grpo.load_config("configs/rlhf_quickstart_reward.yaml", "reward.steps=50")
    >>> isinstance(config, grpo.RewardConfig), config.reward.loss
    (True, 'bradley_terry')
    """

    job: ClassVar[str] = "reward"

    reward: RewardScheduleConfig

    @property
    def schedule(self) -> RewardScheduleConfig:
        """The section with the length of the job."""
        return self.reward

    def problems(self) -> list[str]:
        """Find problems between several fields, each with its remedy."""
        problems = super().problems()
        if self.data.margin and self.reward.loss == "plackett_luce":
            problems.append(
                "data.margin belongs to reward.loss=bradley_terry; the likelihood of a ranking has no margins"
            )
        if self.learner.sequence_parallel > 1:
            problems.append(
                f"learner.sequence_parallel={self.learner.sequence_parallel} does not work with grpo reward, which "
                "needs whole answers on a rank; set it to 1, and for long answers learner.gradient_checkpointing=true"
            )
        return problems


# The configurations of the jobs that learn from rows, by the name of the command and of its section.
FINE_TUNING: Mapping[str, type[FineTuningConfig]] = {
    schema.job: schema for schema in (SftConfig, DpoConfig, RewardConfig)
}
