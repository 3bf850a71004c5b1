"""The configuration: one tree for each job, checked whole before any device is claimed.

`TrainConfig` and `SftConfig` share their parts. `grpo.config_file` reads them from YAML with dotted overrides; what a
single field cannot know (whether lengths fit the token budget, say) is checked by `problems()`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from grpo.launch_config import Launch
from grpo.learner_config import Dtype as Dtype
from grpo.learner_config import LearnerConfig as LearnerConfig
from grpo.learner_config import Lora as Lora
from grpo.objective_config import Algorithm
from grpo.section import Positive, Seconds, Section


class Run(Section):
    """Where a run lives and what it starts from."""

    folder: str
    """Folder of the run: config, metrics, rollouts, figures, report, checkpoints."""
    seed: int = 0
    """Seed of the shuffle, of every sample and of new weights."""
    resume: Literal["auto", "never"] = "never"
    """`auto` goes on from the folder's newest checkpoint where there is one; `never` refuses a folder in use."""


class NewPolicy(Section):
    """A policy made from nothing: random weights and a tokenizer of its own. For `grpo sft` only."""

    hidden_size: Positive = 128
    layers: Positive = 2
    heads: Positive = 4
    key_value_heads: Positive = 2
    intermediate_size: Positive = 384
    max_position: Positive = 1024
    """Longest sequence in tokens."""
    tie_embeddings: bool = True
    """Input and output embeddings are one tensor."""
    tokenizer: Literal["characters", "bpe"] = "characters"
    """One token per character, or a byte-pair encoding learned from the training rows."""
    vocabulary: Positive = 2048
    """Size of the byte-pair vocabulary."""
    alphabet: str = "0123456789+-*/=?;:., "
    """Characters of the character tokenizer; any other becomes one unknown token."""
    tags: tuple[str, ...] = ("<think>", "</think>", "<answer>", "</answer>")
    """Strings that are one token each."""


class Policy(Section):
    """The model that is trained."""

    path: str | None = None
    """Folder in Hugging Face format, or a hub name."""
    new: NewPolicy | None = None
    """Make one instead of loading it."""
    dtype: Dtype = "float32"
    """Of the forward pass and of the generators; the optimizer always works on float32 weights."""


class Dataset(Section):
    """Rows, from one of three places, and which columns mean what."""

    hub: str | None = None
    """Name on the Hugging Face hub."""
    subset: str | None = None
    """The hub data set's configuration name."""
    split: str = "train"
    """The hub data set's split."""
    path: str | None = None
    """Local `.jsonl`, `.json` or `.parquet` file; read instead of the hub where both are given."""
    generator: str | None = None
    """`package.module:function` that yields rows; it is called with `options`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the generator."""
    prompt: str = "prompt"
    """Column with the question."""
    reference: str = "answer"
    """Column with the reference answer (training, evaluation)."""
    response: str = "response"
    """Column with the response to learn from (supervised fine-tuning)."""
    template: str = "{prompt}"
    """What the policy is asked; `{prompt}` stands for the question."""
    system: str | None = None
    """System message, where a chat template is used."""
    chat_template: Literal["auto", "never"] = "auto"
    """`auto` uses the tokenizer's chat template where it has one."""
    limit: Positive | None = None
    """Read only so many rows."""


Cell = bool | int | float | str


class VerifierConfig(Section):
    """One verifier and its share of the reward. A row's first one's `correct` counts as accuracy."""

    name: str
    """Its name in the metrics."""
    use: str
    """Built-in name, `package.module:function`, `file.py:function`, or a `grpo.verifiers` entry point."""
    weight: float = 1.0
    """Its share of the reward."""
    gate: bool = False
    """Where it is not `correct`, the others earn nothing."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the verifier."""
    when: dict[str, Cell | tuple[Cell, ...]] = Field(default_factory=dict)
    """Column -> value, or list of values: it judges only the rows that have them. By default it judges all."""


class Verification(Section):
    """The worker processes that run verifiers."""

    workers: Positive = 1
    """Processes that work at the same time: on the driver's node, or on each with `per_node`."""
    per_node: bool = False
    """One pool on every node of the Ray cluster; by default one on the driver's node."""
    deadline_s: Seconds = 10.0
    """A verdict that takes longer is a `timeout`, and its worker is killed."""
    max_failure_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """The run stops when more than this share of a step's verdicts are `timeout` or `error`."""


