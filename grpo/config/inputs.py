"""Sections of the configuration for the start of a job: its folder, its policy, its data."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from grpo.config.learner import Dtype
from grpo.config.section import Positive, Section
from grpo.config.signals.curriculum import CurriculumConfig


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
    chat: bool = False
    """Gives the tokenizer a chat template with roles and tools, for conversations."""


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


class ChoicesConfig(Section):
    """Multiple choice: either columns with the right and the wrong options, or a column with all options."""

    right: str | None = None
    """Column with the right option. A hash of the question shuffles the options, alike in every run; the reference is
    the letter of the right option."""
    wrong: tuple[str, ...] = ()
    """Columns with the other options. A column may hold a list."""
    column: str | None = None
    """Column with the list of all options, in their order. `reference` names the column with the right letter, index
    (from 0) or text."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns with options."""
        return (self.column,) if self.column else (self.right or "", *self.wrong)


class DatasetConfig(Section):
    """Rows from one of three places, and the meaning of their columns."""

    hub: str | None = None
    """Name on the Hugging Face hub."""
    subset: str | None = None
    """The hub data set's configuration name."""
    split: str = "train"
    """Split of the hub data set, or of a folder of `save_to_disk` with several splits."""
    files: tuple[str, ...] = ()
    """JSON-lines files of the hub repository, if `datasets` cannot load the repository as a data set."""
    revision: Revision | None = None
    """Commit, tag or branch of the hub data set; by default the newest commit of `main`. Only a commit's hash never
    changes."""
    path: Annotated[str | tuple[str, ...] | None, BeforeValidator(_files)] = None
    """Local `.jsonl`, `.json`, `.csv`, `.tsv` (also with `.gz`) or `.parquet` file, a folder of such files, a pattern
    (`data/*.jsonl`), a folder that `save_to_disk` of `datasets` wrote, or a list of these. If hub and path are given,
    path is read."""
    generator: str | None = None
    """`package.module:function` or `file.py:function` that yields rows; it is called with `options`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the generator."""
    prompt: str = "prompt"
    """Column with the question: text, or a list of chat messages. Dots lead into nested columns, lists and JSON text:
    `extra_info.question`, `turns.0`, `info.question`."""
    reference: str = "answer"
    """Column with the reference answer (training, evaluation)."""
    reference_after: str | None = None
    """Mark in the reference column; the reference is the text after the last mark (GSM8K: `####`)."""
    reference_boxed: bool = False
    """The reference is the content of the last `\\boxed{}` in the reference column (MATH, NuminaMath, OpenR1)."""
    reference_join: str | None = None
    """Text that joins a list of answers to one reference: all of them are asked for (OlympiadBench: `", "`)."""
    choices: ChoicesConfig | None = None
    """Multiple choice: `{choices}` in the template stands for the lettered options."""
    response: str = "response"
    """Column with the response that the policy learns (supervised fine-tuning)."""
    messages: str | None = None
    """Column with a whole conversation, in place of `prompt` and `response` (supervised fine-tuning)."""
    tools: str | None = None
    """Column with the tools of a conversation in `messages`, as a list of JSON schemas (supervised fine-tuning). The
    chat template shows them to the policy."""
    learn_turns: Literal["all", "last"] = "all"
    """Turns of the assistant in `messages` that the policy learns. Each turn becomes one sequence, after all that was
    said before it."""
    chosen: str = "chosen"
    """Column with the better answer (preferences): text, a message of the assistant, or a whole conversation that ends
    with the answer. In the last case, `prompt` is not needed."""
    rejected: str = "rejected"
    """Column with the worse answer (preferences)."""
    margin: str | None = None
    """Column with a number of 0 or more: how much higher the reward of the better answer must be (preferences;
    arXiv:2402.10571)."""
    ranking: str | None = None
    """Column with a list of two or more answers, the best first, in place of `chosen` and `rejected` (preferences)."""
    on_bad_row: Literal["refuse", "drop"] = "refuse"
    """What happens if a row has an empty question, no reference, or a value of a wrong type: `refuse` names the rows
    and does not start, `drop` leaves them out and shows their number."""
    template: str = "{prompt}"
    """Text that the policy reads. `{prompt}` stands for the question, or for the user's last chat message; any other
    name in braces stands for a column (`{starter_code}`, `{extra_info.hint}`). A list is written one item per line."""
    system: str | None = None
    """System message; only a chat template has a place for it."""
    chat_template: Literal["auto", "never"] = "auto"
    """`auto` uses the tokenizer's chat template, if the tokenizer has a chat template."""
    limit: Positive | None = None
    """Number of rows to read; by default all."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The local files, folders and patterns; empty if the rows come from another place."""
        names = (self.path,) if isinstance(self.path, str) else self.path or ()
        return tuple(map(os.path.expanduser, names))


