"""Compute a task's metrics from its stored completions. Pure functions: equal tables give exactly equal metrics."""

from __future__ import annotations

import functools
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from grpo.evaluation.questions import NO_COMPLETION
from grpo.evaluation.statistics import Estimate, majority_is_correct, mean_estimate, pass_at_k
from grpo.evaluation.store import Judged
from grpo.visible import one_line
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
            `truncated`, `turns` and `calls` of conversations, `status/...`, and the task's measures.
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


def check_failures(task: str, rows: Sequence[Judged], most: float) -> None:
    """Refuse to compute metrics from a table with too many failures.

    Args:
        task: name of the task.
        rows: table of the task.
        most: largest share of completions without a verdict (`max_failure_share`).

    Raises:
        RuntimeError: the share is larger. The message says what failed, server or verifier, and what to do.
    """
    failed = [row.record for row in rows if row.record.status.failed]
    if len(failed) <= most * len(rows):
        return
    refused = [record for record in failed if record.finish_reason == "refused"]
    ended = [record for record in failed if record.finish_reason == "failed"]
    unjudged = [record for record in failed if record.finish_reason not in NO_COMPLETION]
    causes = []
    if refused:
        causes.append(
            f"The server gave no usable completion for {len(refused)}; the first: {one_line(refused[0].reason)}. "
            "Repeat the command to request them again. If the request is too long for the model, give a smaller "
            "--max-tokens and another --out."
        )
    if ended:
        causes.append(
            f"A tool or environment failed in {len(ended)} conversations; the first: {one_line(ended[0].reason)}. Mend "
            "it, and repeat the command to play these conversations again."
        )
    if unjudged:
        causes.append(
            f"The verifier failed for {len(unjudged)}; the first: {unjudged[0].status.value}: "
            f"{one_line(unjudged[0].reason)}. The completions are stored: mend the verifier or raise "
            "task.verifier.deadline_s, and repeat the command to judge them again."
        )
    raise RuntimeError(
        f"{len(failed)} of {len(rows)} completions of {task} have no verdict, above max_failure_share={most:g}. "
        f"{' '.join(causes)} To leave them out of the numbers, raise max_failure_share"
    )


# Estimates that are no shares.
COUNTS = ("completion_tokens", "turns", "calls")
# Name -> part of a verdict, or a part and the part whose share it is.
Measures = Mapping[str, str | tuple[str, str]]


def task_metrics(task: str, rows: Sequence[Judged], *, votes: bool, measures: Measures | None = None) -> TaskMetrics:
    """Compute the metrics of a task.

    A verdict with the status `timeout` or `error` says nothing about its completion. Accuracy, pass@k and votes ignore
    such a verdict; `statuses` counts it. The estimates `status/timeout` and `status/error` are shares of all
    completions; the other statuses are shares of the judged completions, so they sum to 1. Lengths and `truncated`
    ignore completions that a server refused. Estimates are means over problems. If a problem has no data for an
    estimate, the estimate ignores this problem.

    Args:
        task: name of the task.
        rows: table of the task.
        votes: whether the task's answers can vote. If so, the metrics include maj@k.
        measures: more shares, from parts of the verdicts (`TaskConfig.measures`).

    Raises:
        ValueError: there is no completion, or every verdict is a failure.
    """
    by_problem: dict[str, list[Judged]] = {}
    for row in rows:
        by_problem.setdefault(row.record.problem, []).append(row)
    groups = list(by_problem.values())
    seeds = tuple(dict.fromkeys(row.record.seed for row in rows))
    if not rows:
        raise ValueError(f"{task}: there is no completion to compute metrics from")
    if all(row.record.status.failed for row in rows):
        raise ValueError(f"{task}: every verdict is a failure, the first: {rows[0].record.reason}")
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
    for name, parts in (measures or {}).items():
        estimates[name] = _share(task, name, groups, parts)
    estimates |= {**_lengths(groups), **_conversations(groups), **_statuses(groups)}
    statuses = Counter(row.record.status.value for row in rows)
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


def _share(task: str, name: str, groups: Sequence[Sequence[Judged]], parts: str | tuple[str, str]) -> Estimate:
    """Return the mean of a part over problems, or the sum of a part divided by the sum of another.

    A verdict without the part has 0 of it. A ratio's problems have different weights. Its interval is that of the
    ratio's linearisation: each problem's difference from the ratio, in units of the mean whole.
    """
    part, whole = (parts, None) if isinstance(parts, str) else parts
    known = [[row.record for row in group if not row.record.status.failed] for group in groups]
    records = [record for group in known for record in group]
    for wanted in filter(None, (part, whole)):
        seen = {each for record in records for each in record.parts}
        if wanted not in seen and (seen or any(record.correct for record in records)):
            raise ValueError(
                f"{task}: measures.{name} names the part {wanted!r}, but the verdicts have "
                f"{', '.join(sorted(seen)) or 'no parts'}; change task.measures and repeat the command, which goes on "
                "with the stored completions"
            )

    def of_problems(each: str) -> list[float]:
        return [statistics.fmean(record.parts.get(each, 0.0) for record in group) for group in known if group]

    parts_P = of_problems(part)
    mean_whole = statistics.fmean(of_problems(whole)) if whole else 0.0
    if whole is None or not mean_whole:
        return mean_estimate(parts_P)
    ratio = statistics.fmean(parts_P) / mean_whole
    pairs = zip(parts_P, of_problems(whole), strict=True)
    estimate = mean_estimate([ratio + (a - ratio * b) / mean_whole for a, b in pairs], shares=False, bounds=(0.0, 1.0))
    # Linearised values may lie outside the range of a share.
    return replace(estimate, low=max(0.0, estimate.low), high=min(1.0, estimate.high))


def _lengths(groups: Sequence[Sequence[Judged]]) -> dict[str, Estimate]:
    answered = _only(groups, lambda row: row.record.finish_reason not in NO_COMPLETION)
    if len(answered) < 2:
        return {}
    tokens = [statistics.fmean(row.record.completion_tokens for row in group) for group in answered]
    truncated = _mean(answered, lambda row: row.record.finish_reason == "length")
    return {"completion_tokens": mean_estimate(tokens, shares=False), "truncated": truncated}


def _conversations(groups: Sequence[Sequence[Judged]]) -> dict[str, Estimate]:
    """Return turns and calls of a conversation; nothing for single turns."""
    played = _only(groups, lambda row: bool(row.record.conversation) and row.record.finish_reason not in NO_COMPLETION)
    if len(played) < 2:
        return {}
    counts = {
        name: [statistics.fmean(row.record.conversation[name] for row in group) for group in played]
        for name in ("turns", "calls")
    }
    return {name: mean_estimate(values, shares=False) for name, values in counts.items()}


def _statuses(groups: Sequence[Sequence[Judged]]) -> dict[str, Estimate]:
    judged = _only(groups, lambda row: not row.record.status.failed)
    return {
        f"status/{status.value}": _mean(groups if status.failed else judged, functools.partial(_has_status, status))
        for status in Status
    }


def _only(groups: Sequence[Sequence[Judged]], keep: Callable[[Judged], bool]) -> list[list[Judged]]:
    """Return the groups without the other rows, and without groups that become empty."""
    return [kept for group in groups if (kept := [row for row in group if keep(row)])]


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
