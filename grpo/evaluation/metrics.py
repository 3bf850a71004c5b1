"""Compute a task's metrics from its stored completions. Pure functions: equal tables give exactly equal metrics."""

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
    """The metrics of a task.

    Attributes:
        task: name of the task.
        problems: number of problems.
        k: number of completions for each problem and seed.
        seeds: seeds of the evaluation.
        completions: number of completions in total.
        statuses: status of the verdict -> number of completions.
        estimates: name -> estimate. The names are `accuracy`, `avg@k`, `pass@j`, `maj@k`, `completion_tokens`,
            `truncated` and `status/...`.
        accuracy_by_seed: seed -> accuracy of the completions with this seed.
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
        """Return plain data in the format of `metrics.json`."""
        by_seed = {str(seed): value for seed, value in self.accuracy_by_seed.items()}
        return {**asdict(self), "seeds": list(self.seeds), "accuracy_by_seed": by_seed}


def task_metrics(task: str, rows: Sequence[Judged], *, votes: bool) -> TaskMetrics:
    """Compute the metrics of a task.

    A verdict with the status `timeout` or `error` says nothing about its completion. Accuracy, pass@k and votes ignore
    such a verdict; `statuses` counts it. Estimates are means over problems. If a problem has no data for an estimate,
    the estimate ignores this problem.

    Args:
        task: name of the task.
        rows: table of the task.
        votes: whether the task's answers can vote. If so, the metrics include maj@k.

    Raises:
        ValueError: there is no completion, or every verdict is a failure of the verifier.
    """
    by_problem: dict[str, list[Judged]] = {}
    for row in rows:
        by_problem.setdefault(row.record.problem, []).append(row)
    groups = list(by_problem.values())
    seeds = tuple(dict.fromkeys(row.record.seed for row in rows))
    if not rows:
        raise ValueError(f"{task}: there is no completion to compute metrics from")
    if all(row.record.status.failed for row in rows):
        raise ValueError(f"{task}: every verdict is a failure of the verifier, the first: {rows[0].record.reason}")
    k = max(row.record.sample for row in rows) + 1
    known = [[row.record.correct for row in group if not row.record.status.failed] for group in groups]
    accuracy = mean_estimate([sum(verdicts) / len(verdicts) for verdicts in known if verdicts])
    estimates = {"accuracy": accuracy}
    if k > 1:
        estimates[f"avg@{k}"] = accuracy
    most = min(max(len(verdicts) for verdicts in known), k * len(seeds))
    for j in [2**power for power in range(1, most.bit_length()) if 2**power < most] + [most] * (most > 1):
        estimates[f"pass@{j}"] = mean_estimate(
            [pass_at_k(len(verdicts), sum(verdicts), j) for verdicts in known if len(verdicts) >= j]
        )
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
    """Return problem id -> (number of correct completions, number of known verdicts).

    Problems without a known verdict are absent.
    """
    solved: dict[str, tuple[int, int]] = {}
    for row in rows:
        if not row.record.status.failed:
            right, known = solved.get(row.record.problem, (0, 0))
            solved[row.record.problem] = right + row.record.correct, known + 1
    return solved


def _majority(group: Sequence[Judged], seeds: Sequence[int]) -> float:
    """Return the mean over seeds. The completions of each seed vote separately."""
    outcomes = []
    for seed in seeds:
        of_seed = [row for row in group if row.record.seed == seed]
        classes = [None if row.record.status.failed else row.answer_class for row in of_seed]
        outcomes.append(majority_is_correct(classes, [row.record.correct for row in of_seed]))
    return statistics.fmean(outcomes)


def _mean(groups: Sequence[Sequence[Judged]], measure: Callable[[Judged], float]) -> Estimate:
    return mean_estimate([statistics.fmean(float(measure(row)) for row in group) for group in groups])


def _has_status(status: Status, row: Judged) -> float:
    return float(row.record.status is status)


def _by_seed(groups: Sequence[Sequence[Judged]], seeds: Sequence[int]) -> dict[int, float]:
    accuracies = {}
    for seed in seeds:
        shares = [
            statistics.fmean(known)
            for group in groups
            if (known := [r.record.correct for r in group if r.record.seed == seed and not r.record.status.failed])
        ]
        if shares:
            accuracies[seed] = statistics.fmean(shares)
    return accuracies
