"""Calls of verifiers, from their submission until their futures are resolved."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from rewards.verdict import Verdict

# Errors that pickle raises for values that cannot be sent to another process.
_UNPICKLABLE = (RecursionError, pickle.PicklingError, AttributeError, TypeError)


@dataclass(slots=True, eq=False)
class PoolJob:
    """One call of a verifier.

    Attributes:
        identity: number of the call in its pool.
        name: name of the verifier.
        completions: a single completion; for a group verifier, all completions of a prompt.
        reference: reference answer of the row.
        prompt: columns of the row.
        lists: columns with a value for each completion; None if the job is not a call of a group verifier.
        futures: a future for each completion.
        deaths: number of workers that died while they ran the call.
        undelivered: number of workers that died before the call reached them.
        begun: whether the call was given to a worker.
    """

    identity: int
    name: str
    completions: tuple[str, ...]
    reference: Any
    prompt: Mapping[str, Any]
    lists: Mapping[str, Sequence[Any]] | None = None
    futures: list[Future[Verdict]] = field(default_factory=list)
    deaths: int = 0
    undelivered: int = 0
    begun: bool = False

    def __post_init__(self) -> None:
        self.futures = [Future() for _ in self.completions]

    @property
    def characters(self) -> int:
        """Characters of all completions together."""
        return sum(map(len, self.completions))

    def start(self) -> bool:
        """Mark the call as begun; return False if the caller has cancelled all futures of the call."""
        if not self.begun:
            self.begun = any([future.set_running_or_notify_cancel() for future in self.futures])
        return self.begun

    def message(self) -> tuple[Any, ...]:
        """The fields that a worker needs."""
        return self.identity, self.name, self.completions, self.reference, self.prompt, self.lists


@dataclass(frozen=True, slots=True)
class PackedJobs:
    """Several jobs as one message to a worker.

    Attributes:
        body: the pickled message; empty if every job was refused.
        jobs: jobs that are in the message.
        refused: jobs that cannot be pickled, each with the reason.
    """

    body: bytes
    jobs: list[PoolJob]
    refused: list[tuple[PoolJob, str]]


def pack(label: object, jobs: list[PoolJob]) -> PackedJobs:
    """Pickle `(label, messages of the jobs)`; jobs whose row cannot be pickled are left out."""
    try:
        return PackedJobs(_pickled(label, jobs), jobs, [])
    except _UNPICKLABLE:
        refused = [(job, reason) for job in jobs if (reason := _refusal(label, job))]
    unpicklable = {job.identity for job, _ in refused}
    rest = [job for job in jobs if job.identity not in unpicklable]
    return PackedJobs(_pickled(label, rest) if rest else b"", rest, refused)


def _pickled(label: object, jobs: list[PoolJob]) -> bytes:
    return pickle.dumps((label, [job.message() for job in jobs]), protocol=pickle.HIGHEST_PROTOCOL)


def _refusal(label: object, job: PoolJob) -> str:
    """The reason why a job cannot be pickled; empty if it can be pickled."""
    try:
        _pickled(label, [job])
    except _UNPICKLABLE as problem:
        columns = {**job.prompt, **(job.lists or {})}
        places = [("the reference answer", job.reference), *((f"column {key!r:.60}", columns[key]) for key in columns)]
        culprit = next((place for place, value in places if not _is_picklable(value)), "the row")
        return (
            f"{job.name}: {culprit} cannot be sent to a worker process ({type(problem).__name__}: {problem!s:.200}); "
            f"use text, numbers, and lists or dictionaries of them with at most 100 levels of nesting, "
            f"or store the value as JSON text"
        )
    return ""


def _is_picklable(value: Any) -> bool:
    try:
        pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    except _UNPICKLABLE:
        return False
    return True
