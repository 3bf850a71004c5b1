"""Sections of the configuration for the start of a job: its folder, its policy, its data."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from grpo.config.learner import Dtype
from grpo.config.section import Positive, Section


class RunConfig(Section):
    """The run's folder, seed and start."""

    folder: str
    """Folder of the run, with its config, metrics, rollouts, figures, report and checkpoints."""
    seed: int = 0
    """Seed of the shuffle, of every sample and of new weights."""
    resume: Literal["auto", "never"] = "never"
    """`auto` continues from the folder's newest checkpoint, if there is a checkpoint. `never` refuses a folder in
    use."""


class NewPolicyConfig(Section):
    """A new policy with random weights and a new tokenizer. For `grpo sft` only."""

    hidden_size: Positive = 128
    """Width of the hidden states."""
    layers: Positive = 2
    """Number of layers."""
    heads: Positive = 4
    """Number of attention heads; it must divide hidden_size."""
    key_value_heads: Positive = 2
    """Number of key-value heads; it must divide heads."""
    intermediate_size: Positive = 384
    """Width of the MLP."""
    max_position: Positive = 1024
    """Longest sequence, in tokens."""
    tie_embeddings: bool = True
    """Input and output embeddings share one tensor."""
    tokenizer: Literal["characters", "bpe"] = "characters"
    """`characters`: one token per character. `bpe`: a byte-pair encoding learned from the training rows."""
    vocabulary: Positive = 2048
    """Size of the byte-pair vocabulary."""
    alphabet: str = "0123456789+-*/=?;:., "
    """Characters of the character tokenizer. Any other character becomes the unknown token."""
    tags: tuple[str, ...] = ("<think>", "</think>", "<answer>", "</answer>")
    """Strings that the tokenizer reads as single tokens."""


Revision = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", max_length=200)]


class PolicyConfig(Section):
    """The model that is trained."""

    path: str | None = None
    """Folder in Hugging Face format, or a hub name."""
    revision: Revision | None = None
    """Commit, tag or branch of a hub name; by default the newest commit of `main`. Only a commit's hash never
    changes."""
    new: NewPolicyConfig | None = None
    """It replaces `policy.path`."""
    dtype: Dtype = "float32"
    """Number format of the forward pass and of the generators. The optimizer always works on float32 weights."""


def _files(value: object) -> object:
    # For a union, pydantic would report an error for each of its types.
    names = list(value) if isinstance(value, list | tuple) else [value]
    if value is None or (names and all(isinstance(name, str) for name in names)):
        return value
    raise ValueError("expected a file, or a list of files")


class DatasetConfig(Section):
    """Rows from one of three places, and the meaning of their columns."""

    hub: str | None = None
    """Name on the Hugging Face hub."""
    subset: str | None = None
    """The hub data set's configuration name."""
    split: str = "train"
    """The hub data set's split."""
    revision: Revision | None = None
    """Commit, tag or branch of the hub data set; by default the newest commit of `main`. Only a commit's hash never
    changes."""
    path: Annotated[str | tuple[str, ...] | None, BeforeValidator(_files)] = None
    """Local `.jsonl`, `.json` or `.parquet` file, or a list of such files. If hub and path are given, path is read."""
    generator: str | None = None
    """`package.module:function` or `file.py:function` that yields rows; it is called with `options`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the generator."""
    prompt: str = "prompt"
    """Column with the question: text, or a list of chat messages. Write `outer.inner` for a nested column."""
    reference: str = "answer"
    """Column with the reference answer (training, evaluation)."""
    response: str = "response"
    """Column with the response that the policy learns (supervised fine-tuning)."""
    template: str = "{prompt}"
    """Text that the policy reads. `{prompt}` stands for the question, or for the last of several chat messages."""
    system: str | None = None
    """System message; only a chat template has a place for it."""
    chat_template: Literal["auto", "never"] = "auto"
    """`auto` uses the tokenizer's chat template, if the tokenizer has a chat template."""
    limit: Positive | None = None
    """Number of rows to read; by default all."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The local files; empty if the rows come from another place."""
        return (self.path,) if isinstance(self.path, str) else self.path or ()


def policy_problems(policy: PolicyConfig, *, may_be_new: bool) -> list[str]:
    """Find problems with the source of the policy."""
    if policy.new and not may_be_new:
        return ["policy.new makes random weights, which only grpo sft can teach; give policy.path here"]
    if (policy.path is None) == (policy.new is None):
        choice = "policy.path (a folder or a hub name) or policy.new" if may_be_new else "policy.path"
        return [f"policy needs exactly one of {choice}" if may_be_new else f"policy needs {choice}"]
    return _new_policy_problems(policy.new) if policy.new else []


# Size of a byte-pair vocabulary before training, without the tags: every byte, padding, the end.
BYTES_AND_SPECIAL = 258


def _new_policy_problems(new: NewPolicyConfig) -> list[str]:
    problems = []
    if new.hidden_size % new.heads or new.heads % new.key_value_heads:
        problems.append(
            f"policy.new: heads={new.heads} must divide hidden_size={new.hidden_size} and be a multiple of "
            f"key_value_heads={new.key_value_heads}"
        )
    least = BYTES_AND_SPECIAL + len(new.tags)
    if new.tokenizer == "bpe" and new.vocabulary < least:
        problems.append(f"policy.new.vocabulary={new.vocabulary} does not hold all bytes and tags; use {least} or more")
    return problems


def dataset_problems(where: str, data: DatasetConfig) -> list[str]:
    """Find problems with the source of the rows. `where` is the name of the section."""
    if data.generator and (data.hub or data.path):
        return [f"{where}: give a generator, or a hub name and/or a path, not both"]
    if not (data.generator or data.hub or data.path):
        return [f"{where} needs one of hub, path or generator"]
    if data.revision and not data.hub:
        return [f"{where}.revision is a revision on the hub; name the data set with {where}.hub, or remove it"]
    if "{prompt}" not in data.template:
        return [f"{where}.template must contain {{prompt}}, or the policy never sees the question"]
    return []
