"""Read a data source as prompts or as supervised rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from grpo import config
from grpo.algorithm.packing import TrainingSequence
from grpo.data.chat import asked_texts, render, response_text
from grpo.data.rows import column, load_rows, source_name
from grpo.types import Prompt
from rewards.checks.gold_forms import GoldRow
from rewards.judging import columns_of
from rewards.named_code import first_name


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special: bool) -> list[list[int]]:
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=special)["input_ids"]]


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts that fit the length limit, and the number of prompts that do not fit."""

    prompts: tuple[Prompt, ...]
    dropped: int


def load_prompts(
    source: config.DatasetConfig, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int, where: str = "data"
) -> PromptSet:
    """Read a source as prompts. Drop and count the prompts longer than `max_tokens`.

    Args:
        source: section of the configuration.
        tokenizer: tokenizer of the policy.
        max_tokens: largest length of a prompt, in tokens, including templates.
        where: name of the section, for errors.

    Raises:
        ValueError: a column is missing, a cell is empty, a question is neither text nor chat messages, messages have no
            chat template, or no prompt fits.
    """
    rows = load_rows(source, where)
    questions = column(rows, source.prompt, f"{where}.prompt")
    references = column(rows, source.reference, f"{where}.reference")
    texts = render(source, tokenizer, questions, where=where)
    problems = asked_texts(source, questions, where=where)
    # A chat template writes the special tokens itself.
    chat = source.chat_template == "auto" and bool(tokenizer.chat_template)
    token_ids = _tokenize(tokenizer, texts, special=not chat)
    name = first_name(source_name(source))
    prompts = tuple(
        Prompt(f"{name}:{index}", text, tuple(ids), reference, columns_of(problem, row))
        for index, (text, ids, reference, problem, row) in enumerate(
            zip(texts, token_ids, references, problems, rows.to_list(), strict=True)
        )
        if 0 < len(ids) <= max_tokens
    )
    if not prompts:
        raise ValueError(
            f"none of the {len(texts)} prompts of {name} has between 1 and rollout.max_prompt_tokens={max_tokens} "
            f"tokens; the shortest has {min(map(len, token_ids))}"
        )
    return PromptSet(prompts, len(texts) - len(prompts))


def load_supervised(
    source: config.DatasetConfig, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> tuple[tuple[TrainingSequence, ...], int]:
    """Read a source as prompt-and-response sequences. Only the response and its end token carry loss.

    Returns:
        The sequences, and the number of dropped rows, which are longer than `max_tokens`.

    Raises:
        ValueError: a column is missing, a cell is empty, a question or response is neither text nor chat messages, the
            tokenizer has no end token, or no row fits.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-sequence token, so a policy could not learn to stop")
    rows = load_rows(source)
    questions = column(rows, source.prompt, "data.prompt")
    responses = [
        response_text(response, f"row {index}: column {source.response!r} (data.response)")
        for index, response in enumerate(column(rows, source.response, "data.response"))
    ]
    chat = source.chat_template == "auto" and bool(tokenizer.chat_template)
    prompt_ids = _tokenize(tokenizer, render(source, tokenizer, questions), special=not chat)
    response_ids = _tokenize(tokenizer, responses, special=False)
    sequences = tuple(
        TrainingSequence((*prompt, *response, tokenizer.eos_token_id), len(prompt), (0.0,) * (len(response) + 1), 0.0)
        for prompt, response in zip(prompt_ids, response_ids, strict=True)
        if prompt and len(prompt) + len(response) < max_tokens
    )
    if not sequences:
        shortest = min(
            len(prompt) + len(response) + 1 for prompt, response in zip(prompt_ids, response_ids, strict=True)
        )
        raise ValueError(
            f"none of the {len(responses)} rows fits sft.max_tokens={max_tokens}; the shortest has {shortest} tokens"
        )
    return sequences, len(responses) - len(sequences)


def check_prompt_count(prompts: PromptSet, rollout: config.RolloutConfig, left_out: int = 0) -> None:
    """Refuse data with so few prompts that a step would ask the same question twice.

    Args:
        prompts: prompts that fit the length limit.
        rollout: section with the number of prompts per step.
        left_out: number of prompts without a usable reference answer. Training does not use them.

    Raises:
        ValueError: there are fewer prompts than a step needs.
    """
    count = len(prompts.prompts) - left_out
    if count < rollout.prompts_per_step:
        usable = " and have a reference that can be used" if left_out else ""
        raise ValueError(
            f"the data has {count} prompts that fit{usable}, fewer than rollout.prompts_per_step="
            f"{rollout.prompts_per_step}: a step would ask the same question twice; lower it or add data"
        )


def gold_rows(prompts: PromptSet) -> list[GoldRow]:
    """Return the prompts' reference answers, with the columns that a run gives to the verifiers."""
    return [GoldRow(each.reference, each.row, each.id) for each in prompts.prompts]
