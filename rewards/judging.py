"""The values that verifiers get for a prompt and its completions. They are the same in training and in evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from rewards.verdict import Verdict
from rewards.verifier import MESSAGES_COLUMN, PROBLEM_COLUMN, TOKENS_COLUMN


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
    """Return the columns that verifiers get for a row: the row's columns, and the question if none is called `problem`.

    This function is called once, when the data are read. So the check of gold answers, training and evaluations judge
    an answer in the same way.

    Args:
        problem: question with the prompt's template, before any chat template.
        row: columns of the data.
    """
    return {PROBLEM_COLUMN: problem, **row}


def verdicts_wait_s(calls: int, deadline_s: float) -> float:
    """Longest wait for the verdicts of this number of calls, in seconds.

    The pool answers every call within the deadline plus the time of its restarts. So only a pool that hangs reaches
    this limit.
    """
    return 60.0 + 4 * deadline_s * calls


def judge(
    pool: Pool,
    names: Sequence[str],
    reference: Any,
    row: Mapping[str, Any],
    texts: Sequence[str],
    tokens: Sequence[int],
    transcripts: Sequence[Sequence[Mapping[str, str]]] | None = None,
) -> list[dict[str, Future[Verdict]]]:
    """Start the verification of the completions of one prompt.

    Args:
        pool: pool that runs the verifiers.
        names: names of the verifiers that judge the row, in the order of the config.
        reference: reference answer of the row.
        row: columns from `columns_of`.
        texts: texts of the completions.
        tokens: number of sampled tokens of each completion.
        transcripts: messages of each completion, if the completions are conversations.

    Returns:
        For each completion, a mapping from the name of each verifier to the future of its verdict.
    """
    groups = [name for name in names if pool.judges_groups(name)]
    single = [name for name in names if name not in groups]
    lists: dict[str, Sequence[Any]] = {TOKENS_COLUMN: list(tokens)}
    if transcripts is not None:
        lists[MESSAGES_COLUMN] = list(transcripts)
    grouped = {name: pool.submit_group(name, texts, reference, row, lists) for name in groups}
    verdicts = []
    for at, text in enumerate(texts):
        # Each completion is submitted separately, because a pool of several nodes sends all calls of one submission to
        # one node.
        calls = [
            (name, text, reference, {**row, **{column: values[at] for column, values in lists.items()}})
            for name in single
        ]
        alone = dict(zip(single, pool.submit_many(calls) if calls else [], strict=True))
        verdicts.append({name: alone[name] if name in alone else grouped[name][at] for name in names})
    return verdicts
