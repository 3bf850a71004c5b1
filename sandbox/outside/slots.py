"""The slots that programs wait for.

The threads of a process use its slots. If the slots are shared, its forks use them too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import threading

from sandbox.outside.worker import Worker

# A process that gives a slot back wakes the waiting processes. A killed process wakes nobody, so waiting processes
# also check after this time.
_LOOK_SECONDS = 0.05


class Slot:
    """Runs one program at a time. It has a worker for each set of preloaded modules, started when first needed."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.workers: dict[tuple[str, ...], Worker] = {}


class Slots:
    """All slots of a sandbox. After a slot was taken, nobody else can take it until it is given back.

    Between processes a record lock guards each slot. The kernel releases the lock when its holder ends for any reason.

    Args:
        count: number of programs that may run at the same time.
    """

    def __init__(self, count: int) -> None:
        self.all = [Slot(number) for number in range(count)]
        self._free = list(self.all)
        self._change = threading.Condition()
        self._locks: int | None = None
        self._given_back = -1
        self._home: tuple[int, Slot] | None = None

    @property
    def shared(self) -> bool:
        """Whether forks of this process use the same slots."""
        return self._locks is not None

    def share(self) -> None:
        """Let processes forked from now on take slots too. Call it while no slot is taken. Can be called twice."""
        if self._locks is None:
            self._locks = os.memfd_create("slots", os.MFD_CLOEXEC)
            self._given_back = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def take(self) -> Slot:
        """Wait for a free slot. The slot that was used last is preferred, because its cells are ready."""
        waited = False
        while True:
            with self._change:
                for slot in reversed(self._free):
                    if self._lock(slot):
                        self._free.remove(slot)
                        if waited:
                            # Two slots may have been given back although only this process was woken.
                            self._wake_others()
                        return slot
                if not self.shared:
                    self._change.wait()
                    continue
            waited = True
            self._wait_for_others()

    def give_back(self, slot: Slot) -> None:
        """Free the slot for the next program."""
        home = slot if self._locks is None else self._home_of(slot)
        if slot is not home:
            # Every process keeps idle cells in only one slot. Otherwise each worker would collect idle cells of all
            # processes.
            for worker in slot.workers.values():
                worker.close_idle_cells()
        with self._change:
            if self._locks is not None:
                fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, slot.number)
            self._free.insert(len(self._free) if slot is home else 0, slot)
            self._change.notify()
        if self._locks is not None:
            self._wake_others()

    def _wake_others(self) -> None:
        os.eventfd_write(self._given_back, 1)

    def _wait_for_others(self) -> None:
        """Wait until any process gives a slot back, but at most `_LOOK_SECONDS`."""
        waiting = select.poll()
        waiting.register(self._given_back, select.POLLIN)
        if waiting.poll(_LOOK_SECONDS * 1000):
            with contextlib.suppress(BlockingIOError):  # another thread or process was faster
                os.eventfd_read(self._given_back)

    def _lock(self, slot: Slot) -> bool:
        if self._locks is None:
            return True
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot.number)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _home_of(self, slot: Slot) -> Slot:
        """The slot that this process used first. The process takes it again if possible."""
        if self._home is None or self._home[0] != os.getpid():
            self._home = os.getpid(), slot
        return self._home[1]