def _part(value: object) -> object:
    # For a union, pydantic would report an error for each of its types.
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    is_share = isinstance(value, float) and 0 < value < 1
    if value is None or is_count or is_share:
        return value
    raise ValueError("expected a number of questions (200), or a share between 0 and 1 (0.02)")


class TrainingRowsConfig(DatasetConfig):
    """Rows for training. A part of them may be held out."""

    validation: Annotated[int | float | None, BeforeValidator(_part)] = None
    """Questions that are held out for the evaluation and never trained on: a number (200), or a share (0.02). A hash of
    the question chooses them, alike in every run. Rows that repeat a held-out question are left out."""


class SourceConfig(TrainingRowsConfig):
    """A named source of rows. A key that a source does not give has the value of the same key of `data`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=50)]
    """Name of the source, for its metrics and for overrides (`data.sources.gsm8k.ratio=2`). Rows without a column
    `data_source` get a column of this name, with the name of their source, for `when` of a verifier."""
    ratio: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the source. After any number of prompts, a source has given the share ratio / (sum of all ratios) of
    them, exact to less than a prompt. A source that runs out begins its next epoch."""


class TrainingDataConfig(TrainingRowsConfig):
    """Rows for training, from a single source or from several."""

    sources: tuple[SourceConfig, ...] = ()
    """They replace `hub`, `path` and `generator`."""
    curriculum: CurriculumConfig | None = None
    """If set (`{}`), prompts are drawn by measured difficulty; by default in a shuffled order (docs/data.md)."""

    @model_validator(mode="before")
    @classmethod
    def _sources_inherit(cls, value: Any) -> Any:
        """Give each source the keys that it does not have itself."""
        if not isinstance(value, dict) or not isinstance(sources := value.get("sources"), list | tuple):
            return value
        common = {key: each for key, each in value.items() if key in TrainingRowsConfig.model_fields}
        common = {key: each for key, each in common.items() if key not in _PLACE}
        return {**value, "sources": [{**common, **each} if isinstance(each, dict) else each for each in sources]}

    @property
    def by_name(self) -> dict[str, TrainingRowsConfig]:
        """The sources by their names. The name of a single source without a name is empty."""
        return {source.name: source for source in self.sources} or {"": self}

    def section(self, name: str) -> str:
        """Return the config key of a source."""
        return f"data.sources.{name}" if name else "data"

    @property
    def shares(self) -> dict[str, float]:
        """The share of each source in the prompts."""
        ratios = {source.name: source.ratio for source in self.sources} or {"": 1.0}
        return {name: ratio / sum(ratios.values()) for name, ratio in ratios.items()}


# Keys that say where rows come from. A source does not take them from `data`.
_PLACE = ("hub", "subset", "files", "revision", "path", "generator", "options")


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
    return row_problems(where, data)


def training_data_problems(data: TrainingDataConfig) -> list[str]:
    """Find problems with the sources of training rows."""
    problems = list(data.curriculum.problems()) if data.curriculum else []
    if not data.sources:
        return problems + dataset_problems("data", data)
    problems += [
        f"data.{key} and data.sources both say where rows come from; move {key} into one of the sources"
        for key in _PLACE
        if getattr(data, key)
    ]
    names = [source.name for source in data.sources]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        problems.append(
            f"data.sources: {names.count(name)} sources have the name {name!r}; give each source another name"
        )
    for name, source in data.by_name.items():
        problems += dataset_problems(data.section(name), source)
    return problems


def row_problems(where: str, data: DatasetConfig) -> list[str]:
    """Find problems with the meaning of the columns. `where` is the name of the section."""
    problems = []
    if "{prompt}" not in data.template:
        problems.append(f"{where}.template must contain {{prompt}}, or the policy never sees the question")
    if data.choices and "{choices}" not in data.template:
        problems.append(f"{where}.template must contain {{choices}}, or the policy never sees the options")
    if data.choices and (data.choices.column is None) == (not data.choices.right or not data.choices.wrong):
        problems.append(
            f"{where}.choices needs either right and wrong (columns with an option each), or column (a list of options)"
        )
    if data.files and not data.hub:
        problems.append(f"{where}.files belong to a hub repository; name the repository with {where}.hub")
    if data.tools and not data.messages:
        problems.append(
            f"{where}.tools belong to conversations; name the column of these with {where}.messages. In `grpo train`, "
            "the key `tools` gives the policy its tools"
        )
    if data.messages and data.template != "{prompt}":
        problems.append(
            f"{where}.template has no place in whole conversations ({where}.messages); remove one of the two"
        )
    return problems
