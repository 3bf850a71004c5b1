"""A small run with stored groups, for labelling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fake_run import make_rollout

from grpo.report.rollout_store import write_step
from grpo.types import Group, Prompt
from rewards.verdict import Verdict, correct, wrong


def write_groups(run_dir: Path, groups: Mapping[str, Sequence[str]], verifier: str = "answer") -> Path:
    """Store groups: prompt -> answers. An answer with `good` in it is correct."""
    stored = [
        Group(
            Prompt(f"rows:{number}", f"<chat>{prompt}", (1,), "ref", {"problem": prompt}),
            tuple(make_rollout(text, {verifier: judged(text)}) for text in answers),
        )
        for number, (prompt, answers) in enumerate(groups.items())
    ]
    write_step(run_dir, 1, stored, [[0.0] * len(group.rollouts) for group in stored])
    return run_dir


def judged(text: str) -> Verdict:
    return correct() if "good" in text else wrong()
