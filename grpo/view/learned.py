"""Compare the policy at two steps: its completions of the same prompts, and every metric."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from grpo.report import run_files
from grpo.report.metrics_log import History
from grpo.report.rollout_store import StoredGroup, StoredRollout, plain, read_groups, stored_steps
from grpo.view.runs import RunData, shown
from rewards.verdict import Status

# How the mean reward of a prompt changed, and how the share of its correct completions changed.
REWARD_CHANGES = ("higher", "lower", "same", "unknown")
CORRECT_CHANGES = ("more", "fewer", "same", "unknown")
_MOST_COMPARED = 200


def learned(run: RunData, before: int, after: int) -> dict[str, Any]:
    """Compare two steps. The prompts that changed most come first.

    If both steps have stored held-out answers, these answers are compared. Otherwise the function takes the training
    prompts that occurred at least twice between the two steps, and compares their first and last groups.

    Raises:
        ValueError: `before` is not an earlier step than `after`.
    """
    if before >= after:
        raise ValueError(f"the first step must come before the second, got {before} and {after}")
    evaluated = stored_steps(run.run_dir, run_files.EVALUATIONS)
    if before in evaluated and after in evaluated:
        source = "held-out"
        later = {group.prompt_id: group for group in read_groups(run.run_dir, after, run_files.EVALUATIONS)}
        earlier = read_groups(run.run_dir, before, run_files.EVALUATIONS)
        pairs = [(group, later[group.prompt_id]) for group in earlier if group.prompt_id in later]
    else:
        source, pairs = "training", _repeated(run, before, after)
    compared = sorted((_compare(*pair) for pair in pairs), key=lambda prompt: -abs(prompt["gain"] or 0.0))
    return shown(
        {
            "source": source,
            "before": before,
            "after": after,
            "completions": max((prompt[side]["of"] for prompt in compared for side in ("before", "after")), default=0),
            "reward_changes": _counts(compared, "reward_change", REWARD_CHANGES),
            "correct_changes": _counts(compared, "correct_change", CORRECT_CHANGES),
            "prompts": compared[:_MOST_COMPARED],
            "metrics": _differences(run.history, before, after),
        }
    )


def _repeated(run: RunData, before: int, after: int) -> list[tuple[StoredGroup, StoredGroup]]:
    snapshot = run.indexes["training"].snapshot
    steps_N, groups_N = snapshot.step_N.tolist(), snapshot.groups_N.tolist()
    places: dict[str, list[tuple[int, int]]] = {}
    for name, step, group in zip(snapshot.prompt_id_N.to_pylist(), steps_N, groups_N, strict=True):
        if before <= step <= after:
            places.setdefault(name, []).append((step, group))
    ends = [(members[0], members[-1]) for members in places.values() if members[0][0] < members[-1][0]]
    # For each prompt, two files must be read, so the number of prompts is limited. Prompts with the longest distance
    # between their two steps come first.
    ends = sorted(ends, key=lambda pair: pair[0][0] - pair[1][0])[:_MOST_COMPARED]
    stored = {
        (step, stored_group.index): stored_group
        for step in {place[0] for pair in ends for place in pair}
        for stored_group in read_groups(run.run_dir, step)
    }
    return [(stored[first], stored[last]) for first, last in ends]


def _compare(before: StoredGroup, after: StoredGroup) -> dict[str, Any]:
    sides = [_side(before), _side(after)]
    gain = _gain(sides, "reward")
    return {
        "prompt_id": before.prompt_id,
        "prompt": before.prompt,
        "reference": plain(before.reference),
        "reward_change": _change(gain, REWARD_CHANGES),
        "correct_change": _change(_gain(sides, "correct"), CORRECT_CHANGES),
        "gain": gain,
        "before": sides[0],
        "after": sides[1],
    }


def _gain(sides: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The change of a number. If every verdict of a side failed, the number of this side and the change are unknown."""
    before, after = (side[name] for side in sides)
    return None if before is None or after is None else after - before


def _change(gain: float | None, names: Sequence[str]) -> str:
    more, less, same, unknown = names
    return unknown if gain is None else more if gain > 1e-9 else less if gain < -1e-9 else same


def _counts(compared: Sequence[Mapping[str, Any]], name: str, changes: Sequence[str]) -> dict[str, int]:
    return {change: sum(prompt[name] == change for prompt in compared) for change in changes}


def _side(group: StoredGroup) -> dict[str, Any]:
    rewards = [rollout.reward for rollout in group.rollouts if rollout.reward is not None]
    mean = sum(rewards) / len(rewards) if rewards else None
    # The first verifier that judges a row decides whether a completion is correct, as in `rollout/accuracy`.
    said = [Status(rollout.verdicts[0].status) for rollout in group.rollouts]
    judged = [status for status in said if not status.failed]
    # Show the completion with the reward nearest to the mean: neither the best nor the worst.
    nearest: StoredRollout = min(
        group.rollouts,
        key=lambda rollout: math.inf if rollout.reward is None or mean is None else abs(rollout.reward - mean),
    )
    return {
        "step": group.step,
        "group": group.index,
        "reward": mean,
        "correct": judged.count(Status.CORRECT) / len(judged) if judged else None,
        "known": len(rewards),
        "of": len(group.rollouts),
        "completion": nearest.completion,
        "completion_tokens": nearest.completion_tokens,
        "status": nearest.verdicts[0].status,
        "reason": nearest.verdicts[0].reason,
    }


def _differences(history: History, before: int, after: int) -> list[dict[str, Any]]:
    rows = []
    for name in history.names():
        curve = history.curve(name).finite()
        # Some metrics are not measured at every step. Take the last value up to the step, otherwise the first value.
        first, last = (max(0, bisect.bisect_right(curve.steps, step) - 1) for step in (before, after))
        if name != "time/run_s" and first < last:
            old, new = curve.values[first], curve.values[last]
            rows.append({"name": name, "before": old, "after": new, "difference": new - old})
    return rows
