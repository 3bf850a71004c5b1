"""The states of a worker: each step is legal from some states only."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from rewards.pool.jobs import PoolJob, pack
from rewards.pool.nursery import serve
from rewards.pool.processes import WorkerProcess
from rewards.pool.wire import LENGTH, Inbox
from rewards.pool.worker_handle import Busy, Ended, Free, Pace, Spent, Starting, WorkerHandle
from rewards.stage import PAGE_BYTES, SharedPage
from rewards.verdict import Verdict, correct


@pytest.fixture
def worker() -> Iterator[WorkerHandle]:
    """A worker whose process is this one."""
    descriptor = os.memfd_create("page")
    os.ftruncate(descriptor, PAGE_BYTES)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield WorkerHandle(WorkerProcess(os.getpid(), ours, SharedPage(descriptor)))
    os.close(descriptor)


def jobs(*identities: int) -> list[PoolJob]:
    return [PoolJob(identity, "it", ("",), "", {}) for identity in identities]


def identities(taken: list[PoolJob]) -> list[int]:
    return [job.identity for job in taken]


def pace(worker: WorkerHandle) -> Pace:
    assert isinstance(worker.state, Busy)
    return worker.state.pace


def test_a_worker_goes_from_starting_over_free_to_busy_and_back(worker: WorkerHandle) -> None:
    assert worker.state == Starting() and worker.is_capacity and not worker.takes_calls
    for step in (worker.answered, worker.extend, lambda: worker.give(jobs(0)), lambda: worker.slow_to(Pace.STALLED)):
        with pytest.raises(AssertionError):
            step()
    worker.came_up()
    with pytest.raises(AssertionError):
        worker.came_up()
    assert isinstance(worker.state, Free) and worker.takes_calls and not worker.works
    worker.give(jobs(1, 2))
    assert worker.works and worker.takes_calls, "one batch may wait behind another"
    worker.give(jobs(3))
    assert not worker.takes_calls, "a third may not"
    worker.extend()
    worker.answered()
    assert isinstance(worker.state, Busy) and worker.state.current.job.identity == 2
    assert not worker.state.extended, "what holds for one call does not hold for the next"
    worker.answered()
    worker.answered()
    assert isinstance(worker.state, Free)
    assert worker.end() == [] and worker.state == Ended()


def test_a_slow_call_loses_those_behind_it_once_and_its_pace_only_gets_worse(worker: WorkerHandle) -> None:
    worker.came_up()
    worker.give(jobs(1, 2, 3))
    assert worker.slow_to(Pace.FRESH) == []
    assert identities(worker.slow_to(Pace.STALLED)) == [2, 3]
    assert worker.process.page.revoked() == (1, 1)
    assert worker.slow_to(Pace.UNUSUAL) == [] and worker.slow_to(Pace.ALONE) == []
    assert pace(worker) is Pace.UNUSUAL and not worker.is_capacity and not worker.takes_calls
    worker.answered()
    assert pace(worker) is Pace.ALONE, "the worker may run calls that were taken back, and gets no others meanwhile"
    assert worker.is_capacity and not worker.takes_calls
    assert worker.skipped(1) == [] and isinstance(worker.state, Free) and worker.takes_calls


def test_a_first_call_that_the_worker_had_not_begun_is_given_back(worker: WorkerHandle) -> None:
    worker.came_up()
    worker.give(jobs(1, 2))
    with pytest.raises(AssertionError):
        worker.skipped(1)  # nothing was taken back
    worker.slow_to(Pace.ALONE)
    assert identities(worker.skipped(1)) == [1]
    worker.give(jobs(4, 5))
    worker.slow_to(Pace.ALONE)
    assert [(entry.job.identity, entry.ghost) for entry in worker.end()] == [(4, False), (5, True)]


def test_a_call_that_the_worker_has_begun_is_not_given_to_another(worker: WorkerHandle) -> None:
    """The answers of the calls before it may not have been read yet."""
    worker.came_up()
    worker.give(jobs(1, 2, 3, 4))
    worker.process.page.write_begun(3, 0)
    assert identities(worker.slow_to(Pace.ALONE)) == [4]
    worker.answered()
    worker.answered()
    assert isinstance(worker.state, Busy) and not worker.state.current.ghost
    # It announced the call, and then saw that the batch was taken back.
    assert identities(worker.skipped(1)) == [3] and isinstance(worker.state, Free)


class TakenBack(SharedPage):
    """The parent takes the calls behind the first back at the moment at which the worker announces the second."""

    def write_begun(self, identity: int, clock_ns: int) -> None:
        super().write_begun(identity, clock_ns)
        if identity == 2:
            self.revoke(1, 1)


class Yes:
    """A verifier as a worker has it."""

    cache_hits = 0

    def __call__(self, completion: str, reference: object, prompt: object) -> Verdict:
        return correct()


def test_a_worker_announces_a_call_before_it_looks_whether_the_call_was_taken_back() -> None:
    """In the other order, the parent could give the call to another worker in between."""
    descriptor = os.memfd_create("page")
    os.ftruncate(descriptor, PAGE_BYTES)
    ours, theirs = socket.socketpair()
    body = pack(1, jobs(1, 2, 3)).body
    with ours, theirs:
        ours.sendall(LENGTH.pack(len(body)) + body)
        ours.shutdown(socket.SHUT_WR)
        page = TakenBack(descriptor)
        serve(theirs, page, {"it": Yes()})
        replies = list(Inbox().feed(ours.recv(1 << 16)))
    os.close(descriptor)
    assert [reply[0] for reply in replies] == [1, "skipped"]
    assert page.begun()[0] == 2 and page.received() == 1


def test_only_an_unusual_call_is_held_back_and_its_worker_may_be_spent_then(
    worker: WorkerHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies: list[bool] = []
    monkeypatch.setattr(WorkerProcess, "set_idle", lambda _, idle: policies.append(idle) or idle)
    worker.came_up()
    worker.give(jobs(1))
    worker.slow_to(Pace.STALLED)
    worker.hold_back(others=True)
    assert policies == []
    worker.slow_to(Pace.UNUSUAL)
    worker.hold_back(others=False)
    assert policies == []
    worker.hold_back(others=True)
    worker.hold_back(others=True)
    assert policies == [True] and pace(worker) is Pace.HELD_BACK
    worker.hold_back(others=False)
    assert policies == [True, False] and pace(worker) is Pace.HELD_BACK, "the system did not allow the way back"
    worker.answered()
    assert worker.state == Spent() and not worker.takes_calls
