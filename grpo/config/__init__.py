"""The configuration: one pydantic tree for each kind of job."""

from grpo.config.algorithm import Algorithm
from grpo.config.cluster import Cluster, Watchdog
from grpo.config.generator import ChosenTransport, GeneratorConfig, Rollout, WeightSyncConfig
from grpo.config.inputs import Dataset, NewPolicy, Policy, Run
from grpo.config.jobs import Evaluation, SftConfig, TrainConfig
from grpo.config.learner import Dtype, LearnerConfig, Lora
from grpo.config.verifiers import Verification, VerifierConfig

__all__ = [
    "Algorithm",
    "ChosenTransport",
    "Cluster",
    "Dataset",
    "Dtype",
    "Evaluation",
    "GeneratorConfig",
    "LearnerConfig",
    "Lora",
    "NewPolicy",
    "Policy",
    "Rollout",
    "Run",
    "SftConfig",
    "TrainConfig",
    "Verification",
    "VerifierConfig",
    "Watchdog",
    "WeightSyncConfig",
]
