"""The configuration: a pydantic tree for each kind of job."""

from grpo.config.algorithm import AlgorithmConfig
from grpo.config.cluster import ClusterConfig, WatchdogConfig
from grpo.config.fine_tuning.jobs import (
    FINE_TUNING,
    DpoConfig,
    FineTuningConfig,
    PreferenceJobConfig,
    RewardConfig,
    SftConfig,
)
from grpo.config.fine_tuning.schedules import DpoScheduleConfig, RewardScheduleConfig
from grpo.config.generator import ChosenTransport, GeneratorConfig, RolloutConfig, WeightSyncConfig
from grpo.config.inputs import (
    ChoicesConfig,
    DatasetConfig,
    NewPolicyConfig,
    PolicyConfig,
    RunConfig,
    SourceConfig,
    TrainingDataConfig,
    TrainingRowsConfig,
)
from grpo.config.jobs import EvaluationConfig, TrainConfig
from grpo.config.learner import Dtype, LearnerConfig, LoraConfig
from grpo.config.verifiers import VerificationConfig, VerifierConfig

# The configuration of any job.
JobConfig = TrainConfig | FineTuningConfig

__all__ = [
    "FINE_TUNING",
    "AlgorithmConfig",
    "ChoicesConfig",
    "ChosenTransport",
    "ClusterConfig",
    "DatasetConfig",
    "DpoConfig",
    "DpoScheduleConfig",
    "Dtype",
    "EvaluationConfig",
    "FineTuningConfig",
    "GeneratorConfig",
    "JobConfig",
    "LearnerConfig",
    "LoraConfig",
    "NewPolicyConfig",
    "PolicyConfig",
    "PreferenceJobConfig",
    "RewardConfig",
    "RewardScheduleConfig",
    "RolloutConfig",
    "RunConfig",
    "SftConfig",
    "SourceConfig",
    "TrainConfig",
    "TrainingDataConfig",
    "TrainingRowsConfig",
    "VerificationConfig",
    "VerifierConfig",
    "WatchdogConfig",
    "WeightSyncConfig",
]
