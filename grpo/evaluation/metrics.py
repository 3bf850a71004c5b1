"""From a task's stored completions to its numbers. Pure: the same table gives the same numbers, to the last digit."""

from __future__ import annotations

import functools
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from grpo.evaluation.statistics import Estimate, majority_is_correct, mean_estimate, pass_at_k
from grpo.evaluation.store import Judged
from rewards.verdict import Status


@dataclass(frozen=True, slots=True)
class TaskMetrics:
    """The numbers of one task.

    Attributes:
        task: its name.
        problems: how many.
        k: completions for each problem and seed.
        seeds: the evaluation's.
        completions: how many there are in all.
        statuses: completions by the status of their verdict.
        estimates: by name: `accuracy`, `avg@k`, `pass@j`, `maj@k`, `completion_tokens`, `truncated`, `status/...`.
        accuracy_by_seed: what each seed alone says.
    """

    task: str
    problems: int
    k: int
    seeds: tuple[int, ...]
    completions: int
    statuses: Mapping[str, int]
    estimates: Mapping[str, Estimate]
    accuracy_by_seed: Mapping[int, float]

    def as_json(self) -> dict[str, Any]:
        """Plain data, as `metrics.json` has it."""
        by_seed = {str(seed): value for seed, value in self.accuracy_by_seed.items()}
        return {**asdict(self), "seeds": list(self.seeds), "accuracy_by_seed": by_seed}


def task_metrics(task: str, rows: Sequence[Judged], *, votes: bool) -> TaskMetrics:
    """The numbers of one task.

    A verdict of status `timeout` or `error` says nothing of its completion: it is left out of accuracy, pass@k and
    votes, and counted. Estimates are means over problems; one that has nothing to say of a problem leaves it out.

    Args:
        task: its name.
        rows: its table.
        votes: the task's answers can vote, so that there is a maj@k.

    Raises:
        ValueError: there is no completion, or no verdict that is none of the machinery's failures.
    """
    by_problem: dict[str, list[Judged]] = {}
    for row in rows:
        by_problem.setdefault(row.record.problem, []).append(row)
    groups = list(by_problem.values())
    seeds = tuple(dict.fromkeys(row.record.seed for row in rows))
    if not rows:
        raise ValueError(f"{task}: there is no completion to make numbers of")
    if all(row.record.status.failed for row in rows):
        raise ValueError(f"{task}: every verdict is a failure of the verifier, the first: {rows[0].record.reason}")
    k = max(row.record.sample for row in rows) + 1
    known = [[row.record.correct for row in group if not row.record.status.failed] for group in groups]
    accuracy = mean_estimate([sum(one) / len(one) for one in known if one])
    estimates = {"accuracy": accuracy}
    if k > 1:
        estimates[f"avg@{k}"] = accuracy
    most = min(max(len(one) for one in known), k * len(seeds))
    for j in [2**power for power in range(1, most.bit_length()) if 2**power < most] + [most] * (most > 1):
        estimates[f"pass@{j}"] = mean_estimate([pass_at_k(len(one), sum(one), j) for one in known if len(one) >= j])
    if votes and k > 1:
        estimates[f"maj@{k}"] = mean_estimate([_majority(group, seeds) for group in groups])
    estimates["completion_tokens"] = mean_estimate(
        [statistics.fmean(row.record.completion_tokens for row in group) for group in groups], shares=False
    )
    estimates["truncated"] = _mean(groups, lambda row: row.record.finish_reason == "length")
    statuses = Counter(row.record.status.value for row in rows)
    for status in Status:
        estimates[f"status/{status.value}"] = _mean(groups, functools.partial(_has_status, status))
    return TaskMetrics(
        task,
        len(groups),
        k,
        seeds,
        len(rows),
        {status.value: statuses[status.value] for status in Status},
        estimates,
        _by_seed(groups, seeds),
    )


def solved_share(rows: Sequence[Judged]) -> dict[str, tuple[int, int]]:
    """Correct completions of each problem and how many are known, by the problem's id; unknown problems are absent."""
    found: dict[str, tuple[int, int]] = {}
    for row in rows:
        if not row.record.status.failed:
            right, of = found.get(row.record.problem, (0, 0))
            found[row.record.problem] = right + row.record.correct, of + 1
    return found


def _majority(group: Sequence[Judged], seeds: Sequence[int]) -> float:
    """Mean over seeds: each seed's completions vote among themselves."""
    found = []
    for seed in seeds:
        own = [row for row in group if row.record.seed == seed]
        classes = [None if row.record.status.failed else row.answer_class for row in own]
        found.append(majority_is_correct(classes, [row.record.correct for row in own]))
    return statistics.fmean(found)


def _mean(groups: Sequence[Sequence[Judged]], measure: Callable[[Judged], float]) -> Estimate:
    return mean_estimate([statistics.fmean(float(measure(row)) for row in group) for group in groups])


def _has_status(status: Status, row: Judged) -> float:
    return float(row.record.status is status)


def _by_seed(groups: Sequence[Sequence[Judged]], seeds: Sequence[int]) -> dict[int, float]:
    found = {}
    for seed in seeds:
        shares = [
            statistics.fmean(known)
            for group in groups
            if (known := [r.record.correct for r in group if r.record.seed == seed and not r.record.status.failed])
        ]
        if shares:
            found[seed] = statistics.fmean(shares)
    return found
