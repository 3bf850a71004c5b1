"""The configuration: a pydantic tree for each kind of job."""

from grpo.config.algorithm import AlgorithmConfig
from grpo.config.cluster import ClusterConfig, WatchdogConfig
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
from grpo.config.jobs import EvaluationConfig, SftConfig, TrainConfig
from grpo.config.learner import Dtype, LearnerConfig, LoraConfig
from grpo.config.verifiers import VerificationConfig, VerifierConfig

__all__ = [
    "AlgorithmConfig",
    "ChoicesConfig",
    "ChosenTransport",
    "ClusterConfig",
    "DatasetConfig",
    "Dtype",
    "EvaluationConfig",
    "GeneratorConfig",
    "LearnerConfig",
    "LoraConfig",
    "NewPolicyConfig",
    "PolicyConfig",
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
