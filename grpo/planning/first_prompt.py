"""The part of `grpo check` that shows the first prompt, or the first supervised row, exactly as the policy reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding

from grpo.algorithm.packing import TrainingSequence
from grpo.data.supervised import SupervisedTurn
from grpo.terminal import literal
from grpo.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from grpo.algorithm.comparisons import AnswerComparison

# Characters of a prompt and of a reference that are shown without `--full`.
_PROMPT_CHARACTERS, _REFERENCE_CHARACTERS = 2_000, 200


def as_read(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text of a prompt's tokens, with the special tokens that the tokenizer or the chat template adds."""
    return _decoded(prompt.token_ids, tokenizer)


def _decoded(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def show_first_prompt(
    name: str, prompt: Prompt, tokenizer: PreTrainedTokenizerBase, console: Console, *, full: bool
) -> None:
    """Print a prompt, each line after a bar, and its reference answer.

    Args:
        name: part of the data.
        prompt: prompt to show.
        tokenizer: tokenizer of the policy.
        console: console to print to.
        full: True to print all of it, however long.
    """
    text = as_read(prompt, tokenizer)
    console.print(literal(f"first {name} prompt, as the policy reads it ({len(prompt.token_ids):,} tokens)", "bold"))
    print_lines(text, _PROMPT_CHARACTERS, console, full=full)
    if prompt.text not in text:
        console.print(literal("  its text, which the tokenizer changes", "yellow"))
        print_lines(prompt.text, _PROMPT_CHARACTERS, console, full=full)
    console.print(literal("  its reference answer", "dim"))
    print_lines(str(prompt.reference), _REFERENCE_CHARACTERS, console, full=full)


def show_first_row(row: TrainingSequence, tokenizer: PreTrainedTokenizerBase, console: Console, *, full: bool) -> None:
    """Print a supervised row: what the policy reads, each line after a bar, and what it learns, each line after `>`.

    Args:
        row: row to show.
        tokenizer: tokenizer of the policy.
        console: console to print to.
        full: True to print all of it, however long.
    """
    read, learned = row.token_ids[: row.prompt_length], row.token_ids[row.prompt_length :]
    console.print(literal(f"first training row, as the policy reads it ({len(row.token_ids):,} tokens)", "bold"))
    print_lines(_decoded(read, tokenizer), _PROMPT_CHARACTERS, console, full=full)
    console.print(literal(f"  the part that carries loss ({len(learned):,} tokens, with the end token)", "dim"))
    print_lines(_decoded(learned, tokenizer), _PROMPT_CHARACTERS, console, full=full, mark="> ")


def show_first_comparison(
    comparison: AnswerComparison, tokenizer: PreTrainedTokenizerBase, console: Console, *, full: bool
) -> None:
    """Print a comparison: what the policy reads, each line after a bar, and its answers, each line after `>`.

    Args:
        comparison: comparison to show.
        tokenizer: tokenizer of the policy.
        console: console to print to.
        full: True to print all of it, however long.
    """
    first = comparison.answers[0]
    read = first.token_ids[: first.prompt_length]
    console.print(literal(f"first comparison, as the policy reads it ({len(read):,} tokens)", "bold"))
    print_lines(_decoded(read, tokenizer), _PROMPT_CHARACTERS, console, full=full)
    for place, answer in enumerate(comparison.answers, start=1):
        learned = answer.token_ids[answer.prompt_length :]
        name = "the best answer" if place == 1 else f"answer {place} of {len(comparison.answers)}"
        console.print(literal(f"  {name} ({len(learned):,} tokens, with the end token)", "dim"))
        print_lines(_decoded(learned, tokenizer), _PROMPT_CHARACTERS, console, full=full, mark="> ")


def show_first_turn(turn: SupervisedTurn, console: Console, *, full: bool) -> None:
    """Print a supervised row of a policy that has no tokenizer yet, as `show_first_row` does."""
    console.print(literal("first training row, as the policy reads it", "bold"))
    print_lines(str(turn.messages[-1]["content"]), _PROMPT_CHARACTERS, console, full=full)
    console.print(literal("  the part that carries loss (the end token follows it)", "dim"))
    print_lines(turn.response, _PROMPT_CHARACTERS, console, full=full, mark="> ")


def print_lines(text: str, most: int, console: Console, *, full: bool, mark: str = "| ") -> None:
    """Print the lines of a text, each after a mark; without `full`, at most `most` characters."""
    cut = len(text) - most if not full and len(text) > most else 0
    for line in text[: len(text) - cut].split("\n"):
        console.print(Padding(literal(mark, "dim") + literal(line, "" if mark == "| " else "green"), (0, 0, 0, 2)))
    if cut:
        console.print(literal(f"  ... and {cut:,} more characters; --full prints them", "yellow"))


def unknown_characters(name: str, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a warning if the tokenizer does not know some characters of the prompts; empty if it knows all."""
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return ""
    hit = [prompt for prompt in prompts if unknown in prompt.token_ids]
    if not hit:
        return ""
    return (
        f"{len(hit):,} of {len(prompts):,} {name} prompts have characters that the tokenizer does not know, so the "
        f"policy reads {tokenizer.unk_token} instead; the first is {hit[0].id}. Take a policy whose tokenizer knows "
        "them, or remove them from the data or from data.template"
    )
