"""The values that verifiers get for a prompt and its completions, in training and in evaluation alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from rewards.verdict import Verdict
from rewards.verifier import PROBLEM_COLUMN, TOKENS_COLUMN


class Pool(Protocol):
    """Runs verifiers: `rewards.pool.VerifierPool` on this machine, or a pool on each node of a cluster."""

    def judges_groups(self, name: str) -> bool: ...

    def submit_many(self, calls: Iterable[tuple[str, str, Any, Mapping[str, Any]]]) -> list[Future[Verdict]]: ...

    def submit_group(
        self,
        name: str,
        completions: Sequence[str],
        reference: Any,
        prompt: Mapping[str, Any],
        lists: Mapping[str, Sequence[Any]] | None = None,
    ) -> list[Future[Verdict]]: ...


def columns_of(problem: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's columns as its verifiers get them: with the question, where the row has no column of that name.

    Made once, when the data are read: gold answers, training and evaluations must judge an answer alike.

    Args:
        problem: the question, with the prompt's template but before any chat template, whose words are not the data's.
        row: the columns of the data.
    """
    return {PROBLEM_COLUMN: problem, **row}


def verdicts_wait_s(calls: int, deadline_s: float) -> float:
    """Longest wait for the verdicts of so many calls, in seconds.

    The pool answers every call within its deadline and its restarts; this wait only guards against the pool.
    """
    return 60.0 + 4 * deadline_s * calls


def judge(
    pool: Pool,
    names: Sequence[str],
    reference: Any,
    row: Mapping[str, Any],
    texts: Sequence[str],
    tokens: Sequence[int],
) -> list[dict[str, Future[Verdict]]]:
    """Start the verification of the completions of one prompt.

    Args:
        pool: runs the verifiers.
        names: verifiers that judge the row, in the order of the config.
        reference: reference answer of the row.
        row: columns from `columns_of`.
        texts: texts of the completions.
        tokens: number of tokens of each completion.

    Returns:
        For each completion: name of a verifier -> future of its verdict.
    """
    groups = [name for name in names if pool.judges_groups(name)]
    single = [name for name in names if name not in groups]
    lists = {TOKENS_COLUMN: list(tokens)}
    grouped = {name: pool.submit_group(name, texts, reference, row, lists) for name in groups}
    verdicts = []
    for at, (text, count) in enumerate(zip(texts, tokens, strict=True)):
        # One completion at a time: a pool of several nodes gives calls that are submitted together to the same node.
        calls = [(name, text, reference, {**row, TOKENS_COLUMN: count}) for name in single]
        alone = dict(zip(single, pool.submit_many(calls) if calls else [], strict=True))
        verdicts.append({name: alone[name] if name in alone else grouped[name][at] for name in names})
    return verdicts
