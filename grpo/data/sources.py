"""The prompts of a training run: those of each source, and the part of them that is held out for the evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from grpo import config
from grpo.data.prompts import PromptSet, load_prompts
from grpo.data.rows import HubUnreachable
from grpo.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class SourcePrompts:
    """The prompts of a source.

    Attributes:
        training: prompts to train on.
        held_out: prompts that `validation` holds out; None without `validation`.
        repeating: number of prompts that are left out of `training`, as they repeat a held-out prompt of any source.
    """

    training: PromptSet
    held_out: PromptSet | None = None
    repeating: int = 0


def load_sources(
    data: config.TrainingDataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    unreachable: dict[str, HubUnreachable] | None = None,
) -> dict[str, SourcePrompts]:
    """Read the sources of a run, and hold out the questions of `validation`.

    Args:
        data: section of the configuration.
        tokenizer: tokenizer of the policy.
        max_tokens: largest length of a prompt, in tokens, including templates.
        unreachable: receives the sources for which the hub does not answer. If it is None, this is an error.

    Returns:
        The prompts of each source, by the name of the source; the name of a single source without a name is empty.

    Raises:
        HubUnreachable: the hub does not answer.
        ValueError: sources cannot be read as configured, or have too few questions; the message has the problems of all
            sources.
    """
    sets: dict[str, PromptSet] = {}
    problems: list[str] = []
    for name, source in data.by_name.items():
        try:
            where = data.section(name)
            sets[name] = load_prompts(source, tokenizer, max_tokens=max_tokens, where=where, name=name)
        except HubUnreachable as failure:
            if unreachable is None:
                raise
            unreachable[name] = failure
        except ValueError as failure:
            problems.append(f"data.sources.{name}: {failure}" if name else str(failure))
    if problems:
        raise ValueError("\n".join(problems))
    return _split(data, sets)


def merged(sets: Sequence[PromptSet]) -> PromptSet:
    """Return several sets of prompts as a single set, without the numbers and notes of each."""
    return sets[0] if len(sets) == 1 else PromptSet(tuple(prompt for each in sets for prompt in each.prompts), 0)


def parts_of(sources: Mapping[str, SourcePrompts]) -> dict[str, PromptSet]:
    """Return the prompts of each part of the data, by its name for messages: `training`, `gsm8k training`, ..."""
    parts = {part_name(name, "training"): source.training for name, source in sources.items()}
    return parts | {part_name(name, "held-out"): source.held_out for name, source in sources.items() if source.held_out}


def split_lines(name: str, source: SourcePrompts) -> Iterator[str]:
    """Yield the message about the held-out part of a source, if it has such a part or repeats the part of another."""
    if source.held_out or source.repeating:
        held_out = len(source.held_out.prompts) if source.held_out else 0
        yield (
            f"{part_name(name, 'training')}: {held_out:,} questions are held out for the evaluation (data.validation); "
            f"{source.repeating:,} rows repeat a held-out question and are left out"
        )


def part_name(name: str, kind: str) -> str:
    """Return the name of a part of the data: `training`, or `gsm8k training` for a source that has a name."""
    return f"{name} {kind}" if name else kind


def _split(data: config.TrainingDataConfig, sets: Mapping[str, PromptSet]) -> dict[str, SourcePrompts]:
    held_out = {
        name: _held_out(prompts, data.by_name[name].validation, f"{data.section(name)}.validation")
        for name, prompts in sets.items()
    }
    texts = {prompt.text for prompts in held_out.values() for prompt in prompts}
    parts: dict[str, SourcePrompts] = {}
    for name, prompts in sets.items():
        training = tuple(prompt for prompt in prompts.prompts if prompt.text not in texts)
        if not training:
            raise ValueError(
                f"all {len(prompts.prompts)} prompts of {data.section(name)} repeat questions that are held out; lower "
                "validation of the other sources, or remove this source"
            )
        parts[name] = SourcePrompts(
            replace(prompts, prompts=training),
            PromptSet(held_out[name], 0) if held_out[name] else None,
            len(prompts.prompts) - len(training) - len(held_out[name]),
        )
    return parts


def _held_out(prompts: PromptSet, part: float | None, key: str) -> tuple[Prompt, ...]:
    """The first prompt with each of the chosen texts."""
    first: dict[str, Prompt] = {}
    for prompt in prompts.prompts:
        first.setdefault(prompt.text, prompt)
    chosen = held_out_texts(list(first), part, key)
    return tuple(prompt for text, prompt in first.items() if text in chosen)


def held_out_texts(texts: Sequence[str], part: float | None, key: str) -> set[str]:
    """Choose the questions that are held out.

    Args:
        texts: questions; a question may stand there several times.
        part: number of different questions, or a share of them; None to hold out none.
        key: config key with the part, for errors.

    Raises:
        ValueError: no question is left for training.
    """
    if part is None:
        return set()
    different = set(texts)
    count = part if isinstance(part, int) else max(1, round(part * len(different)))
    if count >= len(different):
        raise ValueError(f"{key}={part} leaves no question for training, of {len(different)} different ones; lower it")
    # A hash orders the questions. So the part does not depend on the order of the rows or on the run's seed, and a
    # policy that another run trained on these data has not seen it either.
    return set(sorted(different, key=lambda text: hashlib.blake2b(text.encode()).digest())[:count])
