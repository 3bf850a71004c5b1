"""One sandbox used by the process that made it and by its forks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from sandbox import Limits, ProgramStatus, Sandbox, SandboxError
from sandbox.outside.slots import Slot, Slots

SLEEP = "import time\ntime.sleep(0.4)\nprint('done')"


@pytest.fixture
def shared() -> Iterator[Sandbox]:
    with Sandbox(workers=1, preload=()) as sandbox:
        sandbox.share()
        yield sandbox


def in_a_fork(work: Callable[[], bool]) -> int:
    """Start `work` in a fork, whose exit code is 0 where it returned True."""
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    return pid


def succeeded(pid: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_forks_run_programs_one_at_a_time(shared: Sandbox) -> None:
    started = time.monotonic()
    pids = [in_a_fork(lambda: shared.run(SLEEP).stdout == b"done\n") for _ in range(3)]
    assert shared.run(SLEEP).stdout == b"done\n"
    assert all([succeeded(pid) for pid in pids])
    assert time.monotonic() - started > 4 * 0.4, "programs of one slot ran beside each other"


def test_a_fork_that_is_killed_gives_its_slot_back(shared: Sandbox) -> None:
    reading, writing = os.pipe()

    def hold() -> bool:
        os.write(writing, b"x")
        return shared.run("while True: pass", limits=Limits(wall_s=60)).status is ProgramStatus.OK

    pid = in_a_fork(hold)
    os.read(reading, 1)
    time.sleep(0.3)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    started = time.monotonic()
    assert shared.run("print(1)").stdout == b"1\n"
    assert time.monotonic() - started < 5
    for descriptor in (reading, writing):
        os.close(descriptor)


def test_a_fork_closes_nothing_of_its_parents(shared: Sandbox) -> None:
    (worker,) = shared.worker_pids
    assert shared.run("print(1)").stdout == b"1\n"

    def close() -> bool:
        shared.close()
        return True

    assert succeeded(in_a_fork(close))
    assert shared.run("print(2)").stdout == b"2\n"
    assert shared.worker_pids == [worker]


def test_without_sharing_a_fork_is_refused() -> None:
    def refused() -> bool:
        with pytest.raises(SandboxError, match="share it before a fork"):
            sandbox.run("print(1)")
        return True

    with Sandbox(preload=()) as sandbox:
        assert succeeded(in_a_fork(refused))


class Watched(Slots):
    """Counts how often it looks for a slot."""

    looks = 0

    def _lock(self, slot: Slot) -> bool:
        self.looks += 1
        return super()._lock(slot)


def test_who_waits_for_a_slot_of_another_process_is_woken_and_does_not_ask_again_and_again() -> None:
    slots = Watched(2)
    slots.share()
    reading, writing = os.pipe()

    def hold() -> bool:
        held = [slots.take(), slots.take()]
        os.write(writing, b"x")
        time.sleep(0.6)
        for slot in held:
            slots.give_back(slot)
        return True

    def wait() -> bool:
        slots.looks = 0
        started = time.monotonic()
        taken = slots.take()
        # Every 50 ms it looks at two slots by itself; every 2 ms would be 600 looks.
        patient = slots.looks <= 2 * (time.monotonic() - started) / 0.05 + 12
        # The other one has a slot at the same time.
        time.sleep(0.3)
        slots.give_back(taken)
        return patient

    holder = in_a_fork(hold)
    os.read(reading, 1)
    waiters = [in_a_fork(wait) for _ in range(2)]
    assert all([succeeded(pid) for pid in (holder, *waiters)])
    for descriptor in (reading, writing):
        os.close(descriptor)


def test_a_slot_that_is_given_back_is_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whoever only looked would wait for 20 seconds.
    monkeypatch.setattr("sandbox.outside.slots._LOOK_SECONDS", 20)
    slots = Slots(2)
    slots.share()
    reading, writing = os.pipe()

    def hold() -> bool:
        held = [slots.take(), slots.take()]
        os.write(writing, b"x")
        time.sleep(0.5)
        for slot in held:
            slots.give_back(slot)
        return True

    def wait() -> bool:
        started = time.monotonic()
        taken = slots.take()
        # The other one needs a slot meanwhile.
        time.sleep(0.5)
        slots.give_back(taken)
        return time.monotonic() - started < 10

    holder = in_a_fork(hold)
    os.read(reading, 1)
    assert all([succeeded(pid) for pid in (holder, in_a_fork(wait), in_a_fork(wait))])
    for descriptor in (reading, writing):
        os.close(descriptor)


def test_who_was_woken_for_two_slots_wakes_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = Slots(2)
    slots.share()
    held = [slots.take(), slots.take()]

    def both_come_back() -> None:
        for slot in held:
            slots.give_back(slot)
        os.eventfd_read(slots._given_back)

    monkeypatch.setattr(slots, "_wait_for_others", both_come_back)
    slots.take()
    assert os.eventfd_read(slots._given_back) == 1, "another who waits would sleep on beside a free slot"


def test_only_the_slot_of_home_keeps_idle_cells() -> None:
    class Counting:
        closed = 0

        def close_idle_cells(self) -> None:
            self.closed += 1

    slots = Slots(2)
    workers = [Counting(), Counting()]
    for slot, worker in zip(slots.all, workers, strict=True):
        slot.workers[()] = worker  # type: ignore[assignment]
    slots.share()
    first, second = slots.take(), slots.take()
    assert {first.number, second.number} == {0, 1}
    slots.give_back(first)
    slots.give_back(second)
    assert workers[first.number].closed == 0 and workers[second.number].closed == 1
    assert slots.take() is first, "a process comes back to the slot whose cells it keeps"
