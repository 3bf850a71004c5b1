"""The groups that each step was trained on: one line of `ledger.jsonl` per step.

An example: `{"step": 3, "groups": [{"prompt": "train:17", "versions": [2, 2], "sample": "9f3c..."}, ...]}`.

A resumed run removes the lines of later steps, just as it removes later metrics. The file shows that no group was lost
or used twice. It covers every step, including steps whose rollouts are not stored.
"""

from __future__ import annotations

import collections
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from grpo.report import run_files
from grpo.report.json_lines import JsonLines, complete_lines
from grpo.types import Group


@dataclass(frozen=True, slots=True)
class TrainedGroup:
    """A group that a step was trained on.

    Attributes:
        step: the step, from 1.
        prompt: the prompt's id.
        versions: the first and the last policy version that sampled tokens of the group.
        sample: fingerprint of the sampled tokens.
    """

    step: int
    prompt: str
    versions: tuple[int, int]
    sample: str


class Ledger(JsonLines):
    """The ledger file. Each step appends one line to it."""

    def __init__(self, run_dir: Path) -> None:
        """Open a run's ledger. A missing file is created."""
        super().__init__(run_dir / run_files.LEDGER)

    def append(self, step: int, groups: Sequence[Group]) -> None:
        """Write the groups that `step` was trained on."""
        self.write(json.dumps({"step": step, "groups": [_entry(group) for group in groups]}) + "\n")


def read_ledger(run_dir: Path) -> list[TrainedGroup]:
    """Every trained group of a run, in the order of its steps."""
    records = [json.loads(line) for line in complete_lines(run_dir / run_files.LEDGER)]
    return [
        TrainedGroup(record["step"], group["prompt"], (group["versions"][0], group["versions"][1]), group["sample"])
        for record in records
        for group in record["groups"]
    ]


def ledger_problems(trained: Sequence[TrainedGroup], drawn: Sequence[str], open_at_most: int = 0) -> list[str]:
    """List the problems of a ledger. The list is empty if each prompt was trained on as often as it was drawn.

    Args:
        trained: groups of the ledger.
        drawn: ids of prompts in the order in which the data gave them; at least as many ids as trained groups.
        open_at_most: number of groups that may be in progress at the end of the ledger; 0 if steps do not overlap.
    """
    problems = []
    steps = list(dict.fromkeys(group.step for group in trained))
    if steps != list(range(1, len(steps) + 1)):
        problems.append(f"steps do not follow one another from 1: {steps[:20]}")
    used = collections.Counter(group.prompt for group in trained)
    # Take the shortest prefix of the draws that contains every trained prompt. Other prompts in this prefix were
    # lost or are still in progress.
    unmatched, length = +used, 0
    while unmatched and length < len(drawn):
        unmatched -= collections.Counter([drawn[length]])
        length += 1
    problems += [
        f"prompt {prompt} was trained on {count} times more than it was drawn" for prompt, count in unmatched.items()
    ]
    unused = length - (len(trained) - unmatched.total())
    if unused > open_at_most:
        lost = collections.Counter(drawn[:length]) - used
        problems.append(f"{unused} of the first {length} groups drawn were never trained on, such as {[*lost][:5]}")
    return problems


def _entry(group: Group) -> Mapping[str, object]:
    completions = [rollout.completion for rollout in group.rollouts]
    versions = [span.policy_version for completion in completions for span in completion.spans]
    tokens = [list(completion.token_ids) for completion in completions]
    tokens += [list(part.token_ids) for completion in completions for part in completion.further]
    return {
        "prompt": group.prompt.id,
        "versions": [min(versions, default=-1), max(versions, default=-1)],
        "sample": hashlib.blake2b(json.dumps(tokens).encode(), digest_size=8).hexdigest(),
    }
