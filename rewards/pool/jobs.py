"""Calls of verifiers, from their submission until their futures are resolved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from rewards.verdict import Verdict


@dataclass(slots=True, eq=False)
class PoolJob:
    """One call of a verifier.

    Attributes:
        identity: its number in the pool.
        name: the verifier's.
        completions: one, or those of a whole group, which a group verifier judges together.
        reference: the row's reference answer.
        prompt: the row's columns.
        lists: of a group, the columns that hold a value for each completion.
        futures: one for each completion.
        deaths: how many workers have died under it.
        begun: a worker has it, or had it.
    """

    identity: int
    name: str
    completions: tuple[str, ...]
    reference: Any
    prompt: Mapping[str, Any]
    lists: Mapping[str, Sequence[Any]] | None = None
    futures: list[Future[Verdict]] = field(default_factory=list)
    deaths: int = 0
    begun: bool = False

    def __post_init__(self) -> None:
        self.futures = [Future() for _ in self.completions]

    @property
    def characters(self) -> int:
        """Of all completions together."""
        return sum(map(len, self.completions))

    def start(self) -> bool:
        """Mark as begun; False where its caller has cancelled all of it."""
        if not self.begun:
            self.begun = any([future.set_running_or_notify_cancel() for future in self.futures])
        return self.begun

    def message(self) -> tuple[Any, ...]:
        """What a worker is sent; of a single completion without the group's lists."""
        return self.identity, self.name, self.completions, self.reference, self.prompt, self.lists
