"""Async verifiers: many calls under way in one worker, each with its own deadline."""

from __future__ import annotations

import os
import signal
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from pool_group_verifiers import async_trouble, wait, where
from pool_verifiers import right

from rewards.build import VerifierSpec
from rewards.pool import VerifierPool
from rewards.verdict import Status, Verdict

WAIT = 30
DEADLINE_S = 1.0


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    verifiers = {"it": async_trouble, "wait": wait, "where": where, "right": right}
    with VerifierPool(verifiers, workers=1, deadline_s=DEADLINE_S, memory_mib=1024) as made:
        yield made


@pytest.fixture
def log(tmp_path: Path) -> str:
    return str(tmp_path / "log")


def ask(pool: VerifierPool, log: str, *what: str) -> list[Verdict]:
    futures = pool.submit_many([("it", each, log, {}) for each in what])
    return [future.result(WAIT) for future in futures]


def test_calls_that_wait_overlap_in_one_worker_and_one_loop(pool) -> None:
    begun = time.monotonic()
    futures = pool.submit_many([("wait", "0.5", "", {})] * 32)
    assert all(future.result(WAIT).status is Status.CORRECT for future in futures)
    assert time.monotonic() - begun < 8, "one after the other they take 16 s"
    futures = pool.submit_many([("where", "", "", {})] * 20)
    assert all(future.result(WAIT).status is Status.CORRECT for future in futures)
    assert len(pool._supervisor.async_calls.workers) == 1


def test_no_more_calls_are_under_way_than_may_be() -> None:
    with VerifierPool({"wait": wait}, workers=1, overlap=2) as pool:
        begun = time.monotonic()
        futures = pool.submit_many([("wait", "0.1", "", {})] * 8)
        assert all(future.result(WAIT).status is Status.CORRECT for future in futures)
        assert time.monotonic() - begun >= 0.4
        assert not pool._supervisor.calls.workers, "nobody waits for calls that are not async"
    with pytest.raises(ValueError, match="overlap must be at least 1"):
        VerifierPool({"wait": wait}, workers=1, overlap=0)


def test_other_verifiers_do_not_wait_for_async_ones() -> None:
    with VerifierPool({"wait": wait, "right": right}, workers=1, deadline_s=100) as pool:
        waiting = pool.submit_many([("wait", "100", "", {})] * 10)
        assert pool.submit("right", "a", "a", {}).result(WAIT).status is Status.CORRECT
        assert not any(future.done() for future in waiting)


@pytest.mark.parametrize(
    ("what", "told"), [("forever", "asking the judge"), ("child", "asking by a task"), ("deaf", "start")]
)
def test_a_call_is_cancelled_at_its_deadline_and_costs_the_others_nothing(pool, log, what, told) -> None:
    killed = pool.stats().killed
    begun = time.monotonic()
    stuck, *others = ask(pool, log, what, "0.1", "0.2", "0.3", "0.4")
    assert 0.9 * DEADLINE_S < time.monotonic() - begun < 15
    assert stuck.status is Status.TIMEOUT and f"it: undecided after 1 s, at stage '{told}'" in stuck.reason
    assert [verdict.status for verdict in others] == [Status.CORRECT] * 4
    assert Counter(Path(log).read_text().split()).total() == 4, "nothing was done twice"
    assert pool.stats().killed == killed + (what == "deaf")


def test_a_call_that_keeps_the_loop_is_a_timeout_and_the_others_are_given_to_another_worker(pool, log) -> None:
    killed = pool.stats().killed
    stuck, *others = ask(pool, log, "block", "0", *["0.3"] * 6)
    assert stuck.status is Status.TIMEOUT and "at stage 'in the way'" in stuck.reason
    assert [verdict.status for verdict in others] == [Status.CORRECT] * 7
    runs = Counter(Path(log).read_text().split())
    assert runs["0"] == 1, "a verdict that was there is kept"
    assert runs["0.3"] == 12 and pool.stats().killed == killed + 1


def test_a_call_that_ends_the_process_is_an_error_and_the_others_are_replayed(pool, log) -> None:
    dead, *others = ask(pool, log, "die", *["0.2"] * 5)
    assert dead.status is Status.ERROR and "its worker died 3 times" in dead.reason
    assert [verdict.status for verdict in others] == [Status.CORRECT] * 5


def test_a_worker_that_somebody_kills_loses_nothing(pool, log) -> None:
    futures = pool.submit_many([("it", "0.5", log, {})] * 10)
    time.sleep(0.2)
    for worker in pool._supervisor.async_calls.workers:
        os.kill(worker.process.pid, signal.SIGKILL)
    assert [future.result(WAIT).status for future in futures] == [Status.CORRECT] * 10


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("raise", "LookupError: no judge"),
        ("exit", "SystemExit: 3"),
        ("cancel", "CancelledError"),
        ("eat", "has 1024 MiB of address space"),
    ],
)
def test_what_misbehaves_is_an_error_of_its_own(pool, log, what, told) -> None:
    bad, good = ask(pool, log, what, "0.1")
    assert bad.status is Status.ERROR and told in bad.reason
    assert good.status is Status.CORRECT


def test_two_workers_share_the_calls_and_closing_answers_what_is_open() -> None:
    pool = VerifierPool({"wait": wait, "sync": right}, workers=2, deadline_s=100)
    first = pool.submit_many([("wait", "0", "", {})] * 2)
    workers = pool._supervisor.async_calls.workers
    # Both are up, and have nothing to do, before there is something to share.
    while len(workers) < 2 or not all(worker.ready for worker in workers):
        time.sleep(0.01)
    assert [future.result(WAIT).status for future in first] == [Status.CORRECT] * 2
    futures = pool.submit_many([("wait", "100", "", {})] * 8)
    while sum(len(worker.flights) for worker in workers) < 8:
        time.sleep(0.01)
    assert [len(worker.flights) for worker in workers] == [4, 4]
    pool.close()
    assert [future.result(1).status for future in futures] == [Status.ERROR] * 8


def test_the_nursery_may_die_under_them(log) -> None:
    with VerifierPool({"it": async_trouble}, workers=1, deadline_s=5) as pool:
        futures = pool.submit_many([("it", "0.3", log, {})] * 5)
        time.sleep(0.1)
        pool._supervisor._forks.nursery._process.kill()
        assert [future.result(WAIT).status for future in futures] == [Status.CORRECT] * 5


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_timeout_says_that_the_time_went_into_an_import(tmp_path, kind) -> None:
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(100)\n")
    (tmp_path / "mine.py").write_text(
        textwrap.dedent(f"""
            {kind} check(completion, reference):
                import slow_to_import
                return True
        """)
    )
    with VerifierPool([VerifierSpec("it", f"{tmp_path}/mine.py:check")], workers=1, deadline_s=0.3) as pool:
        verdict = pool.submit("it", "", "", {}).result(WAIT)
    assert verdict.status is Status.TIMEOUT
    assert "it was importing 'slow_to_import': at the top of the verifier's file" in verdict.reason
