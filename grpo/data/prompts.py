"""Read a data source as prompts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from grpo import config
from grpo.data.chat import asked_text, render, require_plain, uses_chat_template
from grpo.data.described import describe
from grpo.data.rows import source_name
from grpo.types import Prompt
from rewards.checks.gold_forms import GoldRow
from rewards.judging import columns_of
from rewards.named_code import first_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Column with the name of a row's source, as verl calls it.
SOURCE_COLUMN = "data_source"


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special: bool) -> list[list[int]]:
    """Return the tokens of each text; with `special`, the tokenizer adds its special tokens."""
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=special)["input_ids"]]


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts that fit the length limit.

    Attributes:
        prompts: the prompts.
        dropped: number of prompts that are too long.
        left_out: number of bad rows that are left out, for each kind of problem (`data.on_bad_row=drop`).
        notes: how many rows repeat a question.
        contradictions: warning about questions with different reference answers; empty if there are none.
    """

    prompts: tuple[Prompt, ...]
    dropped: int
    left_out: Counter[str] = field(default_factory=Counter)
    notes: tuple[str, ...] = ()
    contradictions: str = ""


def load_prompts(
    source: config.DatasetConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    where: str = "data",
    name: str = "",
) -> PromptSet:
    """Read a source as prompts. Drop and count the prompts longer than `max_tokens`.

    Args:
        source: section of the configuration.
        tokenizer: tokenizer of the policy.
        max_tokens: largest length of a prompt, in tokens, including templates.
        where: name of the section, for errors.
        name: name of the source, if there are several sources. The ids of its prompts begin with it, and its rows get
            the column `data_source` with it, unless they have such a column.

    Raises:
        ValueError: columns are missing, rows cannot be used, messages have no chat template, or no prompt fits.
    """
    described = describe(source, where)
    rows = described.rows
    require_plain(source, tokenizer, [row.question for row in rows], where)
    texts = render(source, tokenizer, [row.messages for row in rows], where=where)
    # A chat template writes the special tokens itself.
    token_ids = tokenize(tokenizer, texts, special=not uses_chat_template(source, tokenizer))
    named = {SOURCE_COLUMN: name} if name else {}
    prompts = tuple(
        Prompt(
            f"{name}:{row.id}" if name else row.id,
            text,
            tuple(ids),
            row.reference,
            columns_of(asked_text(row.messages), named | row.row),
            name,
            tuple(row.messages),
        )
        for row, text, ids in zip(rows, texts, token_ids, strict=True)
        if 0 < len(ids) <= max_tokens
    )
    if not prompts:
        raise ValueError(
            f"none of the {len(texts)} prompts of {first_name(source_name(source))} has between 1 and "
            f"rollout.max_prompt_tokens={max_tokens} tokens; the shortest has {min(map(len, token_ids))}"
        )
    return PromptSet(prompts, len(texts) - len(prompts), described.left_out, described.notes, described.contradictions)


def check_prompt_count(
    prompts: PromptSet, rollout: config.RolloutConfig, left_out: int = 0, *, name: str = "", share: float = 1.0
) -> None:
    """Refuse data with so few prompts that a step would ask the same question twice.

    Args:
        prompts: prompts that fit the length limit.
        rollout: section with the number of prompts per step.
        left_out: number of prompts without a usable reference answer. Training does not use them.
        name: name of the source, if there are several sources.
        share: share of the source in the prompts of a step.

    Raises:
        ValueError: there are fewer prompts than a step needs.
    """
    count, needed = len(prompts.prompts) - left_out, math.ceil(round(rollout.prompts_per_step * share, 9))
    if count < needed:
        usable = " and have a reference that can be used" if left_out else ""
        of = f"the source {name!r}" if name else "the data"
        part = f"its {needed} of " if name else ""
        remedy = "lower it or its ratio, or add data" if name else "lower it or add data"
        raise ValueError(
            f"{of} has {count} prompts that fit{usable}, fewer than {part}rollout.prompts_per_step="
            f"{rollout.prompts_per_step}: a step would ask the same question twice; {remedy}"
        )


def gold_rows(prompts: PromptSet) -> list[GoldRow]:
    """Return the prompts' reference answers, with the columns that a run gives to the verifiers."""
    return [GoldRow(each.reference, each.row, each.id) for each in prompts.prompts]