class Rollout(Section):
    """How groups are sampled."""

    prompts_per_step: Positive = 32
    group_size: Positive = 8
    """Completions for each prompt."""
    max_prompt_tokens: Positive = 256
    """Longer prompts are dropped, and counted, when the data is read."""
    max_completion_tokens: Positive = 256
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """There is no top-p or top-k: the learner could not reproduce the probabilities of a cut distribution."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion."""
    deadline_s: Seconds = 1800.0
    """The run stops when no group at all has finished for so long."""
    max_policy_lag: Annotated[int, Field(ge=0)] = 0
    """Versions of the policy by which sampling may run ahead of training (docs/async.md); 0 samples, then trains."""
    partial: Literal["continue", "restart"] = "continue"
    """What happens to completions that are under way when new weights come: they go on under them, each token stamped
    with the version that sampled it, or begin again."""


class GeneratorConfig(Section):
    """vLLM: how completions are sampled."""

    replicas: Positive = 1
    tensor_parallel_size: Positive = 1
    """Devices of one replica."""
    engine: Literal["auto", "in_actor", "own_process"] = "auto"
    """Where the engine runs: `auto` is in the actor on CPU, in processes of its own on GPU."""
    max_sequences: Positive = 256
    """Sequences that one replica samples at a time."""
    gpu_memory_share: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Of a GPU's memory, for weights and key-value cache."""
    cpu_cache_gib: Positive = 1
    """Key-value cache of one replica on CPU."""
    compile: bool = True
    """Compile and capture graphs on GPU; on CPU the model always runs eagerly."""
    threads: Positive = 1
    """CPU threads of each replica."""
    hang_deadline_s: Seconds = 300.0
    """A replica whose engine does not finish a step for so long, while it has work, is restarted."""
    max_restarts: Annotated[int, Field(ge=0)] = 10
    """Restarts of replicas, all together, that a run survives."""

    def in_own_process(self, device: Literal["cpu", "cuda"]) -> bool:
        """Whether the engine runs in processes of its own."""
        return {"auto": device == "cuda", "in_actor": False, "own_process": True}[self.engine]


class WeightSyncConfig(Section):
    """Carrying new weights to the generators, and proving that they arrived."""

    bucket_mib: Positive = 512
    """Memory of one piece of a push."""
    probe_sequences: Positive = 2
    probe_tokens: Annotated[int, Field(ge=2)] = 64
    """Length to which each probe sequence is cut."""
    tolerance: Annotated[float, Field(gt=0)] | None = None
    """Mean difference of log-probabilities that passes; by default 2e-4 in float32 and 0.05 in bfloat16."""
    deadline_s: Seconds = 600.0


class Evaluation(Section):
    """Greedy accuracy on held-out rows."""

    data: Dataset
    every: Positive = 10
    """Steps between evaluations; before the first and after the last there is always one."""
    max_completion_tokens: Positive | None = None
    """By default as in training."""


class Schedule(Section):
    """How long, and what is kept."""

    steps: Positive
    checkpoint_every: Positive = 50
    """Steps between checkpoints; after the last step and on Ctrl-C there is always one."""
    keep_checkpoints: Positive = 2
    """Older ones are deleted."""


class ReportConfig(Section):
    """What is recorded."""

    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    rollouts_every: Positive = 1
    """Steps between stored rollouts."""
    mismatch_alarm: Annotated[float, Field(gt=0)] | None = 0.01
    """Nats of learner/mismatch_kl_first above which the run says that learner and generators disagree; None never."""
    project: str = "verigrpo"
    """Project name for wandb."""


class Cluster(Section):
    """Ray and devices."""

    device: Literal["auto", "cpu", "gpu"] = "auto"
    share_gpus: bool = False
    """Learner rank i and generator i share one GPU; lower generator.gpu_memory_share to what the learner leaves."""
    sleep: bool = False
    """With share_gpus, take turns in the GPU's memory: optimizer states are in the host's memory while completions are
    sampled, the generator's weights and cache while the policy is updated."""
    address: str | None = None
    """Address of a running Ray cluster (`auto` finds a local one); None starts one for this run, on loopback."""
    start_deadline_s: Seconds = 900.0
    """Longest wait for all actors to be up."""
    step_deadline_s: Seconds = 1800.0
    """Longest wait for one learner step or checkpoint."""


