"""Calls that take long: they stand back for others, and are not blamed for what is no fault of theirs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from pool_verifiers import burn, crowded_out, hang_on_request, right, slow

from rewards.pool import VerifierPool
from rewards.pool.worker_handle import Busy, Pace, WorkerHandle
from rewards.verdict import Status, Verdict

WAIT = 30


def until(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + WAIT
    while not (found := true()) and time.monotonic() < end:
        time.sleep(0.005)
    return found


@pytest.fixture
def pool() -> Iterator[VerifierPool]:
    """One that knows what its verifiers usually take."""
    with VerifierPool({"burn": burn, "it": hang_on_request}, workers=1, deadline_s=20) as made:
        for name in ("burn", "it"):
            for future in made.submit_many([(name, "0", "0", {})] * 150):
                assert future.result(WAIT).status is Status.CORRECT
        yield made


def worker_of(pool: VerifierPool) -> WorkerHandle:
    """The one that has something to do, of the two that there may be."""
    return next(worker for worker in list(pool._supervisor.calls.workers) if isinstance(worker.state, Busy))


def pace(worker: WorkerHandle) -> Pace | None:
    return worker.state.pace if isinstance(worker.state, Busy) else None


def policy(worker: WorkerHandle) -> int:
    return os.sched_getscheduler(worker.process.pid)


def test_an_unusual_call_stands_back_only_while_there_are_others(pool) -> None:
    long = pool.submit("burn", "0.6", "", {})
    assert until(lambda: any(pace(worker) is Pace.UNUSUAL for worker in pool._supervisor.calls.workers))
    worker = worker_of(pool)
    assert policy(worker) == os.SCHED_OTHER
    others = pool.submit_many([("burn", "0.005", "", {})] * 80)
    assert until(lambda: policy(worker) == os.SCHED_IDLE) and not others[-1].done()
    assert all(future.result(WAIT).status is Status.CORRECT for future in others)
    if os.geteuid() == 0:
        assert until(lambda: policy(worker) == os.SCHED_OTHER) and not long.done()
    assert long.result(WAIT).status is Status.CORRECT


def test_a_worker_that_may_not_run_as_usual_again_is_replaced(pool, monkeypatch) -> None:
    allowed = os.sched_setscheduler

    def unprivileged(pid: int, policy: int, param: os.sched_param) -> None:
        if policy == os.SCHED_OTHER:
            raise PermissionError
        allowed(pid, policy, param)

    monkeypatch.setattr(os, "sched_setscheduler", unprivileged)
    long = pool.submit("burn", "0.3", "", {})
    assert until(lambda: any(pace(worker) is Pace.UNUSUAL for worker in pool._supervisor.calls.workers))
    held_back = worker_of(pool)
    others = pool.submit_many([("burn", "0.005", "", {})] * 100)
    assert until(lambda: pace(held_back) is Pace.HELD_BACK)
    assert long.result(WAIT).status is Status.CORRECT
    answered = time.monotonic()
    assert until(lambda: held_back not in pool._supervisor.calls.workers)
    assert time.monotonic() - answered < 0.8  # not only once it has had nothing to do for a second
    assert all(future.result(WAIT).status is Status.CORRECT for future in others)
    assert until(lambda: not psutil.pid_exists(held_back.process.pid))
    assert all(policy(worker) == os.SCHED_OTHER for worker in pool._supervisor.calls.workers)


def test_a_call_that_other_programs_keep_from_the_processor_gets_the_same_time_once_more() -> None:
    def verdict(crowded_s: str) -> Verdict:
        with VerifierPool({"it": crowded_out}, workers=1, deadline_s=0.8) as pool:
            return pool.submit("it", crowded_s, "", {}).result(WAIT)

    begun = time.monotonic()
    assert verdict("0.9").status is Status.CORRECT
    assert time.monotonic() - begun > 0.8
    late = verdict("5")
    assert late.status is Status.TIMEOUT and "undecided after 1.6 s" in late.reason


def test_an_answer_that_was_there_in_time_counts_however_late_it_is_read() -> None:
    with VerifierPool({"slow": slow, "right": right}, workers=2, deadline_s=0.4) as pool:
        late = pool.submit("slow", "0.2", "", {})
        quick = pool.submit("slow", "0.05", "", {})
        quick.add_done_callback(lambda _: time.sleep(0.8))  # in the supervising thread
        assert late.result(WAIT).status is Status.CORRECT
        assert pool.stats().killed == 0


def test_a_worker_that_took_over_is_there_for_the_next_time_and_then_let_go() -> None:
    with VerifierPool({"slow": slow}, workers=1) as pool:
        for _ in range(6):
            assert pool.submit("slow", "0.06", "", {}).result(WAIT).status is Status.CORRECT
        assert pool.stats().started == 2
        time.sleep(1.1)
        assert pool.submit("slow", "0", "", {}).result(WAIT).status is Status.CORRECT
        assert until(lambda: len(pool._supervisor.calls.workers) == 1)
        assert pool.stats().died == pool.stats().killed == 0
