"""What verifiers are handed of a prompt and its completions; training and evaluation both ask through here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from rewards.verdict import Verdict
from rewards.verifier import PROBLEM_COLUMN, TOKENS_COLUMN


class Pool(Protocol):
    """A verifier pool, as far as it is asked for verdicts."""

    def judges_groups(self, name: str) -> bool:
        """True where the verifier wants all completions of a prompt at once."""
        ...

    def submit_many(self, calls: Sequence[tuple[str, str, Any, Mapping[str, Any]]], /) -> list[Future[Verdict]]:
        """A future for each call `(name, completion, reference, row)`."""
        ...

    def submit_group(
        self,
        name: str,
        completions: Sequence[str],
        reference: Any,
        prompt: Mapping[str, Any],
        own: Mapping[str, Sequence[Any]] | None = None,
    ) -> list[Future[Verdict]]:
        """A future for each completion of a group."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """What completions answer.

    Attributes:
        problem: the prompt's text, which verifiers get as a column where the row has none of that name.
        reference: the reference answer.
        row: the row's columns.
    """

    problem: str
    reference: Any
    row: Mapping[str, Any]


def judge(
    pool: Pool, names: Sequence[str], asked: Asked, texts: Sequence[str], tokens: Sequence[int]
) -> list[dict[str, Future[Verdict]]]:
    """Start the verification of the completions of one prompt.

    Args:
        pool: runs the verifiers.
        names: of the verifiers that judge the row, in the order in which they are configured.
        asked: what is answered.
        texts: the completions.
        tokens: their numbers of tokens.

    Returns:
        For each completion the futures of its verdicts, by the verifiers' names.
    """
    row = {PROBLEM_COLUMN: asked.problem, **asked.row}
    groups = [name for name in names if pool.judges_groups(name)]
    single = [name for name in names if name not in groups]
    own = {TOKENS_COLUMN: list(tokens)}
    grouped = {name: pool.submit_group(name, texts, asked.reference, row, own) for name in groups}
    verdicts = []
    for at, (text, count) in enumerate(zip(texts, tokens, strict=True)):
        # A completion at a time: a pool on several nodes gives what comes together to one of them.
        calls = [(name, text, asked.reference, {**row, TOKENS_COLUMN: count}) for name in single]
        alone = dict(zip(single, pool.submit_many(calls) if calls else [], strict=True))
        verdicts.append({name: alone[name] if name in alone else grouped[name][at] for name in names})
    return verdicts