class TrainConfig(Section):
    """`grpo train`."""

    run: Run
    policy: Policy
    data: Dataset
    verifiers: Annotated[tuple[VerifierConfig, ...], Field(min_length=1)]
    verification: Verification = Verification()
    rollout: Rollout = Rollout()
    algorithm: Algorithm = Algorithm()
    learner: LearnerConfig = LearnerConfig()
    generator: GeneratorConfig = GeneratorConfig()
    weight_sync: WeightSyncConfig = WeightSyncConfig()
    evaluation: Evaluation | None = None
    train: Schedule
    report: ReportConfig = ReportConfig()
    cluster: Cluster = Cluster()
    launch: Launch | None = None
    """Where `grpo launch` runs the job; `grpo train` itself does not read it."""

    @property
    def max_sequence_tokens(self) -> int:
        """Tokens of the longest prompt with the longest completion."""
        evaluated = (self.evaluation and self.evaluation.max_completion_tokens) or 0
        return self.rollout.max_prompt_tokens + max(self.rollout.max_completion_tokens, evaluated)

    def problems(self) -> list[str]:
        """What no single field can know, each with its remedy."""
        found = [*_policy_problems(self.policy, may_be_new=False), *_dataset_problems("data", self.data)]
        if self.evaluation:
            found += _dataset_problems("evaluation.data", self.evaluation.data)
        rollout, algorithm = self.rollout, self.algorithm
        found += algorithm.problems(rollout.group_size)
        if self.learner.lora and algorithm.reference_refresh:
            found.append(
                f"algorithm.reference_refresh={algorithm.reference_refresh} cannot refresh the reference of "
                "learner.lora, which is the policy without its adapters; leave one of the two out"
            )
        found += self.learner.problems(self.policy.dtype)
        if rollout.prompts_per_step % algorithm.minibatches:
            found.append(
                f"rollout.prompts_per_step={rollout.prompts_per_step} is not divisible by "
                f"algorithm.minibatches={algorithm.minibatches}; minibatches are made of whole groups"
            )
        if rollout.prompts_per_step < self.generator.replicas:
            found.append(
                f"rollout.prompts_per_step={rollout.prompts_per_step} leaves some of "
                f"generator.replicas={self.generator.replicas} without work; use fewer replicas or more prompts"
            )
        if self.generator.hang_deadline_s >= rollout.deadline_s:
            found.append(
                f"generator.hang_deadline_s={self.generator.hang_deadline_s:g} is not shorter than rollout.deadline_s="
                f"{rollout.deadline_s:g}: the run would stop before it restarts a generator that hangs; lower the one "
                "or raise the other"
            )
        sequence = rollout.max_prompt_tokens + rollout.max_completion_tokens
        if sequence > self.learner.microbatch_tokens:
            found.append(
                f"learner.microbatch_tokens={self.learner.microbatch_tokens} does not hold the longest sequence: "
                f"rollout.max_prompt_tokens + rollout.max_completion_tokens = {sequence}; raise the one or lower "
                "the others"
            )
        completions = rollout.prompts_per_step * rollout.group_size // algorithm.minibatches
        if completions < self.learner.ranks:
            found.append(
                f"a minibatch of {completions} completions leaves some of learner.ranks={self.learner.ranks} idle; use "
                "fewer ranks, fewer algorithm.minibatches, or more prompts"
            )
        if self.cluster.share_gpus and (
            self.generator.tensor_parallel_size > 1 or self.generator.replicas != self.learner.ranks
        ):
            found.append(
                "cluster.share_gpus pairs each learner rank with one generator: it needs generator.replicas == "
                f"learner.ranks and tensor_parallel_size 1, got {self.generator.replicas}, {self.learner.ranks} and "
                f"{self.generator.tensor_parallel_size}"
            )
        found += self._sleep_problems()
        found += _verifier_problems(self.verifiers)
        return found

    def _sleep_problems(self) -> list[str]:
        if not self.cluster.sleep:
            return []
        if self.rollout.max_policy_lag:
            return [
                f"rollout.max_policy_lag={self.rollout.max_policy_lag} samples while the policy is trained, and with "
                "cluster.sleep the generators sleep then; leave one of the two out"
            ]
        if not self.cluster.share_gpus:
            return [
                "cluster.sleep has nobody to make room for without cluster.share_gpus; set that, or leave sleep out"
            ]
        if self.learner.zero_stage == 3 and self.learner.offload == "none":
            return [
                "cluster.sleep cannot move the optimizer states of learner.zero_stage=3, for which DeepSpeed wants an "
                "optimizer of its own; use learner.offload=optimizer, which keeps them off it, or zero_stage 1 or 2"
            ]
        return []


