"""The code reward inside a verifier pool: whose fault a failure is, and what is left when processes are killed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from rewards.build import VerifierSpec
from rewards.pool import VerifierPool
from rewards.verdict import Status
from rewards.verifiers.code import CodeVerifier

DOUBLE = json.dumps({"fn_name": "double", "inputs": [[1], [4]], "outputs": [[2], [8]]})
RIGHT = "```python\ndef double(x):\n    return 2 * x\n```"
WRONG = "```python\ndef double(x):\n    return x\n```"
ENDLESS = "```python\ndef double(x):\n    while True: pass\n```"
# Ends by itself within its time, and leaves time to be killed.
SLOW = "```python\nimport time\ndef double(x):\n    time.sleep(1.5)\n    return 2 * x\n```"
DAEMON = "```python\nimport os, time\ndef double(x):\n    os.fork()\n    os.fork()\n    time.sleep(60)\n```"


def spec(**options: object) -> list[VerifierSpec]:
    return [VerifierSpec("code", "code", {"wall_s": 4, "program_s": 4, "preload": [], **options})]


@pytest.fixture
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(spec(), workers=2, deadline_s=30) as made:
        yield made


def of_sandbox(process: psutil.Process) -> bool:
    return any("sandbox.inside.zygote" in word for word in process.cmdline())


earlier: set[psutil.Process] = set()


@pytest.fixture(autouse=True)
def _others() -> None:
    """What tests of other files have left running in this process's care is not looked at."""
    earlier.clear()
    earlier.update(psutil.Process().children(recursive=True))


def family(sandbox: bool) -> set[psutil.Process]:
    """Living descendants of this process: those of the sandbox, programs included, or the pool's own."""
    found = set()
    for process in set(psutil.Process().children(recursive=True)) - earlier:
        try:
            if process.status() != psutil.STATUS_ZOMBIE and of_sandbox(process) == sandbox and process.cmdline():
                found.add(process)
        except psutil.NoSuchProcess:
            continue
    return found


def workers_of_sandbox() -> set[psutil.Process]:
    """The outer processes: those whose parent is not the sandbox's."""
    return {process for process in family(True) if not of_sandbox(process.parent() or process)}


