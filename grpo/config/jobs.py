"""The configuration of `grpo train`, checked whole before any device is claimed.

`grpo.config.fine_tuning.jobs` has the configurations of the other jobs, which share its parts. `grpo.config.file` reads
them from YAML with dotted overrides.
`problems()` checks rules between several fields, for example whether lengths fit the token budget.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from grpo.config.algorithm import AlgorithmConfig
from grpo.config.cluster import ClusterConfig as Cluster
from grpo.config.cluster import WatchdogConfig as Watchdog
from grpo.config.cluster import sleep_problems, transport_problems
from grpo.config.conversation import ConversationConfig, Environments, conversation_problems, rewarded_by_environment
from grpo.config.generator import ChosenTransport as ChosenTransport
from grpo.config.generator import GeneratorConfig as GeneratorConfig
from grpo.config.generator import RolloutConfig as Rollout
from grpo.config.generator import WeightSyncConfig as WeightSyncConfig
from grpo.config.inputs import DatasetConfig as Dataset
from grpo.config.inputs import PolicyConfig as Policy
from grpo.config.inputs import RunConfig as Run
from grpo.config.inputs import TrainingDataConfig as TrainingData
from grpo.config.inputs import dataset_problems, policy_problems, training_data_problems
from grpo.config.launch import LaunchConfig
from grpo.config.learner import Dtype as Dtype
from grpo.config.learner import LearnerConfig as LearnerConfig
from grpo.config.schedule import ScheduleConfig
from grpo.config.section import Function, LogLevel, Positive, Seconds, Section
from grpo.config.verifiers import VerificationConfig as Verification
from grpo.config.verifiers import VerifierConfig as VerifierConfig
from grpo.config.verifiers import negative_problems, reward_model_problems, verifier_problems


class EvaluationConfig(Section):
    """Greedy accuracy on held-out rows."""

    data: Dataset | None = None
    """By default, the questions that `data.validation` holds out."""
    every: Positive = 10
    """Steps between evaluations. There is always an evaluation before the first step and after the last step."""
    max_completion_tokens: Positive | None = None
    """Longest completion in an evaluation, in tokens; by default as in training."""
    mode: Literal["inline", "background"] = "inline"
    """`inline` evaluates between two steps. `background` runs `grpo eval` on an exported policy in a separate process,
    while training continues."""
    devices: str | None = None
    """GPUs for background evaluations, as in CUDA_VISIBLE_DEVICES. Training must not use them. Leave out on CPUs."""
    deadline_s: Seconds = 7200.0
    """Longest time for an evaluation in the background, in seconds."""


class CallbacksConfig(Section):
    """Your functions that the training loop calls (docs/objectives.md)."""

    step: tuple[Function, ...] = ()
    """After each step; numbers that they return are reported as `custom/<name>`."""
    checkpoint: tuple[Function, ...] = ()
    """After each checkpoint."""


class ReportConfig(Section):
    """What a run records."""

    trackers: tuple[Literal["tensorboard", "wandb", "mlflow", "prometheus"], ...] = ("tensorboard",)
    """Further places for the metrics besides the run's folder. `prometheus` is the endpoint of Ray on each node."""
    rollouts_every: Positive = 1
    """Steps between stored rollouts; 1 stores every step."""
    rollouts_max_mib: Positive | None = 4096
    """Largest size of the stored completions, in MiB. Above this size, the completions of some steps are
    deleted, spread evenly over the run. None sets no limit."""
    mismatch_alarm: Annotated[float, Field(gt=0)] | None = 0.01
    """Threshold for learner/mismatch_kl_first, in nats. Above this threshold, the run warns that learner and generators
    disagree. None turns the alarm off."""
    project: str = "verigrpo"
    """Project of wandb, experiment of mlflow."""
    log_level: LogLevel = "info"
    """Lowest level of what driver and actors write into the run folder's `logs/`; `--log-level` sets it too."""