class SftSchedule(Section):
    """How long supervised fine-tuning goes on."""

    steps: Positive
    batch_size: Positive = 64
    """Rows in one optimizer step."""
    max_tokens: Positive = 1024
    """Rows longer than this, prompt and response together, are dropped, and counted."""
    checkpoint_every: Positive = 500
    """Steps between checkpoints; after the last step and on Ctrl-C there is always one."""


class SftConfig(Section):
    """`grpo sft`."""

    run: Run
    policy: Policy
    data: Dataset
    learner: LearnerConfig = LearnerConfig()
    sft: SftSchedule
    report: ReportConfig = ReportConfig()
    cluster: Cluster = Cluster()
    launch: Launch | None = None
    """Where `grpo launch` runs the job; `grpo sft` itself does not read it."""

    def problems(self) -> list[str]:
        """What no single field can know, each with its remedy."""
        found = [*_policy_problems(self.policy, may_be_new=True), *_dataset_problems("data", self.data)]
        found += self.learner.problems(self.policy.dtype)
        if self.sft.max_tokens > self.learner.microbatch_tokens:
            found.append(
                f"learner.microbatch_tokens={self.learner.microbatch_tokens} does not hold the longest row, "
                f"sft.max_tokens={self.sft.max_tokens}; raise the one or lower the other"
            )
        if self.policy.new and self.policy.new.max_position < self.sft.max_tokens:
            found.append(
                f"policy.new.max_position={self.policy.new.max_position} is shorter than "
                f"sft.max_tokens={self.sft.max_tokens}; raise the one or lower the other"
            )
        if self.policy.new and self.learner.lora:
            found.append(
                "learner.lora would leave the random weights of policy.new as they are; give policy.path, or take "
                "learner.lora out"
            )
        if self.sft.batch_size < self.learner.ranks:
            found.append(
                f"sft.batch_size={self.sft.batch_size} leaves some of learner.ranks={self.learner.ranks} idle; use "
                "fewer ranks or more rows"
            )
        return found


def _policy_problems(policy: Policy, *, may_be_new: bool) -> list[str]:
    if policy.new and not may_be_new:
        return ["policy.new makes random weights, which only grpo sft can teach; give policy.path here"]
    if (policy.path is None) == (policy.new is None):
        choice = "policy.path (a folder or a hub name) or policy.new" if may_be_new else "policy.path"
        return [f"policy needs exactly one of {choice}" if may_be_new else f"policy needs {choice}"]
    return _new_policy_problems(policy.new) if policy.new else []


# What a byte-pair vocabulary holds beside the tags before it learns anything: every byte, padding, the end.
BYTES_AND_SPECIAL = 258


def _new_policy_problems(new: NewPolicy) -> list[str]:
    found = []
    if new.hidden_size % new.heads or new.heads % new.key_value_heads:
        found.append(
            f"policy.new: heads={new.heads} must divide hidden_size={new.hidden_size} and be a multiple of "
            f"key_value_heads={new.key_value_heads}"
        )
    least = BYTES_AND_SPECIAL + len(new.tags)
    if new.tokenizer == "bpe" and new.vocabulary < least:
        found.append(f"policy.new.vocabulary={new.vocabulary} does not hold all bytes and tags; use {least} or more")
    return found


def _dataset_problems(where: str, data: Dataset) -> list[str]:
    if data.generator and (data.hub or data.path):
        return [f"{where}: give a generator, or a hub name and/or a path, not both"]
    if not (data.generator or data.hub or data.path):
        return [f"{where} needs one of hub, path or generator"]
    if "{prompt}" not in data.template:
        return [f"{where}.template must contain {{prompt}}, or the policy never sees the question"]
    return []


def _verifier_problems(verifiers: tuple[VerifierConfig, ...]) -> list[str]:
    found = []
    names = [verifier.name for verifier in verifiers]
    for name in sorted({name for name in names if names.count(name) > 1}):
        found.append(f"verifiers: the name {name!r} is used {names.count(name)} times; give each a name of its own")
    if all(verifier.weight == 0 for verifier in verifiers):
        found.append("verifiers: every weight is 0, so no completion can earn anything; give one a weight")
    for verifier in verifiers:
        found += [
            f"verifiers: {verifier.name!r} has an empty list of values in when.{column}, so it judges nothing; give one"
            for column, values in verifier.when.items()
            if values == ()
        ]
    return found