def eventually(holds: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def pool_workers() -> set[psutil.Process]:
    own = family(False)
    return {process for process in own if process.parent() in own}


def test_whose_fault_it_is(pool: VerifierPool) -> None:
    cases = {RIGHT: Status.CORRECT, WRONG: Status.WRONG, ENDLESS: Status.WRONG, "no code": Status.UNPARSEABLE}
    futures = {text: pool.submit("code", text, DOUBLE, {}) for text in cases}
    for text, status in cases.items():
        verdict = futures[text].result(60)
        assert verdict.status is status, (text, verdict)
    assert "wall time" in futures[ENDLESS].result().reason
    without_tests = pool.submit("code", RIGHT, "nothing", {}).result(60)
    assert without_tests.status is Status.ERROR and "no code tests" in without_tests.reason
    assert pool.stats().killed == 0, "a program's timeout must not be the pool's"


def test_all_tests_together_have_a_time(pool: VerifierPool) -> None:
    tests = json.dumps({"fn_name": "double", "inputs": [[n] for n in range(9)], "outputs": [[2 * n] for n in range(9)]})
    started = time.monotonic()
    verdict = pool.submit("code", SLOW, tests, {}).result(60)
    assert verdict.status is Status.WRONG and "wall time" in verdict.reason, verdict
    assert time.monotonic() - started < 8, "nine calls of 1.5 seconds were let run"


def test_waiting_for_a_program_slot_is_not_the_calls_time() -> None:
    # Each endless program takes a second of the one slot; seven of them outlast the deadline of who waits.
    options: dict[str, object] = {"wall_s": 1, "program_s": 1, "concurrent_programs": 1}
    with VerifierPool(spec(**options), workers=4, deadline_s=4.0) as pool:
        futures = [pool.submit("code", text, DOUBLE, {}) for text in [ENDLESS] * 7 + [RIGHT]]
        assert [future.result(60).status for future in futures] == [Status.WRONG] * 7 + [Status.CORRECT]
        assert pool.stats().killed == 0


def test_the_sandbox_is_made_once(pool: VerifierPool) -> None:
    before = workers_of_sandbox()
    assert len(before) == len(os.sched_getaffinity(0))
    for _ in range(3):
        futures = pool.submit_many([("code", text, DOUBLE, {}) for text in [RIGHT, WRONG, SLOW, RIGHT] * 2])
        assert [future.result(60).status for future in futures] == [
            Status.CORRECT, Status.WRONG, Status.CORRECT, Status.CORRECT,
        ] * 2  # fmt: skip
    assert workers_of_sandbox() == before
    assert pool.stats().started == 2, "waiting for the sandbox must not start further workers"


def test_a_killed_worker_takes_its_program_along(pool: VerifierPool) -> None:
    assert pool.submit("code", RIGHT, DOUBLE, {}).result(60).status is Status.CORRECT
    workers, before = workers_of_sandbox(), family(True)
    future = pool.submit("code", DAEMON, DOUBLE, {})
    assert eventually(lambda: len(family(True) - before) >= 4), "the program's processes are to be seen"
    programs = family(True) - before
    for worker in pool_workers():
        worker.send_signal(signal.SIGKILL)
    assert eventually(lambda: not any(process.is_running() for process in programs), 2.0), programs
    assert future.result(60).status is Status.WRONG, "it was replayed, and ran out of its own time"
    assert pool.submit("code", RIGHT, DOUBLE, {}).result(60).status is Status.CORRECT
    assert workers_of_sandbox() == workers, "a pool's worker may go, the sandbox stays"
    assert eventually(lambda: len(family(True)) <= len(before) + 1), family(True)


def test_the_pools_deadline_takes_the_program_along() -> None:
    with VerifierPool(spec(), workers=1, deadline_s=1.0) as pool:
        assert pool.submit("code", RIGHT, DOUBLE, {}).result(60).status is Status.CORRECT
        before = family(True)
        verdict = pool.submit("code", DAEMON, DOUBLE, {}).result(60)
        assert verdict.status is Status.TIMEOUT and "running the program" in verdict.reason
        assert eventually(lambda: not family(True) - before, 2.0), family(True) - before


def test_a_lost_sandbox_is_no_verdict_on_the_program(pool: VerifierPool) -> None:
    for _ in range(2):
        lost = workers_of_sandbox()
        for process in lost:
            process.send_signal(signal.SIGKILL)
        assert eventually(lambda lost=lost: not any(process in family(True) for process in lost))
        futures = [pool.submit("code", text, DOUBLE, {}) for text in [RIGHT, WRONG] * 4]
        statuses = [future.result(60).status for future in futures]
        assert statuses == [Status.CORRECT, Status.WRONG] * 4


@pytest.mark.parametrize("victim", ["nursery", "pool"])
def test_nothing_outlives_the_pool(victim: str) -> None:
    with VerifierPool(spec(), workers=2, deadline_s=30) as pool:
        future = pool.submit("code", DAEMON, DOUBLE, {})
        # A worker is two processes; then a cell, and four of the program.
        assert eventually(lambda: len(family(True)) >= 5 + 2 * len(os.sched_getaffinity(0)))
        everything = family(True)
        if victim == "nursery":
            (nursery,) = {process for process in family(False) if process.ppid() == os.getpid()}
            nursery.send_signal(signal.SIGKILL)
            assert eventually(lambda: not any(process.is_running() for process in everything), 5.0)
            assert future.result(60).status is Status.WRONG, "it was replayed in the next nursery"
    # Orphans are no longer of this family.
    assert eventually(lambda: not any(process.is_running() for process in everything), 5.0)


def test_programs_share_the_cores() -> None:
    """However many workers ask, no more programs run at once than were configured; none is refused for it."""
    with VerifierPool(spec(concurrent_programs=1, wall_s=6, program_s=6), workers=3, deadline_s=60) as pool:
        assert len(workers_of_sandbox()) == 1
        started = time.monotonic()
        futures = [pool.submit("code", SLOW, DOUBLE, {}) for _ in range(3)]
        assert [future.result(60).status for future in futures] == [Status.CORRECT] * 3
        assert time.monotonic() - started > 3 * 2 * 1.5


def test_a_wrong_option_stops_the_start() -> None:
    with pytest.raises(ValueError, match="level must be one of none, limited, filtered, confined, full, got 'strong'"):
        VerifierPool(spec(level="strong"), workers=1)


def test_memory_of_a_worker_is_not_that_of_a_program() -> None:
    hungry = "```python\ndef double(x):\n    return len(bytes(x * (300 << 20))) and 2 * x\n```"
    with VerifierPool(spec(memory_mib=2048), workers=1, deadline_s=30, memory_mib=512) as pool:
        for _ in range(2):
            verdict = pool.submit("code", hungry, DOUBLE, {}).result(60)
            assert verdict.status is Status.CORRECT, verdict
            # The next sandbox is made by the worker, which has a limit of its own.
            for process in workers_of_sandbox():
                process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "ada"}, "language must be one of python, cpp, javascript, bash, got 'ada'"),
        ({"wall_s": 0}, "wall_s must be positive, got 0"),
        ({"concurrent_programs": -1}, "concurrent_programs must be positive"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CodeVerifier(**options)  # type: ignore[arg-type]
