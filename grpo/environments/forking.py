"""The driver's side of the nursery: it forks processes in turn, says which have ended, and replaces a dead nursery."""

from __future__ import annotations

import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo.environments.handles import NurseryDied, NurseryHandle, WorldHandle

# Most processes that the nursery is asked for at once. Further conversations wait in the driver.
_MOST_FORKING = 128
# After this number of dead nurseries without an opening between them, no conversation begins any more.
_MOST_FAILED_STARTS = 4
# Seconds for the nursery to kill all processes at the end.
_END_S = 10.0


class Forking:
    """Forks and kills processes through a nursery.

    Args:
        setup: settings for the nursery (`pack_setup`).
        log: file to which the user's code prints.
        start_s: seconds that a nursery may take to start.
        selector: the nursery's connection is registered here, with the data None.
    """

    def __init__(self, setup: bytes, log: Path, start_s: float, selector: selectors.BaseSelector) -> None:
        self._setup, self._log, self._start_s, self._selector = setup, log, start_s, selector
        self._waiting: deque[WorldHandle] = deque()
        self._forking: set[int] = set()
        # Processes that the nursery was asked for, and that have not ended.
        self._alive: set[int] = set()
        self._news: list[tuple[int, str]] = []
        self._failed_starts = 0
        self._ending: list[subprocess.Popen[bytes]] = []
        self._nursery: NurseryHandle | None = None
        # The reason why no process can be forked any more; empty while forking works.
        self.broken = ""

    def start(self) -> Sequence[Mapping[str, Any]]:
        """Start the first nursery, wait until it has loaded the user's code, and return the schemas of the tools.

        Raises:
            NurseryDied: the code could not be loaded, or not in time.
            OSError: no process can be started, or the log cannot be written.
        """
        nursery = self._new_nursery(schemas=True)
        while not nursery.ready:
            remaining_s = nursery.started_at + self._start_s - time.monotonic()
            if remaining_s <= 0:
                raise NurseryDied(f"the tools and environments were not loaded within {self._start_s:g} s")
            self._selector.select(remaining_s)
            nursery.message()
        return nursery.tools

    def add(self, handle: WorldHandle) -> None:
        """Let a process wait for its fork."""
        self._waiting.append(handle)

    def remove(self, handle: WorldHandle) -> None:
        """Kill a process, or forget it if it waits; no news comes of it."""
        if handle.identity in self._alive:
            self._alive.discard(handle.identity)
            if self._nursery is not None:
                self._nursery.kill(handle.identity)
        elif handle in self._waiting:
            self._waiting.remove(handle)

    def kill(self, handle: WorldHandle) -> None:
        """Kill a process, whose end becomes news."""
        if self._nursery is not None:
            self._nursery.kill(handle.identity)

    def opened(self) -> None:
        """Note that a process works."""
        self._failed_starts = 0

    def fork_waiting(self) -> Iterator[WorldHandle]:
        """Ask the nursery for processes, as many as it takes now; yield them."""
        while self._waiting and self._nursery is not None and self._nursery.ready:
            handle = self._waiting[0]
            assert handle.process_end is not None
            if len(self._forking) >= _MOST_FORKING or not self._nursery.fork(handle.identity, handle.process_end):
                return
            self._waiting.popleft()
            handle.process_end.close()
            handle.process_end = None
            self._forking.add(handle.identity)
            self._alive.add(handle.identity)
            yield handle

    def listen(self, patience: float) -> float:
        """Read the nursery's messages, and replace a dead nursery.

        Args:
            patience: seconds that the caller would like to wait.

        Returns:
            Seconds that the caller may wait until it must call again.
        """
        self._ending = [each for each in self._ending if each.poll() is None]
        nursery = self._nursery
        if nursery is None:
            return patience
        try:
            # The selector does not say when the nursery takes commands again, so the caller comes back soon.
            if not nursery.flush():
                patience = min(patience, 0.01)
            while (message := nursery.message()) is not None:
                self._heard(*message)
            if not nursery.ready:
                remaining_s = nursery.started_at + self._start_s - time.monotonic()
                if remaining_s <= 0:
                    raise NurseryDied(f"the tools and environments were not loaded again within {self._start_s:g} s")
                patience = min(patience, remaining_s)
        except NurseryDied as problem:
            self._renew(str(problem))
        return patience

    def news(self) -> list[tuple[int, str]]:
        """Return identity and reason of the processes that have ended, or cannot begin, since the last call."""
        if self.broken:
            self._news += [(handle.identity, self.broken) for handle in self._waiting]
            self._waiting.clear()
        news, self._news = self._news, []
        return news

    def stop(self) -> None:
        """Kill all processes, and wait until they have ended."""
        if self._nursery is not None:
            self._leave(self._nursery, kill=not self._nursery.ready)
        for process in self._ending:
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._ending.clear()

    def _heard(self, what: str, identity: str, more: str) -> None:
        if not identity:
            return
        number = int(identity)
        self._forking.discard(number)
        if what in ("unforked", "ended") and number in self._alive:
            self._alive.discard(number)
            self._news.append((number, _how_it_ended(int(more)) if what == "ended" else more))

    def _renew(self, problem: str) -> None:
        assert self._nursery is not None
        self._leave(self._nursery, kill=True)
        self._news += [(number, problem) for number in sorted(self._alive)]
        self._alive.clear()
        self._forking.clear()
        self._failed_starts += 1
        if self._failed_starts >= _MOST_FAILED_STARTS:
            self.broken = f"no conversation can begin: {problem}"
            return
        try:
            self._new_nursery(schemas=False)
        except OSError as again:
            self.broken = f"no conversation can begin: {again}"

    def _new_nursery(self, schemas: bool) -> NurseryHandle:
        self._nursery = NurseryHandle(self._setup, self._log, schemas)
        self._selector.register(self._nursery.connection, selectors.EVENT_READ)
        return self._nursery

    def _leave(self, nursery: NurseryHandle, kill: bool) -> None:
        self._selector.unregister(nursery.connection)
        process = nursery.leave()
        if kill:
            process.kill()
        self._ending.append(process)
        self._nursery = None


def _how_it_ended(status: int) -> str:
    """Return a sentence about a process that ended without an answer.

    Args:
        status: exit status, or a signal's number below 0.
    """
    if status >= 0:
        return f"the process of the conversation exited with status {status} instead of an answer"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = "; is the memory of this machine too small?" if name == "SIGKILL" else ""
    return f"the process of the conversation was killed by {name}{hint}"