class TrainConfig(Section):
    """The configuration of `train`: sections with their defaults, as docs/config.md lists them.

    >>> config = grpo.load_config("configs/quickstart.yaml", "algorithm.preset=dapo")
    >>> isinstance(config, grpo.TrainConfig), config.algorithm.clip_high
    (True, 0.28)
    """

    run: Run
    policy: Policy
    data: TrainingData
    tools: tuple[str, ...] = ()
    """Tools that the policy may call: `python`, `bash`, `package.module:function` or `file.py:function`
    (docs/conversations.md)."""
    environment: Environments = ()
    conversation: ConversationConfig = ConversationConfig()
    verifiers: Annotated[tuple[VerifierConfig, ...], Field(min_length=1)]
    verification: Verification = Verification()
    rollout: Rollout = Rollout()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    learner: LearnerConfig = LearnerConfig()
    generator: GeneratorConfig = GeneratorConfig()
    weight_sync: WeightSyncConfig = WeightSyncConfig()
    evaluation: EvaluationConfig | None = None
    train: ScheduleConfig
    callbacks: CallbacksConfig = CallbacksConfig()
    report: ReportConfig = ReportConfig()
    cluster: Cluster = Cluster()
    watchdog: Watchdog = Watchdog()
    launch: LaunchConfig | None = None
    """Only `grpo launch` reads this section."""

    @model_validator(mode="before")
    @classmethod
    def _reward_of_the_environment(cls, values: Any) -> Any:
        """Without `verifiers`, an environment rewards its conversations itself."""
        return rewarded_by_environment(values, "verifiers", [{"name": "environment", "use": "environment"}])

    @property
    def functions(self) -> dict[str, str]:
        """The user's functions of objective and callbacks, by their keys."""
        called = {"callbacks.step": self.callbacks.step, "callbacks.checkpoint": self.callbacks.checkpoint}
        return self.algorithm.functions | {
            f"{key}.{place}": name for key, names in called.items() for place, name in enumerate(names)
        }

    @property
    def max_sequence_tokens(self) -> int:
        """Tokens of the longest prompt with the longest completion."""
        evaluated = (self.evaluation and self.evaluation.max_completion_tokens) or 0
        return self.rollout.max_prompt_tokens + max(self.rollout.max_completion_tokens, evaluated)

    def problems(self) -> list[str]:
        """Find problems between several fields, each with its remedy."""
        problems = [*policy_problems(self.policy, may_be_new=False), *training_data_problems(self.data)]
        problems += self._held_out_problems()
        rollout, algorithm = self.rollout, self.algorithm
        problems += algorithm.problems(rollout.group_size)
        if self.learner.lora and algorithm.reference_refresh:
            problems.append(
                f"algorithm.reference_refresh={algorithm.reference_refresh} cannot refresh the reference of "
                "learner.lora, which is the policy without its adapters; remove one of the two"
            )
        problems += self.learner.problems(self.policy.dtype)
        problems += self.generator.problems()
        if rollout.prompts_per_step % algorithm.minibatches:
            problems.append(
                f"rollout.prompts_per_step={rollout.prompts_per_step} is not divisible by "
                f"algorithm.minibatches={algorithm.minibatches}; minibatches are made of whole groups"
            )
        if rollout.prompts_per_step < self.generator.replicas:
            problems.append(
                f"rollout.prompts_per_step={rollout.prompts_per_step} leaves some of "
                f"generator.replicas={self.generator.replicas} without work; use fewer replicas or more prompts"
            )
        if self.generator.hang_deadline_s >= rollout.deadline_s:
            problems.append(
                f"generator.hang_deadline_s={self.generator.hang_deadline_s:g} is not shorter than rollout.deadline_s="
                f"{rollout.deadline_s:g}: the run would stop before it restarts a generator that hangs; lower "
                "hang_deadline_s or raise rollout.deadline_s"
            )
        sequence = rollout.max_prompt_tokens + rollout.max_completion_tokens
        if sequence > self.learner.microbatch_tokens:
            problems.append(
                f"learner.microbatch_tokens={self.learner.microbatch_tokens} does not hold the longest sequence: "
                f"rollout.max_prompt_tokens + rollout.max_completion_tokens = {sequence}; raise microbatch_tokens, or "
                "lower the others"
            )
        completions = rollout.prompts_per_step * rollout.group_size // algorithm.minibatches
        if completions < self.learner.data_parallel:
            problems.append(
                f"a minibatch of {completions} completions leaves some of learner.ranks={self.learner.ranks} idle; use "
                "fewer ranks, fewer algorithm.minibatches, or more prompts"
            )
        if self.cluster.share_gpus and (self.generator.devices > 1 or self.generator.replicas != self.learner.ranks):
            problems.append(
                "cluster.share_gpus pairs each learner rank with one generator: it needs as many replicas as ranks, "
                f"and one device per replica; got generator.replicas={self.generator.replicas}, "
                f"learner.ranks={self.learner.ranks}, {self.generator.devices} devices per replica"
            )
        problems += sleep_problems(self.cluster, rollout, self.learner, self.policy)
        problems += transport_problems(self.weight_sync, self.cluster)
        problems += self._background_problems()
        problems += self.train.problems(evaluated=self.evaluation is not None)
        problems += verifier_problems(self.verifiers)
        background = self.evaluation is not None and self.evaluation.mode == "background"
        problems += reward_model_problems(
            self.verifiers, talks=bool(self.tools or self.environment), background=background
        )
        problems += conversation_problems(self.tools, self.environment, self.conversation, self.verifiers)
        if algorithm.supervision == "process" and (self.tools or self.environment):
            problems.append(
                "algorithm.supervision=process is for completions of a single turn; for conversations, let the "
                "environment reward turns and set algorithm.turn_rewards"
            )
        if algorithm.teacher and self.learner.sequence_parallel > 1:
            problems.append(
                f"algorithm.teacher does not work with learner.sequence_parallel={self.learner.sequence_parallel}, "
                "which shares out the policy's attention heads; set sequence_parallel=1, or remove the teacher"
            )
        if algorithm.advantage == "maxrl":
            problems += negative_problems(self.verifiers)
        return problems

    def _held_out_problems(self) -> list[str]:
        evaluation, data = self.evaluation, self.data
        split = next((f"{data.section(name)}.validation" for name, rows in data.by_name.items() if rows.validation), "")
        if evaluation and evaluation.data:
            problems = dataset_problems("evaluation.data", evaluation.data)
            if split:
                problems.append(f"evaluation.data and {split} both give held-out questions; remove one of the two")
            return problems
        if evaluation and not split:
            return ["evaluation needs questions: name rows with evaluation.data, or hold some out with data.validation"]
        if split and not evaluation:
            return [f"{split} holds out questions, but no evaluation uses them; add a section evaluation: {{}}"]
        return []

    def _background_problems(self) -> list[str]:
        evaluation = self.evaluation
        if evaluation is None:
            return []
        if evaluation.mode == "background" and self.verifiers[0].when:
            return [
                "evaluation.mode=background uses only the first verifier, which has a `when`; use mode=inline, or "
                "remove this `when`"
            ]
        frames = {(rows.system, rows.chat_template) for rows in self.data.by_name.values() if rows.validation}
        if evaluation.mode == "background" and not evaluation.data and len(frames) > 1:
            return [
                "evaluation.mode=background asks all held-out questions with the same system and chat_template, which "
                "differ between data.sources; use mode=inline, or give the sources the same values"
            ]
        if evaluation.mode == "inline" and evaluation.devices is not None:
            return ["evaluation.devices are for evaluation.mode=background; set this mode, or remove devices"]
        return []
